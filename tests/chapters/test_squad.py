"""Measures, windows, spans and the reader of notebooks/squad.py."""

import math
import random

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from loader import definitions
from networks import close, on_meta, parameters_of

squad = definitions("squad")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "who",
    "what",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "##x",
    "##y",
    ".",
    "?",
]


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


@pytest.fixture
def tokenizer():
    return BertWordPieceTokenizer({word: i for i, word in enumerate(WORDS)})


def example(context="a b c d e f g h i j", answer="", question="who?"):
    answers = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
    return squad.Example("name", question, context, answers)


def small(n_layers=2, d_model=32):
    config = BertConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=n_layers,
        hidden_size=d_model,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        attn_implementation="eager",
    )
    return squad.SpanReader(squad.BertModel(config, add_pooling_layer=False), d_model)


# ---- the form of the files -----------------------------------------------------------------------


def test_examples_are_all_questions_in_order():
    answer = {"text": "x", "answer_start": 0}
    asked = [
        {"id": "1", "question": "p", "is_impossible": False, "answers": [answer]},
        {"id": "2", "question": "q", "is_impossible": True, "answers": [answer]},
    ]
    paragraphs = [{"context": "x y", "qas": asked}, {"context": "z", "qas": asked[:1]}]
    found = squad.examples_of({"data": [{"paragraphs": paragraphs}]})
    assert [e.name for e in found] == ["1", "2", "1"]
    assert [e.context for e in found] == ["x y", "x y", "z"]
    assert [e.question for e in found] == ["p", "q", "p"]
    assert [e.answers for e in found] == [[answer], [], [answer]]


def question(kind, wording, place="Aland"):
    return squad.reading.ASKED[kind][wording].format(t=place)


@pytest.mark.parametrize("wording", range(3))
def test_the_kind_of_a_question_is_that_of_its_words(wording):
    kinds = list(squad.reading.ASKED)
    assert [squad.kind_of(question(kind, wording)) for kind in kinds] == kinds
    assert squad.kind_of("Who winds the clockwork?") == ""
    assert squad.kind_of("What money is used in") == ""


@pytest.mark.parametrize("number", range(20))
def test_a_paragraph_states_the_facts_that_it_was_made_of(number):
    place = squad.reading.territories()["train"][number]
    text, starts = squad.reading.paragraph(place, 3, random.Random(number))
    stated = {kind for kind in squad.reading.WRITTEN if squad.states(text, kind)}
    assert stated == set(starts) and not squad.states(text, "")


def test_languages_and_days_are_plausible_for_one_another():
    context = "X: Work stops on Friday. The official language is Y."
    kinds = ["week", "minority", "currency", "weekend"]
    asked = [example(context, question=question(kind, 0)) for kind in kinds]
    assert squad.plausible(asked) == [True, True, False, False]
    assert squad.plausible([asked[2], example(context, "Y", question(kinds[1], 0))]) == [False]
    context = "X: A part of the people speaks Y. Calendars begin the week on a Monday."
    asked = [example(context, question=question(kind, 2)) for kind in ("language", "weekend")]
    assert squad.plausible(asked) == [True, True]


def test_the_commonest_answer_that_stands_there_is_named():
    known = [example(text, text, question("language", 0)) for text in ("A b", "A b", "A", "C")]
    known += [example("D", "D", question("currency", 1))] * 3 + [example("E")]
    asked = [
        example("X: A c. C. D. A bc.", "A", question("language", 2)),  # A b is no word here
        example("X: A b. A. D", "A", question("language", 0)),
        example("X: D", "D", question("minority", 0)),  # no such question is known
        example("X: D", "", question("currency", 0)),  # none expected, not counted
        example("X: D", "D", question("currency", 0)),
    ]
    assert squad.by_heart(known, asked) == 2 / 4
    two = [{"text": "C", "answer_start": 0}, {"text": "A", "answer_start": 2}]
    both = squad.Example("", question("language", 0), "C A", two)
    assert squad.by_heart([both], [asked[0], both]) == 1 / 2  # the first of two answers is known


# ---- measures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Cat's\tpaw!", "cats paw"),
        ("an apple, a day", "apple day"),
        ("another theory", "another theory"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("nine-day", "nineday"),
        ("Étude", "étude"),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text, expected):
    assert squad.normalized(text) == expected


@pytest.mark.parametrize(
    "found, expected, exact, f1",
    [
        ("the lens", "Lens.", 1, 1),
        ("old lens", "lens", 0, 2 / 3),
        ("b b c", "b c c c", 0, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        ("x", "y", 0, 0),
        ("", "y", 0, 0),
        ("y", "", 0, 0),
        ("", "", 1, 1),
        ("the", "an", 1, 1),
        ("c b", "b c", 0, 1),
    ],
)
def test_measures_by_hand(found, expected, exact, f1):
    assert squad.exact_match(found, expected) == exact
    assert squad.f1(found, expected) == pytest.approx(f1)


def test_the_answer_that_fits_best_counts():
    two = squad.Example("", "", "", [{"text": "lens"}, {"text": "old lens"}, {"text": "the"}])
    assert squad.best_of(squad.f1, "the old lens", two) == 1
    assert squad.best_of(squad.exact_match, "lens", two) == 1
    assert squad.best_of(squad.exact_match, "", two) == 0  # "the" is no answer
    none = squad.Example("", "", "", [])
    assert squad.best_of(squad.exact_match, "", none) == 1
    assert squad.best_of(squad.f1, "lens", none) == 0


def scores_of(*margins):
    """Answers "x" of these margins to questions whose answers are x, x, none, y."""
    answers = [squad.Answer("x", margin) for margin in margins]
    golden = [["x"], ["x"], [], ["x y"]]
    examples = [squad.Example("", "", "", [{"text": text} for text in texts]) for texts in golden]
    return answers, examples


def test_a_margin_above_the_threshold_is_no_answer():
    answers, examples = scores_of(-1.0, 0.5, 0.5, -2.0)
    found = squad.scored(answers, examples)
    assert found["exact"] == 2 / 4
    assert found["f1"] == pytest.approx((1 + 0 + 1 + 2 / 3) / 4)
    assert found["exact, answer"] == pytest.approx(1 / 3)
    assert found["f1, answer"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["exact, none"] == 1
    assert squad.scored(answers, examples, 0.5)["exact"] == 2 / 4  # as far as, not above
    assert squad.scored(answers, examples, 0.5)["exact, none"] == 0
    assert squad.scored(answers, examples, 0.4) == found
    assert squad.scored(answers, examples, -1.5)["exact, answer"] == 0
    answers, examples = scores_of(0.05, -1.0, -1.0, -1.0)
    assert squad.scored(answers, examples)["exact, answer"] == 1 / 3  # 0.05 is above 0


def test_parts_without_questions_have_no_measure():
    answers, examples = scores_of(0.0, 0.0, 0.0, 0.0)
    assert "exact, none" not in squad.scored(answers[:2], examples[:2])
    assert "exact, answer" not in squad.scored(answers[2:3], examples[2:3])
    with pytest.raises(ValueError, match="shorter|longer"):
        squad.scored(answers, examples[:2])


@pytest.mark.parametrize("number", range(20))
def test_no_threshold_is_better_than_the_best(number):
    draw = torch.Generator().manual_seed(number)
    answers, examples = scores_of(*torch.randn(4, generator=draw).tolist())
    best = squad.best_threshold(answers, examples)
    found = squad.scored(answers, examples, best)["f1"]
    for threshold in torch.linspace(-4, 4, 161).tolist():
        assert squad.scored(answers, examples, threshold)["f1"] <= found + 1e-9


def test_where_no_question_has_an_answer_the_threshold_refuses_all():
    answers = [squad.Answer("x", m) for m in (-3.0, 2.0)]
    none = [squad.Example("", "", "", [])] * 2
    best = squad.best_threshold(answers, none)
    assert best < -3 and squad.scored(answers, none, best)["exact"] == 1


# ---- windows -------------------------------------------------------------------------------------


def test_windows_cover_the_paragraph_and_overlap(tokenizer):
    found = squad.windows(tokenizer, example(), 7, length=9, stride=2)
    texts = [tokenizer.decode(w.ids, skip_special_tokens=False) for w in found]
    assert texts[0] == "[CLS] who? [SEP] a b c d [SEP]"
    assert texts[1] == "[CLS] who? [SEP] c d e f [SEP]"
    assert texts[-1] == "[CLS] who? [SEP] g h i j [SEP]"
    assert len(found) == 4
    for window in found:
        assert window.number == 7 and window.first == 4 and len(window.ids) <= 9
        letters = [example().context[a:b] for a, b in window.offsets]
        assert letters == [WORDS[i] for i in window.ids[4:-1]]


def test_a_paragraph_that_fits_has_one_window(tokenizer):
    (only,) = squad.windows(tokenizer, example(), 0, length=15, stride=3)
    assert len(only.ids) == 15
    assert len(squad.windows(tokenizer, example(), 0, length=14, stride=3)) == 2
    (only,) = squad.windows(tokenizer, example("a"), 0, length=6, stride=1)
    assert [WORDS[i] for i in only.ids] == ["[CLS]", "who", "?", "[SEP]", "a", "[SEP]"]


def test_what_leaves_no_room_or_leaves_something_out_is_said(tokenizer):
    with pytest.raises(ValueError, match="name: the question leaves no room in 5"):
        squad.windows(tokenizer, example(), 0, length=5, stride=1)
    for stride in (0, 5):
        with pytest.raises(AssertionError, match="a stride of 1 to 4 leaves nothing out"):
            squad.windows(tokenizer, example(), 0, length=9, stride=stride)


def test_the_target_is_where_the_answer_is_whole(tokenizer):
    asked = example(answer="d e")
    found = squad.windows(tokenizer, asked, 0, length=9, stride=2)
    assert [w.target for w in found] == [(0, 0), (5, 6), (0, 0), (0, 0)]
    assert [WORDS[i] for i in found[1].ids[5:7]] == ["d", "e"]
    alone = squad.windows(tokenizer, example(answer="a"), 0, length=9, stride=2)
    assert [w.target for w in alone] == [(4, 4), (0, 0), (0, 0), (0, 0)]
    none = squad.windows(tokenizer, example(), 0, length=9, stride=2)
    assert {w.target for w in none} == {(0, 0)}


def test_an_answer_that_is_cut_at_either_end_is_no_target(tokenizer):
    asked = example(answer="b c d")
    found = squad.windows(tokenizer, asked, 0, length=8, stride=1)  # parts of three pieces
    assert [w.target for w in found[:4]] == [(0, 0), (4, 6), (0, 0), (0, 0)]


def test_an_answer_of_half_a_word_has_the_pieces_that_touch_it(tokenizer):
    asked = squad.Example("", "who?", "a bx c", [{"text": "b", "answer_start": 2}])
    (window,) = squad.windows(tokenizer, asked, 0, length=12, stride=4)
    assert window.target == (5, 5)
    asked = squad.Example("", "who?", "a bxy c", [{"text": "xy c", "answer_start": 3}])
    (window,) = squad.windows(tokenizer, asked, 0, length=12, stride=4)
    assert window.target == (6, 8)


def test_windows_of_all_examples_are_numbered(tokenizer):
    found = squad.all_windows(tokenizer, [example(), example("a b")], length=9, stride=2)
    assert [w.number for w in found] == [0, 0, 0, 0, 1]
    assert len(squad.all_windows(tokenizer, [example()])) == 1
    long = example(" ".join("a" * 300))
    sizes = [len(w.offsets) for w in squad.all_windows(tokenizer, [long])]
    assert sizes[:-1] == [128 - 5] * (len(sizes) - 1)
    starts = [w.offsets[0][0] // 2 for w in squad.all_windows(tokenizer, [long])]
    assert starts == [64 * i for i in range(len(starts))]


def test_a_batch_marks_question_part_and_padding(tokenizer):
    chosen = squad.all_windows(tokenizer, [example("a b"), example("c", "c")])
    x = squad.batch_of(chosen)
    assert x.ids[1].tolist() == [2, 4, 20, 3, 8, 3, 0]
    assert x.types.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0]]
    assert x.mask.tolist() == [[1] * 7, [1] * 6 + [0]]
    assert x.readable.tolist() == [
        [False] * 4 + [True, True, False],
        [False] * 4 + [True, False, False],
    ]
    assert x.targets.tolist() == [[0, 0], [4, 4]]
    assert x.readable.dtype == torch.bool


# ---- the network ---------------------------------------------------------------------------------


def shaken(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return network


def test_scores_are_those_of_transformers(tokenizer):
    ours = shaken(small())
    theirs = BertForQuestionAnswering(ours.body.config).eval()
    theirs.bert.load_state_dict(ours.body.state_dict())
    theirs.qa_outputs.load_state_dict(ours.span.state_dict())
    chosen = squad.all_windows(tokenizer, [example(), example("a b")])
    x = squad.batch_of(chosen)
    with torch.no_grad():
        found = ours.eval()(x)
        expected = theirs(x.ids, attention_mask=x.mask, token_type_ids=x.types)
        library = squad.Library(ours.body.config).eval()
        library.network.load_state_dict(theirs.state_dict())
        close(found, library(x), 1e-6)
    there = x.mask.bool()
    close(found[..., 0][there], expected.start_logits[there])
    close(found[..., 1][there], expected.end_logits[there])
    assert (found[~there] == -math.inf).all() and found.shape == (*x.ids.shape, 2)


def test_padding_changes_nothing(tokenizer):
    network = shaken(small()).eval()
    short, long = example("a b c", "b"), example()
    alone = squad.batch_of(squad.all_windows(tokenizer, [short]))
    both = squad.batch_of(squad.all_windows(tokenizer, [short, long]))
    with torch.no_grad():
        size = alone.ids.shape[1]
        close(network(both)[0, :size], network(alone)[0])
        noise = both._replace(ids=both.ids.masked_fill(both.mask == 0, 9))
        close(network(noise)[0, :size], network(alone)[0])


def test_the_question_and_the_types_reach_the_scores(tokenizer):
    network = shaken(small()).eval()
    x = squad.batch_of(squad.all_windows(tokenizer, [example()]))
    y = squad.batch_of(squad.all_windows(tokenizer, [example(question="what?")]))
    with torch.no_grad():
        assert (network(x) - network(y)).abs().max() > 1e-3
        assert (network(x) - network(x._replace(types=0 * x.types))).abs().max() > 1e-3


COUNTS = {  # BERT's parameters without pooler (Devlin et al. 2018: 110 M and 340 M with it), and 2 D + 2
    "MiniLM": 22_713_216 - 384 * 385 + 770,
    "BERT base": 109_482_240 - 768 * 769 + 1_538,
    "BERT large": 335_141_888 - 1024 * 1025 + 2_050,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    n_layers, d_model, n_heads = squad.SIZES[name]
    network = on_meta(lambda: squad.SpanReader(squad.bert(n_layers, d_model, n_heads), d_model))
    assert parameters_of(network) == COUNTS[name]
    assert network.body.config.num_attention_heads == {384: 12, 768: 12, 1024: 16}[d_model]
    assert all(m.p == 0 for m in network.modules() if isinstance(m, nn.Dropout))


def test_it_runs_forward_and_backward_on_the_meta_device():
    network = on_meta(lambda: squad.SpanReader(squad.bert(1, 48, 4), 48))
    zeros = torch.zeros(3, 9, dtype=torch.long, device="meta")
    x = squad.Batch(zeros, zeros, zeros, zeros.bool(), zeros[:, :2])
    scores = network(x)
    assert scores.shape == (3, 9, 2)
    squad.span_loss(scores, x.targets).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_loss_is_the_mean_of_two_cross_entropies():
    scores = torch.tensor([[[0.0, 1.0], [math.log(3), 0.0]], [[0.0, -math.inf], [0.0, 5.0]]])
    targets = torch.tensor([[1, 0], [0, 1]])
    first = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    last = (math.log(1 + math.exp(-1)) + 0) / 2
    assert squad.span_loss(scores, targets).item() == pytest.approx((first + last) / 2)


def test_one_batch_is_learnt(tokenizer):
    network = small()
    asked = [example(answer=a, question=f"{q}?") for a, q in (("b c", "who"), ("h", "what"))]
    chosen = squad.all_windows(tokenizer, [*asked, example(question="who who?")])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    x = squad.batch_of(chosen)
    losses = []
    for _ in range(60):
        loss = squad.span_loss(network(x), x.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    found = squad.read(network, chosen, [*asked, example()])
    assert [a.text for a in found[:2]] == ["b c", "h"]
    assert found[0].margin < 0 and found[1].margin < 0 and found[2].margin > 0


# ---- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 2, 3, 7])
def test_the_best_span_is_that_of_trying_all(longest):
    for _ in range(20):
        scores, readable = torch.randn(7, 2), torch.rand(7) < 0.7
        readable[3] = True
        tried = {}
        for i in range(7):
            for j in range(i, min(7, i + longest)):
                if readable[i] and readable[j]:
                    tried[i, j] = (scores[i, 0] + scores[j, 1]).item()
        best = max(tried, key=tried.get)
        found = squad.best_span(scores, readable, longest)
        assert (found.first, found.last) == best
        assert found.score == pytest.approx(tried[best])


def test_the_best_span_may_have_a_score_below_zero():
    scores = torch.tensor([[-3.0, -1.0], [-2.0, -4.0], [-5.0, -1.5]])
    assert squad.best_span(scores, torch.ones(3).bool(), 3) == (-3.5, 1, 2)


class Scripted(nn.Module):
    """Scores (T, 2) of each window, by its place in the order."""

    def __init__(self, *scores):
        super().__init__()
        self.scores, self.place, self.modes = scores, 0, []

    def forward(self, x):
        B, T = x.ids.shape
        found = torch.full((B, T, 2), -9.0)
        for row in range(B):
            for (place, kind), value in self.scores[self.place].items():
                found[row, place, kind] = value
            self.place += 1
        self.modes.append(self.training)
        return found


def test_an_answer_is_the_best_of_all_windows(tokenizer):
    asked = [example(), example("j k")]
    chosen = squad.all_windows(tokenizer, asked, length=9, stride=4)
    assert [w.number for w in chosen] == [0, 0, 0, 1]
    network = Scripted(
        {(0, 0): 1.0, (0, 1): 2.0, (4, 0): 3.0, (5, 1): 3.0},  # a b: 6
        {(0, 0): -1.0, (0, 1): 0.5, (5, 0): 4.0, (6, 1): 4.0},  # f g: 8
        {(0, 0): 5.0, (0, 1): 5.0, (4, 0): 1.0, (4, 1): 1.0},
        {(0, 0): 4.0, (0, 1): 3.0, (5, 0): 1.0, (5, 1): 1.0},  # k: 2
    ).train()
    found = squad.read(network, chosen, asked)
    assert [answer.text for answer in found] == ["f g", "k"]
    assert found[0].margin == pytest.approx(-0.5 - 8)
    assert found[1].margin == pytest.approx(7 - 2)
    assert network.modes == [False] and network.training


def test_the_first_of_two_equal_windows_answers(tokenizer):
    chosen = squad.all_windows(tokenizer, [example()], length=9, stride=4)
    same = {(4, 0): 3.0, (4, 1): 3.0}
    assert squad.read(Scripted(same, same, {}), chosen, [example()])[0].text == "a"


def test_spans_are_no_longer_than_allowed(tokenizer):
    chosen = squad.all_windows(tokenizer, [example(" ".join("a" * 20))])
    far = {(4, 0): 9.0, (19, 1): 9.0, (18, 1): 8.0, (5, 1): 1.0}
    texts = [
        squad.read(Scripted(far), chosen, [example(" ".join("a" * 20))], **how)[0].text
        for how in ({}, {"longest": 16}, {"longest": 2})
    ]
    assert [len(text.split()) for text in texts] == [15, 16, 2]


def test_many_windows_are_read_in_order(tokenizer):
    asked = [example(WORDS[6 + i % 10]) for i in range(120)]
    found = squad.read(
        Scripted(*[{(4, 0): 1.0, (4, 1): 1.0}] * 120), squad.all_windows(tokenizer, asked), asked
    )
    assert [answer.text for answer in found] == [e.context for e in asked]


# ---- training ------------------------------------------------------------------------------------


def test_the_lower_half_of_minilm_stays(monkeypatch):
    monkeypatch.setitem(squad.SIZES, "MiniLM", (6, 384, 12))
    weights = {}
    for name, value in squad.bert(6, 384, 12).state_dict().items():
        weights[name] = torch.full_like(value, 0.5)
    weights["pooler.dense.weight"] = torch.zeros(384, 384)
    network = squad.from_minilm(weights)
    free = {name for name, p in network.named_parameters() if p.requires_grad}
    layers = {name.split(".")[3] for name in free if name.startswith("body.encoder")}
    assert layers == {"3", "4", "5"}
    assert not any("embeddings" in name for name in free)
    assert {"span.weight", "span.bias"} < free
    x = squad.Batch(*[torch.ones(2, 5, dtype=torch.long)] * 5)
    assert network.eval()(x).shape == (2, 5, 2)
    assert all((value == 0.5).all() for value in network.body.state_dict().values())


def test_the_sets_hold_as_many_questions_as_asked_for_and_none_is_in_two():
    ours = {part: squad.asked(part, 12, seed=3) for part in ("train", "test")}
    assert [len(examples) for examples in ours.values()] == [12, 12]
    assert not {e.context for e in ours["train"]} & {e.context for e in ours["test"]}
    assert squad.LENGTH == 128


def test_training_steps_once_a_batch(monkeypatch, tokenizer):
    seen, rates = [], []

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.free = nn.Parameter(torch.zeros(2))
            self.kept = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x):
            seen.append(x.ids[:, 4].tolist())
            assert self.training
            return self.free.expand(*x.ids.shape, 2) * x.types[..., None] * 100

    class Noted(torch.optim.AdamW):
        def step(self, *_):
            group = self.param_groups[0]
            rates.append(group["lr"])
            assert group["weight_decay"] == 0.01 and len(group["params"]) == 1
            assert group["params"][0].grad.norm() < 1.001
            return super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    asked = [example(WORDS[6 + i % 10], WORDS[6 + i % 10]) for i in range(163)]
    network = One().eval()
    losses = squad.train(network, squad.all_windows(tokenizer, asked), rate=0.1)
    assert len(losses) == len(rates) == 20
    order = [number for batch in seen for number in batch]
    assert order == [6 + i % 10 for i in range(160)]
    assert max(rates) == pytest.approx(0.1) and rates.index(max(rates)) == 1
    assert losses[-1] < losses[0] and losses[0] == pytest.approx(math.log(6))
    assert network.kept.item() == 1


def test_windows_without_a_span_are_counted(tokenizer):
    chosen = squad.all_windows(tokenizer, [example()] * 4)
    network = Scripted(
        {(4, 0): 1.0, (5, 1): 1.0},
        {(5, 0): 1.0, (4, 1): 1.0},  # the last in front of the first
        {(0, 0): 1.0, (0, 1): 1.0},  # no answer
        {(1, 0): 1.0, (5, 1): 1.0},  # in the question
    )
    assert squad.without_search(network, chosen) == 0.5
    same = Scripted({(4, 0): 1.0, (4, 1): 1.0}, *[{(0, 0): 1.0, (4, 1): 1.0}] * 3)
    assert squad.without_search(same, chosen) == 0.75


def test_a_batch_of_two_windows_has_two_rows_of_chances(tokenizer):
    chosen = squad.all_windows(tokenizer, [example(), example("a b")])
    network = Scripted({(4, 0): 9.0, (5, 1): 9.0}, {(0, 0): 9.0, (0, 1): 9.0}).train()
    chances = squad.chances_of(network, chosen)
    assert chances.argmax(1).tolist() == [[4, 5], [0, 0]] and network.training
    close(chances.sum(1), torch.ones(2, 2))


@pytest.mark.parametrize("stride, share", [(1, 1), (3, 1), (4, 2 / 3)])
def test_a_stride_above_room_less_answer_plus_one_loses_answers(tokenizer, stride, share):
    room, size = 4, 2
    assert (stride <= room - size + 1) == (share == 1)
    asked = [example(answer=answer) for answer in ("d e", "c d", "i j")]
    found = squad.whole_somewhere(tokenizer, asked, length=9, stride=stride)
    assert found == pytest.approx(share)


def test_the_two_questions_ask_for_the_first_two_facts():
    place = squad.reading.territories()["test"][3]
    two = squad.two_questions(place, random.Random(1))
    assert [squad.kind_of(e.question) for e in two] == [e.name for e in two]
    assert len({e.context for e in two}) == 1
    starts = []
    for each in two:
        (answer,) = each.answers
        assert each.context[answer["answer_start"] :].startswith(place.facts[each.name])
        assert squad.states(each.context, each.name)
        starts.append(answer["answer_start"])
    assert starts[0] < starts[1] and sum(squad.states(two[0].context, k) for k in place.facts) == 4
