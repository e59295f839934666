"""The pieces, the network, the two tasks and the fine-tuning of notebooks/bert.py."""

from collections import Counter

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from torch import nn
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES
from transformers import BertConfig, BertForPreTraining, BertModel

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting

bert = definitions("bert")


def small():
    return bert.Size(2, 24, 3, V=50, longest=16)


def config(size, **more):
    return BertConfig(
        vocab_size=size.V,
        hidden_size=size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        intermediate_size=4 * size.d_model,
        max_position_embeddings=size.longest,
        attn_implementation="eager",
        **more,
    )


# ---- pieces --------------------------------------------------------------------------------------


def test_signs_and_chinese_characters_are_words_and_accents_go():
    text = "Café  Ω's\t$5_x, 天地a\n\u3400\u4dbf\u4e00\u9fff «né»"
    expected = [
        "cafe",
        "ω",
        "'",
        "s",
        "$",
        "5",
        "_",
        "x",
        ",",
        "天",
        "地",
        "a",
        "㐀",
        "䶿",
        "一",
        "鿿",
        "«",
        "ne",
        "»",
    ]
    assert bert.split_words(text) == expected
    for c in "~!\u2014":
        assert bert.stands_alone(c)
    for c in "az09 \t\n\u3041\u33ff\u4dc0é":
        assert not bert.stands_alone(c)


TEXTS = ["low lower lowest, newer wider", "the new low, the newest show", "tower of wool"]


def test_the_trainer_merges_what_the_library_merges():
    counts = Counter(word for line in TEXTS * 3 for word in bert.split_words(line))
    ours = bert.learn_pieces(counts, 40)
    library = BertWordPieceTokenizer()
    library.train_from_iterator(TEXTS * 3, vocab_size=40, min_frequency=0, show_progress=False)
    assert ours[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(ours) == len(set(ours)) == 40
    letters = {p for p in library.get_vocab() if len(p.removeprefix("##")) == 1}
    start = 5 + len(bert.WordPieceLearner(counts).singles)
    assert ours[5:start] == sorted(set(ours[5:start])) and set(ours[5:start]) <= letters
    frequencies = [times(counts, ours[: k + 1], ours[k]) for k in range(start, 40)]
    assert frequencies == sorted(frequencies, reverse=True)


def times(counts, vocabulary, last):
    """How often the last piece occurs when it has just been made."""
    learner = bert.WordPieceLearner(counts)
    letters = len(learner.singles)
    for piece in vocabulary[5 + letters :]:
        (pair,) = {p for p in learner.pairs if p[0] + p[1].removeprefix("##") == piece}
        learner.merge(pair)
    return learner.singles[last]


def test_a_merge_keeps_all_counts_as_if_they_were_made_anew():
    counts = Counter({"aaaa": 3, "banana": 2, "an": 1, "nan": 5})
    learner = bert.WordPieceLearner(counts)
    for pair in (("##a", "##n"), ("##an", "##a"), ("n", "##an")):
        joined = learner.merge(pair)
        assert joined == pair[0] + pair[1][2:]
        singles, pairs = Counter(), Counter()
        for word, spelt in learner.spelt.items():
            assert "".join(spelt).replace("##", "") == word
            assert pair not in list(zip(spelt, spelt[1:]))
            for piece in spelt:
                singles[piece] += counts[word]
            for two in zip(spelt, spelt[1:]):
                pairs[two] += counts[word]
                assert word in learner.where[two]
        assert +learner.singles == singles and dict(learner.pairs) == dict(pairs)
    assert bert.join(["a", "##a", "##a", "##a"], ("a", "##a")) == ["aa", "##a", "##a"]
    assert bert.join(["b", "##a", "##a", "##a"], ("##a", "##a")) == ["b", "##aa", "##a"]


def test_the_two_rules_by_hand():
    counts = bert.FIVE
    learner = bert.WordPieceLearner(counts)
    assert learner.pairs["##e", "##a"] == 20 and max(learner.pairs.values()) == 20
    assert learner.pairs["##o", "##s"] == learner.singles["##o"] == 6
    assert learner.singles["##s"] == 11 and learner.singles["##e"] == 31
    assert bert.first_merges(counts, bert.most_frequent, 3) == ["##ea", "sea", "seat"]
    assert bert.first_merges(counts, bert.highest_score, 3) == ["##os", "##st", "ros"]
    everything = bert.learn_pieces(Counter({"ab": 2, "abc": 1}), 100, bert.highest_score)
    assert everything[5:] == ["##b", "##c", "a", "ab", "abc"]
    assert bert.learn_pieces(Counter({"ab": 2}), 100)[5:] == ["##b", "a", "ab"]
    # two ways to one piece give it once
    found = bert.learn_pieces(Counter({"xabc": 9, "yabc": 8, "zbc": 30, "wab": 1}), 60)
    assert len(found) == len(set(found))


def test_the_longest_piece_is_taken_and_a_word_that_does_not_fit_is_unknown():
    cutter = bert.WordPiece([*bert.SPECIAL, "a", "ab", "##b", "##bc", "##c", "d"])
    assert cutter.cut("abc") == ["ab", "##c"]
    assert cutter.cut("abbc") == ["ab", "##bc"]
    assert cutter.cut("abd") == ["[UNK]"]
    assert cutter.tokens("ABC d, a") == ["ab", "##c", "d", "[UNK]", "a"]
    assert cutter.encode("abc d") == [2, 6, 9, 10, 3]
    assert cutter.padded(["d", "abc"]).tolist() == [[2, 10, 3, 0], [2, 6, 9, 3]]
    other = bert.WordPiece(["a", "[SEP]", "[CLS]", "[PAD]"])
    assert other.padded(["a", ""]).tolist() == [[2, 0, 1], [2, 1, 3]]


def test_pieces_are_those_of_the_library_on_any_text():
    counts = Counter(word for line in TEXTS for word in bert.split_words(line))
    ours = bert.WordPiece(bert.learn_pieces(counts, 45))
    library = BertWordPieceTokenizer(ours.numbers)
    for text in (*TEXTS, "Lówest-towers; slow 天low\u00a0of  wood's", "", "we [x] {y} |z|"):
        assert ours.encode(text) == library.encode(text).ids


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"),
    [("BASE", 109_482_240), ("LARGE", 335_141_888), ("MINILM", 22_713_216)],
)
def test_published_sizes_have_the_tensors_of_transformers(size, count):
    size = getattr(bert, size)
    assert bert.published(size).to_dict() == config(size).to_dict()
    network, theirs = on_meta(bert.BERT, size), on_meta(lambda: BertModel(config(size)))
    assert parameters_of(network) == bert.formula(size) == count
    assert [p.shape for p in network.parameters()] == [p.shape for p in theirs.parameters()]
    numbers = torch.zeros(1, 64, dtype=torch.long, device="meta")
    D = size.d_model
    assert counting.macs(network, numbers) == size.n_layers * 64 * (12 * D**2 + 128 * D)


def both(size):
    """Our network for both tasks and that of transformers, with the same random weights."""
    torch.manual_seed(0)
    ours, theirs = bert.Pretraining(size), BertForPreTraining(config(size))
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    names = [name for name, _ in ours.named_parameters()]
    place = {id(p): name for name, p in theirs.named_parameters()}
    wanted = {
        "bias": "cls.predictions.bias",
        "transform.weight": "cls.predictions.transform.dense.weight",
        "transform.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "follows.weight": "cls.seq_relationship.weight",
        "follows.bias": "cls.seq_relationship.bias",
    }
    pairs = dict(zip(ours.bert.parameters(), theirs.bert.parameters(), strict=True))
    found = dict(ours.named_parameters())
    others = {place[id(p)]: p for p in theirs.parameters()}
    for name, other in wanted.items():
        pairs[found[name]] = others[other]
    assert len(pairs) == len(names)
    with torch.no_grad():
        for mine, other in pairs.items():
            value = torch.randn(mine.shape) * 0.3 + (mine.ndim == 1) * 0.5
            mine.copy_(value)
            other.copy_(value)
    return ours.eval(), theirs.eval(), pairs


def test_outputs_and_gradients_of_both_tasks_are_those_of_transformers():
    ours, theirs, pairs = both(small())
    numbers = torch.randint(5, 50, (3, 9))
    numbers[1, 6:] = 0
    segments = (torch.arange(9) > 4).long().expand(3, -1)
    where = torch.zeros(3, 9, dtype=torch.bool)
    where[0, 2] = where[1, 4] = where[2, 8] = True
    pieces, follows = ours(numbers, segments, where)
    found = theirs(numbers, attention_mask=(numbers != 0).long(), token_type_ids=segments)
    wanted = found.prediction_logits[where]
    networks.close(pieces, wanted)
    networks.close(follows, found.seq_relationship_logits)
    networks.close(
        ours.bert.pool(ours.bert(numbers, segments)),
        theirs.bert(numbers, (numbers != 0).long(), segments).pooler_output,
    )
    weight = torch.randn(pieces.shape)
    ((pieces * weight).sum() + follows[:, 0].sum()).backward()
    ((wanted * weight).sum() + found.seq_relationship_logits[:, 0].sum()).backward()
    for mine, other in pairs.items():
        if other.grad is not None:
            theirs_grad = other.grad.clone()
            if other is theirs.bert.embeddings.word_embeddings.weight:
                theirs_grad[0] = mine.grad[0]  # transformers keeps the vector of padding
            torch.testing.assert_close(mine.grad, theirs_grad, rtol=1e-4, atol=1e-5)


def test_nothing_is_dropped_in_other_places_than_those_of_transformers():
    ours, theirs = bert.BERT(small()), BertModel(config(small()))
    networks.share_weights(ours, theirs)
    numbers = torch.randint(5, 50, (2, 7))
    torch.manual_seed(3)
    found = ours.train()(numbers)
    torch.manual_seed(3)
    wanted = theirs.train()(numbers).last_hidden_state
    networks.close(found, wanted, 1e-4)


def test_padding_changes_nothing_and_rows_do_not_meet():
    torch.manual_seed(0)
    network = bert.BERT(small()).eval()
    numbers = torch.randint(5, 50, (3, 8))
    alone = network(numbers)
    networks.close(network(F.pad(numbers, (0, 4)))[:, :8], alone)
    networks.close(network(numbers.flip(0)), alone.flip(0))
    unequal = numbers.clone()
    unequal[0, 5:] = 0
    networks.close(network(unequal)[0, :5], network(numbers[:1, :5])[0])
    networks.close(network(unequal)[1:], alone[1:])


def test_each_piece_sees_both_sides_its_place_and_its_segment():
    torch.manual_seed(0)
    network = bert.BERT(small()).eval()
    numbers = torch.randint(5, 50, (1, 6))
    other = numbers.clone()
    other[0, 3] = (other[0, 3] + 1 - 5) % 45 + 5
    assert ((network(other) - network(numbers)).abs().amax(2) > 1e-6).all()
    order = torch.tensor([0, 2, 1, 3, 4, 5])
    moved = network(numbers[:, order])[:, order]
    assert not torch.allclose(moved, network(numbers), atol=1e-5)
    with torch.no_grad():
        network.embed.position.weight.zero_()
    networks.close(network(numbers[:, order])[:, order], network(numbers))
    one = torch.ones_like(numbers)
    assert not torch.allclose(network(numbers, one), network(numbers), atol=1e-5)
    networks.close(network(numbers, 0 * one), network(numbers), 0)


def test_weights_start_normal_and_biases_at_zero():
    torch.manual_seed(0)
    network = bert.Pretraining(bert.Size(1, 128, 4, V=500, longest=64))
    for name, p in network.named_parameters():
        if p.ndim == 2 and p.numel() > 5000:
            networks.starts_with(p, 0.02, 0.03)
        elif "norm" in name and name.endswith("weight"):
            networks.close(p, torch.ones_like(p), 0)
        elif p.ndim == 1:
            assert not p.any(), name
    with pytest.raises(AssertionError, match="must divide"):
        bert.SelfAttention(10, 3)


def test_it_runs_forward_and_backward_on_the_meta_device():
    model = on_meta(bert.Pretraining, small()).eval()
    with torch.device("meta"):
        numbers = torch.zeros(2, 7, dtype=torch.long)
        x = model.bert(numbers)
        scores = model.norm(F.gelu(model.transform(x))) @ model.bert.embed.word.weight.T
        total = (scores + model.bias).sum() + model.follows(model.bert.pool(x)).sum()
        total.backward()
    assert scores.shape == (2, 7, 50)
    assert all(p.grad is not None for p in model.parameters())


# ---- the two tasks -------------------------------------------------------------------------------


def test_fifteen_in_a_hundred_are_asked_for_and_most_of_them_hidden():
    torch.manual_seed(0)
    numbers = torch.randint(0, 400, (400, 200))
    before = numbers.clone()
    read, chosen = bert.hide(numbers, 400)
    assert torch.equal(numbers, before)
    assert not chosen[numbers < 5].any()
    assert chosen[numbers >= 5].double().mean() == pytest.approx(0.15, abs=0.004)
    assert torch.equal(read[~chosen], numbers[~chosen])
    asked, wanted = read[chosen], numbers[chosen]
    masked = asked == 4
    assert masked.double().mean() == pytest.approx(0.8, abs=0.015)
    assert (asked == wanted).double().mean() == pytest.approx(0.1, abs=0.015)
    others = asked[~masked & (asked != wanted)]
    assert others.min() == 5 and others.max() == 399
    assert len(others) / len(asked) == pytest.approx(0.1, abs=0.015)


def test_every_second_pair_follows_and_the_segments_are_those_of_a_and_b():
    torch.manual_seed(0)
    stream = torch.arange(10, 5000)
    numbers, segments, label = bert.pairs_of(stream, 40, 6)
    assert numbers.shape == segments.shape == (40, 15)
    assert label.tolist() == [0, 1] * 20
    assert (numbers[:, 0] == 2).all() and (numbers[:, [7, 14]] == 3).all()
    assert segments[0].tolist() == [0] * 8 + [1] * 7 and (segments == segments[0]).all()
    a, b = numbers[:, 1:7], numbers[:, 8:14]
    for part in (a, b):
        assert (part.diff(dim=1) == 1).all()
    assert torch.equal(a[:, -1] + 1 == b[:, 0], label == 0)
    assert len(a[:, 0].unique()) > 35
    tight = torch.arange(10, 23)  # 13 pieces: A starts at the first, B within
    for _ in range(5):
        a, b = (bert.pairs_of(tight, 40, 6)[0][:, k : k + 6] for k in (1, 8))
        assert (a[:, 0] == 10).all() and b.max() < 23
    assert {10, 16} <= set(b[:, 0].tolist())


def test_a_text_that_repeats_is_learnt_and_the_steps_are_those_of_one_cycle(monkeypatch):
    torch.manual_seed(0)
    rates, adam, shapes = [], torch.optim.Adam, []

    class Adam(adam):
        def step(self, *args):
            assert self.param_groups[0]["betas"] == (0.9, 0.98)
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    pairs_of = bert.pairs_of
    monkeypatch.setitem(
        bert._namespace, "pairs_of", lambda *a: shapes.append(a[1:]) or pairs_of(*a)
    )
    stream = (5 + torch.arange(7)).repeat(40)
    model = bert.Pretraining(bert.Size(1, 32, 2, V=12, longest=32))
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.1)
    before = bert.judge(*bert.ask(model, stream, 64)[:2])
    assert model.training
    losses = bert.pretrain(model, stream, 300)
    assert not model.training  # nothing was dropped
    after = bert.judge(*bert.ask(model, stream, 64)[:2])
    assert len(losses) == 300 and losses[-1] < losses[0] / 2
    assert after[1] < before[1] / 2
    assert after[0] > 0.7 > before[0]
    networks.rises_and_falls(rates, 5e-3, 59)
    assert set(shapes) == {(64, 4), (128, 4)}


def test_both_losses_are_trained_and_the_one_behind_masks_is_kept(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(bert._namespace, "hide", one_of_each)
    model = bert.Pretraining(bert.Size(1, 32, 2, V=12, longest=32))
    (loss,) = bert.pretrain(model, torch.tensor([5, 6, 7, 8] * 40), 1)
    assert model.follows.bias.grad.any() and model.transform.weight.grad.any()
    asked = (model.bias.grad != 0).sum()
    assert asked == 12
    monkeypatch.setitem(bert._namespace, "hide", lambda n, V: one_of_each(n, V, masks=False))
    assert torch.tensor(bert.pretrain(model, torch.tensor([5, 6, 7, 8] * 40), 1)).isnan()
    assert loss == pytest.approx(torch.tensor(12.0).log().item(), abs=0.2)


def one_of_each(numbers, V, masks=True):
    """The second piece is hidden, the third stays; both are asked for."""
    read = numbers.clone()
    chosen = torch.zeros(numbers.shape, dtype=torch.bool)
    chosen[:, 1:3] = True
    if masks:
        read[:, 1] = 4
    return read, chosen


def test_asking_is_about_what_stands_behind_masks(monkeypatch):
    class Knows(nn.Module):
        def __init__(self, piece):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(12))
            self.piece = piece

        def forward(self, read, segments, where):
            assert (read[where] == 4).all() and where.sum() == len(read)
            scores = torch.full((int(where.sum()), 12), -1.0)
            scores[:, self.piece] = 1.0
            return scores, torch.tensor([1.0, 0.0]).expand(len(read), 2)

    torch.manual_seed(0)
    monkeypatch.setitem(bert._namespace, "hide", one_of_each)
    stream = torch.tensor([5, 5, 5, 6] * 50)
    scores, wanted, pairs = bert.ask(Knows(5), stream, 400)
    assert len(wanted) == 400 and (wanted == 5).double().mean() == pytest.approx(0.75, abs=0.06)
    assert pairs == 0.5
    right, bits = bert.judge(scores, wanted)
    assert right == (wanted == 5).double().mean()
    miss = torch.log2(torch.exp(torch.tensor(2.0)) + 11)
    by_hand = right * (miss - 2 / 0.6931472) + (1 - right) * miss
    assert bits == pytest.approx(by_hand.item(), rel=1e-4)


# ---- vectors and fine-tuning ---------------------------------------------------------------------


def test_a_mean_is_over_the_pieces_that_are_no_padding():
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 60.0]]])
    real = torch.tensor([[True, True, False]])
    networks.close(bert.mean_vector(x, real), torch.tensor([[2.0, 4.0]]))


def test_sentence_and_token_vectors_are_those_of_the_network_with_length_one():
    torch.manual_seed(0)
    tokenizer = bert.WordPiece([*bert.SPECIAL, "a", "##b", "c", "d"])
    model = bert.BERT(bert.Size(1, 8, 2, V=9, longest=16))
    numbers = tokenizer.padded(["ab c", "d"])
    found = bert.sentence_vectors(model, numbers)
    assert model.training and not found.requires_grad
    model.eval()
    networks.close(found[1], F.normalize(model(numbers[1:, :3]).mean(1))[0])
    one = bert.token_vector(model, tokenizer, "ab c d c", "c")
    whole = model(torch.tensor([tokenizer.encode("ab c d c")]))[0]
    networks.close(one, F.normalize(whole[3], dim=0))


def test_names_are_halves_of_both_kinds_and_none_is_in_both_parts():
    vocabulary = [*bert.SPECIAL, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = bert.WordPiece(vocabulary)  # a letter a piece
    everything = [tuple(tokenizer.encode(n)) for n in _IMAGENET_CATEGORIES]
    short = {row for row in everything[:398] if len(row) <= 8}
    things = {row for row in everything[398:] if len(row) <= 8}
    assert min(len(short), len(things)) < 120  # too few: only the order is looked at
    names, kinds, test, test_kinds = bert.names_of(tokenizer)
    for rows, labels in ((names, kinds), (test, test_kinds)):
        for row, kind in zip(rows.tolist(), labels.tolist(), strict=True):
            row = tuple(n for n in row if n)
            assert len(row) <= 8 and row in (short if kind else things)
    assert test.shape[1] == names.shape[1] == 8
    assert not {tuple(r) for r in names.tolist()} & {tuple(r) for r in test.tolist()}


class Words:
    """A tokenizer of whole names."""

    def padded(self, texts):
        rows = torch.zeros(len(texts), 9, dtype=torch.long)
        rows[:, 0] = torch.arange(1, len(texts) + 1)
        rows[::10, 1:] = 1  # too long
        return rows


def test_128_of_each_kind_are_to_train_and_120_held_out():
    names, kinds, test, test_kinds = bert.names_of(Words())
    assert kinds.tolist() == [0] * 128 + [1] * 128
    assert test_kinds.tolist() == [0] * 120 + [1] * 120
    first = torch.cat((names, test))[:, 0]
    assert len(first.unique()) == 496
    assert ((first <= 398).long() == torch.cat((kinds, test_kinds))).all()
    assert ((first - 1) % 10 != 0).all()
    again = bert.names_of(Words())
    assert torch.equal(again[0], names) and torch.equal(again[2], test)


def test_the_layers_below_and_a_classifier_of_the_last_make_the_whole_network():
    torch.manual_seed(0)
    model = bert.BERT(bert.Size(3, 8, 2, V=30, longest=16))
    numbers = torch.randint(5, 30, (4, 6))
    numbers[0, 4:] = 0
    real = numbers != 0
    for last in (1, 2):
        x = bert.below(model, numbers, last)
        assert model.training and not x.requires_grad
        network = bert.Classifier(model.layers[-last:], 8, 3).eval()
        found = network(x, real)
        wanted = network.head(bert.mean_vector(model.eval()(numbers), real))
        networks.close(found, wanted)
        model.train()
    assert found.shape == (4, 3) and network.head.bias.shape == (3,)
    fresh = bert.FromNothing(bert.Size(1, 8, 2, V=30, longest=16), 2).eval()
    networks.close(
        fresh(numbers, real), fresh.top.head(bert.mean_vector(fresh.bert(numbers), real))
    )


def test_examples_are_halves_chosen_by_a_seed():
    kinds = torch.tensor([0] * 20 + [1] * 30)
    chosen = bert.balanced(kinds, 12, 3)
    assert kinds[chosen].tolist() == [0] * 6 + [1] * 6
    assert len(chosen.unique()) == 12
    assert torch.equal(chosen, bert.balanced(kinds, 12, 3))
    assert not torch.equal(chosen, bert.balanced(kinds, 12, 4))


def test_fine_tuning_goes_through_all_examples_and_learns_them(monkeypatch):
    torch.manual_seed(0)
    kinds = torch.arange(20) % 2
    x = torch.randn(20, 4, 8)
    x[:, :, 1] = 3.0 * (2 * kinds - 1)[:, None]
    real = torch.ones(20, 4, dtype=torch.bool)
    x[:, 0, 0] = torch.arange(20) / 100
    batches, rates = [], []

    class Watched(bert.Classifier):
        def forward(self, x, real):
            if self.training:
                batches.append(x[:, 0, 0].tolist())
            return super().forward(x, real)

    adam = torch.optim.AdamW

    class AdamW(adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    network = Watched(nn.ModuleList([bert.Layer(8, 2)]), 8, 2).eval()
    with torch.no_grad():
        network.head.weight.zero_()
    assert bert.right(network, x, real, kinds) == 0.5
    bert.fine_tune(network, x, real, kinds, 150)
    assert network.training
    assert network.head.weight.grad.norm() < 1  # of the last batch alone
    assert bert.right(network, x, real, kinds) == 1.0
    assert all(len(batch) == 16 for batch in batches) and len(batches) == 150
    stream = [v for batch in batches for v in batch]
    for start in range(0, 2400, 20):
        assert len(set(stream[start : start + 20])) == 20
    networks.rises_and_falls(rates, 1e-3, 29)


def test_counts_of_pieces_decide_and_special_pieces_say_nothing():
    names = torch.tensor([[101, 7, 102, 0], [101, 8, 9, 102], [101, 8, 102, 0]])
    kinds = torch.tensor([0, 1, 1])
    test = torch.tensor([[101, 7, 102, 0], [101, 9, 102, 0], [101, 7, 8, 102]])
    found = bert.count_pieces(names, kinds, test, 200)
    assert found.tolist() == [0, 1, 1]
    only = torch.tensor([[101, 102, 0, 0], [101, 7, 102, 0]])
    for labels in (kinds, 1 - kinds):
        assert bert.count_pieces(names, labels, only, 200).tolist() == [0, labels[0]]


def test_the_nearer_mean_decides():
    vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 6.0]])
    kinds = torch.tensor([0, 0, 1, 1])
    test = torch.tensor([[1.9, 1.0], [2.1, 3.0], [0.0, 9.0]])
    assert bert.class_means(vectors, kinds, test).tolist() == [0, 1, 1]
    assert bert.class_means(vectors, 1 - kinds, test).tolist() == [1, 0, 0]


def test_a_limit_on_the_number_of_pieces_is_chosen_on_the_examples():
    names = torch.tensor([[7, 0, 0, 0], [7, 7, 0, 0], [7, 7, 7, 0], [7, 7, 7, 7]])
    test = names.flip(0)
    assert bert.by_length(names, torch.tensor([0, 0, 1, 1]), test).tolist() == [1, 1, 0, 0]
    assert bert.by_length(names, torch.tensor([0, 0, 0, 1]), test).tolist() == [1, 0, 0, 0]
    assert bert.by_length(names, torch.tensor([0, 1, 1, 1]), test).tolist() == [1, 1, 1, 0]
    assert bert.by_length(names, torch.tensor([1, 1, 1, 1]), test).tolist() == [1, 1, 1, 1]


def test_the_nearest_other_name_is_asked():
    vectors = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.3, 1.0]]))
    assert bert.neighbours_agree(vectors, torch.tensor([0, 0, 1, 1])) == 1.0
    assert bert.neighbours_agree(vectors, torch.tensor([0, 1, 1, 1])) == 0.5
