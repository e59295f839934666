"""The cells of notebooks/seq2seq.py: encoder and decoder, the searches, BLEU."""

import math
import random
from collections import Counter
from itertools import product

import pytest
import sacrebleu
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, on_meta, parameters_of
from workbench import counting
from workbench.text import BEGIN, END, PAD

s2s = definitions("seq2seq")
V = 13

KINDS = {
    "GRU": lambda: nn.GRU(4, 6, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 6, batch_first=True),
    "two layers": lambda: nn.GRU(4, 6, num_layers=2, batch_first=True),
}


def network(kind="GRU"):
    torch.manual_seed(0)
    build = KINDS[kind]
    return s2s.Seq2Seq(s2s.Encoder(V, build()), s2s.Decoder(V, build()))


def mixed(n=6, **how):
    random.seed(0)
    return s2s.reversal(n, **how)


def states(state):
    return state if isinstance(state, tuple) else (state,)


# ---- data ----------------------------------------------------------------------------------------


def test_strings_have_all_lengths_and_letters_equally_often():
    random.seed(0)
    strings = s2s.random_strings(6000)
    lengths = Counter(map(len, strings))
    assert sorted(lengths) == list(range(2, 13))
    assert min(lengths.values()) > 0.8 * 6000 / 11
    letters = Counter("".join(strings))
    assert sorted(letters) == list("abcdefghij")
    assert min(letters.values()) > 0.95 * sum(letters.values()) / 10
    assert {len(s) for s in s2s.random_strings(50, shortest=7, longest=7)} == {7}


@pytest.mark.parametrize("kind", ["reversal", "copying"])
def test_a_batch_holds_strings_their_lengths_and_what_is_to_be_written(kind):
    random.seed(0)
    batch = getattr(s2s, kind)(40, shortest=1, longest=5)
    read = [s2s.VOCABULARY.decode(row) for row in batch.source]
    written = [s2s.VOCABULARY.decode(row) for row in batch.target]
    assert written == ([s[::-1] for s in read] if kind == "reversal" else read)
    assert batch.lengths.tolist() == [len(s) for s in read]
    assert batch.source.shape == (40, 5) and batch.target.shape == (40, 7)
    assert (batch.target[:, 0] == BEGIN).all()
    assert ((batch.target == END).sum(1) == 1).all()
    assert ((batch.source == PAD).sum(1) == 5 - batch.lengths).all()


def test_what_is_read_and_what_is_written_may_differ_in_length():
    batch = s2s.as_batch(["ab", "c"], ["j", "jih"])
    assert batch.source.tolist() == [[3, 4], [5, 0]]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.target.tolist() == [[1, 12, 2, 0, 0], [1, 12, 11, 10, 2]]


# ---- networks ------------------------------------------------------------------------------------


def test_the_small_network_has_two_layers_of_vectors_two_grus_and_a_linear_layer():
    for D in (32, 64):
        found = on_meta(s2s.small, D)
        gru = 3 * (D * 32 + D * D + 2 * D)
        assert parameters_of(found) == 2 * 13 * 32 + 2 * gru + 13 * (D + 1)
    assert on_meta(s2s.small, 8, d_embed=5).encoder.rnn.input_size == 5


def test_a_squeezed_network_is_the_small_one_with_two_linear_layers_between():
    assert parameters_of(on_meta(s2s.squeezed, 16, 3)) == (
        parameters_of(on_meta(s2s.small, 16)) + 3 * 17 + 16 * 4
    )
    torch.manual_seed(0)
    plain = s2s.small(16)
    torch.manual_seed(0)
    model = s2s.squeezed(16, 3)
    source, lengths, target = mixed()
    state = plain.encoder(source, lengths)
    close(model.encoder.encoder(source, lengths), state, 0)
    first = model.encoder.widen(model.encoder.narrow(state))
    close(model.encoder(source, lengths), first, 0)
    expected, _ = plain.decoder(target[:, :-1], first)
    close(model(source, lengths, target[:, :-1]), expected, 0)
    # what the decoder is handed differs between strings in three directions at most
    many, sizes, _ = mixed(40)
    states = model.encoder(many, sizes)[0]
    assert torch.linalg.matrix_rank((states - states.mean(0)).double(), rtol=1e-4) == 3


def test_the_published_network_has_the_weights_of_the_paper():
    size = {"num_layers": 4, "batch_first": True}
    encoder = on_meta(lambda: s2s.Encoder(160_000, nn.LSTM(1000, 1000, **size)))
    decoder = on_meta(lambda: s2s.Decoder(80_000, nn.LSTM(1000, 1000, **size)))
    both = s2s.Seq2Seq(encoder, decoder)
    weights = sum(p.numel() for p in both.parameters() if p.ndim > 1)
    assert weights == 384_000_000
    assert parameters_of(both) == weights + 2 * 4 * 8000 + 80_000
    word = torch.empty(1, 1, 1000, device="meta")
    assert counting.macs(encoder.rnn, word) == 32_000_000
    assert counting.macs(decoder.output, word) == 80_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_that_behind_the_last_symbol_of_each_string_alone(kind):
    model = network(kind)
    batch = mixed()
    found = states(model.encoder(batch.source, batch.lengths))
    for k, n in enumerate(batch.lengths):
        _, alone = model.encoder.rnn(model.encoder.embed(batch.source[k : k + 1, :n]))
        for a, b in zip(found, states(alone), strict=True):
            close(a[:, k], b[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_read_off_the_states_that_begin_with_that_of_the_encoder(kind):
    model = network(kind)
    source, lengths, target = mixed()
    state = model.encoder(source, lengths)
    h, _ = model.decoder.rnn(model.decoder.embed(target[:, :-1]), state)
    found = model(source, lengths, target[:, :-1])
    close(found, model.decoder.output(h))
    assert found.shape == (6, target.shape[1] - 1, V)


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_symbol_changes_no_earlier_score_and_every_symbol_read_does(kind):
    model = network(kind)
    source, lengths, target = mixed(shortest=5, longest=5)
    before = target[:, :-1].clone()
    scores = model(source, lengths, before)
    before[:, 3] = 3 + (before[:, 3] - 2) % 10
    changed = model(source, lengths, before)
    close(changed[:, :3], scores[:, :3], 0)
    assert (changed[:, 3] - scores[:, 3]).abs().max() > 1e-4
    for place in range(5):
        other = source.clone()
        other[:, place] = 3 + (other[:, place] - 2) % 10
        assert (model(other, lengths, target[:, :-1]) - scores).abs().max() > 1e-5


def test_the_order_of_the_letters_read_matters_and_the_order_of_the_batch_does_not():
    model = network()
    source, lengths, target = mixed(shortest=5, longest=5)
    scores = model(source, lengths, target[:, :-1])
    swapped = model(source[:, [1, 0, 2, 3, 4]], lengths, target[:, :-1])
    assert not torch.allclose(swapped, scores)
    source, lengths, target = mixed()
    scores = model(source, lengths, target[:, :-1])
    turned = model(source.flip(0), lengths.flip(0), target[:, :-1].flip(0))
    close(turned, scores.flip(0))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_state_no_loss_no_gradient_and_no_letter(kind):
    model = network(kind)
    batch = mixed()
    results = []
    for more in (0, 4):
        model.zero_grad()
        source = F.pad(batch.source, (0, more))
        target = F.pad(batch.target, (0, more))
        loss = s2s.loss_of(model(source, batch.lengths, target[:, :-1]), target)
        loss.backward()
        parts = [*states(model.encoder(source, batch.lengths)), loss]
        parts += [p.grad.clone() for p in model.parameters()]
        parts.append(s2s.greedy(model, source, batch.lengths, 9).float())
        results.append(parts)
    for found, expected in zip(*results, strict=True):
        close(found, expected)


def test_the_loss_is_the_mean_over_the_symbols_behind_begin():
    torch.manual_seed(0)
    target = s2s.as_batch(["a", "b"], ["ab", "jihg"]).target
    scores = torch.randn(2, target.shape[1] - 1, V)
    p = scores.softmax(-1)
    each = []
    for row, string in enumerate(target.tolist()):
        for place, symbol in enumerate(string[1:]):
            if symbol != PAD:
                each.append(-p[row, place, symbol].log())
    assert len(each) == 3 + 5
    close(s2s.loss_of(scores, target), torch.stack(each).mean())


def test_a_network_runs_forward_and_backward_on_the_meta_device():
    model = on_meta(s2s.small, 8)
    with torch.device("meta"):
        ids = torch.zeros(3, 5, dtype=torch.long)
    scores = model(ids, torch.tensor([5, 2, 3]), ids)
    assert scores.shape == (3, 5, V) and scores.device.type == "meta"
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- training ------------------------------------------------------------------------------------


def test_a_fixed_batch_is_learnt_and_then_written():
    torch.manual_seed(0)
    batch = mixed(8, longest=4)
    model = s2s.small(32)
    first = s2s.loss_of(s2s.teacher_forced(model, batch, 1), batch.target)
    assert s2s.train(model, lambda B: batch, steps=80) is model
    last = s2s.loss_of(s2s.teacher_forced(model, batch, 1), batch.target)
    assert last < first / 10
    written = s2s.greedy(model, batch.source, batch.lengths, batch.target.shape[1] - 1)
    assert s2s.exact(written, batch.target) == 1
    found = s2s.by_length(model, {4: mixed(8, shortest=4, longest=4)})
    assert found.shape == (1,)


def test_training_draws_64_clips_at_one_and_lets_the_rate_rise_for_a_tenth(monkeypatch):
    made, clipped, sizes, shares, rates = [], [], [], [], []
    adam, clip = torch.optim.Adam, nn.utils.clip_grad_norm_

    def build(parameters, lr):
        made.append(adam(parameters, lr=lr))
        made[-1].register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return made[-1]

    def noted(parameters, most):
        parameters = list(parameters)
        assert all(p.grad is not None for p in parameters)
        clipped.append((most, clip(parameters, most).item()))

    def draw(B):
        sizes.append(B)
        return s2s.as_batch(["ab"], ["ba"])

    def scores_of(model, batch, share):
        shares.append(share)
        return s2s.teacher_forced(model, batch, share)

    monkeypatch.setattr(torch.optim, "Adam", build)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", noted)
    s2s.train(s2s.small(8), draw, steps=20, scores_of=scores_of)
    assert sizes == [64] * 20
    assert shares == pytest.approx([1 - k / 20 for k in range(20)])
    assert [most for most, _ in clipped] == [1.0] * 20
    assert len({norm for _, norm in clipped}) == 20
    networks.rises_and_falls(rates, peak=0.008, at=1)


def test_each_training_step_forgets_the_gradient_of_the_last(monkeypatch):
    norms = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, most: norms.append(clip(p, most).item())
    )
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: None)
    batch = mixed()
    s2s.train(s2s.small(8), lambda B: batch, steps=4)
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-5)


# ---- what the decoder reads ----------------------------------------------------------------------


def test_with_the_true_symbols_scheduled_sampling_is_teacher_forcing():
    for kind in KINDS:
        model = network(kind)
        batch = mixed()
        close(s2s.scheduled(model, batch, 1.0), s2s.teacher_forced(model, batch, 1.0))
        close(
            s2s.teacher_forced(model, batch, 0.0),
            model(batch.source, batch.lengths, batch.target[:, :-1]),
        )


class Sure(nn.Module):
    """A decoder that is sure of what follows each symbol, and notes what it reads."""

    def __init__(self, following):
        super().__init__()
        self.following = following
        self.read = []

    def forward(self, before, state):
        self.read.append(before)
        return 100.0 * F.one_hot(self.following[before], V), state


class Silent(nn.Module):
    def forward(self, source, lengths):
        return torch.zeros(1, len(source), 1)


def test_without_them_it_reads_what_it_has_drawn():
    following = torch.arange(V).roll(-1)  # after 1 comes 2, and so on
    model = s2s.Seq2Seq(Silent(), Sure(following))
    batch = s2s.as_batch(["aaaa"] * 300, ["jjjj"] * 300)
    scores = s2s.scheduled(model, batch, 0.0)
    read = torch.cat(model.decoder.read, 1)
    assert (read == torch.tensor([1, 2, 3, 4, 5])).all()
    assert (scores.argmax(-1) == torch.tensor([2, 3, 4, 5, 6])).all()
    model.decoder.read.clear()
    torch.manual_seed(0)
    s2s.scheduled(model, batch, 0.7)
    read = torch.cat(model.decoder.read, 1)
    assert read.shape == (300, 5)
    assert (read[:, 1:] == 12).double().mean() == pytest.approx(0.7, abs=0.05)


def test_a_drawn_symbol_follows_the_scores():
    class Even(nn.Module):
        def forward(self, before, state):
            read.append(before)
            scores = torch.full((*before.shape, V), -50.0)
            scores[..., 5], scores[..., 7] = math.log(0.8), math.log(0.2)
            return scores, state

    read = []
    torch.manual_seed(0)
    batch = s2s.as_batch(["a"] * 1000, ["b"] * 1000)
    s2s.scheduled(s2s.Seq2Seq(Silent(), Even()), batch, 0.0)
    assert set(read[1].unique().tolist()) == {5, 7}
    assert (read[1] == 5).double().mean() == pytest.approx(0.8, abs=0.04)


# ---- searches ------------------------------------------------------------------------------------


def test_greedy_search_writes_the_largest_score_until_end_and_then_padding():
    following = torch.zeros(V, dtype=torch.long)
    following[[BEGIN, 7, 4, END, PAD]] = torch.tensor([7, 4, END, 9, 9])
    model = s2s.Seq2Seq(Silent(), Sure(following))
    source = torch.zeros(2, 3, dtype=torch.long)
    found = s2s.greedy(model, source, torch.ones(2), 6)
    assert found.tolist() == [[7, 4, END, PAD, PAD, PAD]] * 2
    beams, total = s2s.beam_search(model, source, torch.ones(2), 6, 3)
    assert beams[:, 0].tolist() == found.tolist()
    close(total[:, 0], torch.zeros(2) + 1e-9, 1e4)


def test_greedy_search_goes_on_with_its_state():
    model = network()
    source, lengths, _ = mixed()
    found = s2s.greedy(model, source, lengths, 7)
    before = torch.cat((torch.full((6, 1), BEGIN), found[:, :-1]), 1)
    scores = model(source, lengths, before)
    alive = torch.cat((torch.ones(6, 1), ((found != END) & (found != PAD))[:, :-1]), 1)
    expected = torch.where(alive.cumprod(1).bool(), scores.argmax(-1), PAD)
    assert found.tolist() == expected.tolist()


def lively(seed=0):
    """A network whose scores differ much, so that ties and one single answer do not occur."""
    model = network()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.7)
        model.decoder.output.bias[END] += 1
    return model


def total_of(model, source, lengths, string):
    """Log p of one string of numbers up to END, step by step."""
    state = model.encoder(source, lengths)
    last, total = BEGIN, 0.0
    for symbol in string:
        if last in (END, PAD):
            assert symbol == PAD
            continue
        scores, state = model.decoder(torch.tensor([[last]]), state)
        total += scores[0, 0].log_softmax(-1)[symbol].item()
        last = symbol
    return total


def test_one_beam_is_greedy_search():
    for seed in range(3):
        model = lively(seed)
        source, lengths, _ = mixed(20)
        beams, _ = s2s.beam_search(model, source, lengths, 9, 1)
        assert beams[:, 0].tolist() == s2s.greedy(model, source, lengths, 9).tolist()


def test_a_beam_that_is_wide_enough_finds_all_strings_in_order():
    model = lively()
    source, lengths, _ = mixed(2, shortest=3, longest=4)
    beams, totals = s2s.beam_search(model, source, lengths, 2, V * V)
    for row in range(2):
        with torch.no_grad():
            one = (source[row : row + 1, : lengths[row]], lengths[row : row + 1])
            everything = {}
            for string in product(range(V), repeat=2):
                if string[0] not in (END, PAD) or string[1] == PAD:
                    everything[string] = total_of(model, *one, string)
        live = totals[row].isfinite()
        found = [tuple(string) for string in beams[row, live].tolist()]
        assert found == sorted(everything, key=everything.get, reverse=True)
        expected = torch.tensor(sorted(everything.values(), reverse=True))
        close(totals[row, live], expected)


def test_beams_are_in_order_differ_and_have_the_log_p_of_their_strings():
    model = lively()
    source, lengths, _ = mixed(5)
    beams, totals = s2s.beam_search(model, source, lengths, 6, 4)
    assert beams.shape == (5, 4, 6) and totals.shape == (5, 4)
    assert (totals[:, :-1] >= totals[:, 1:]).all()
    for row in range(5):
        assert len({tuple(b) for b in beams[row].tolist()}) == 4
        one = (source[row : row + 1, : lengths[row]], lengths[row : row + 1])
        for string, total in zip(beams[row].tolist(), totals[row], strict=True):
            with torch.no_grad():
                assert total_of(model, *one, string) == pytest.approx(total.item(), abs=1e-4)


def test_the_beam_of_two_finds_what_greedy_search_misses_in_the_tree():
    tree = s2s.Seq2Seq(s2s.NoSource(), s2s.Tree())
    nothing = (torch.zeros(1, 1, dtype=torch.long), torch.ones(1))
    chances = tree.decoder.scores.exp()
    for (last, following), chance in s2s.CHANCES.items():
        assert chances[last, following].item() == pytest.approx(chance)
    assert chances.sum().item() == pytest.approx(sum(s2s.CHANCES.values()))
    assert tree.encoder(*nothing).shape == (1, 1, 1)
    assert s2s.greedy(tree, *nothing, 3)[0, 0] == 3
    beams, total = s2s.beam_search(tree, *nothing, 3, 2)
    assert beams[0, 0].tolist() == [4, 5, END]
    close(total.exp(), torch.tensor([[0.36, 0.3]]))


def test_the_log_p_of_a_wanted_string_is_the_sum_of_its_symbols():
    model = lively()
    batch = mixed(5)
    found = s2s.log_probability(model, batch)
    for row in range(5):
        n = int(batch.lengths[row])
        one = (batch.source[row : row + 1, :n], batch.lengths[row : row + 1])
        with torch.no_grad():
            expected = total_of(model, *one, batch.target[row, 1 : n + 2].tolist())
        assert found[row].item() == pytest.approx(expected, abs=1e-4)


# ---- measures ------------------------------------------------------------------------------------


def test_a_string_is_exact_when_all_its_symbols_are():
    target = torch.tensor([[1, 3, 4, 2, 0], [1, 3, 2, 0, 0], [1, 5, 6, 7, 2], [1, 5, 6, 7, 2]])
    written = target[:, 1:].clone()
    assert s2s.exact(written, target) == 1
    written[0, 0] = 9
    written[1, 2] = 4
    assert s2s.exact(written, target) == 0.5


def test_exact_match_is_measured_for_each_length_with_room_for_end():
    model = s2s.Seq2Seq(Silent(), Sure(torch.tensor([0, 3, 0, 4, 5, 2] + [0] * 7)))
    right = s2s.as_batch(["cba", "aaa"], ["abc", "aaa"])
    found = s2s.by_length(model, {3: right, 2: s2s.as_batch(["ab"], ["ab"])})
    close(found, torch.tensor([0.5, 0.0]), 0)


def test_letters_are_right_by_place_after_true_letters_or_its_own():
    model = s2s.Seq2Seq(Silent(), Sure(torch.tensor([0, 3, 0, 4, 5, 2, 7] + [0] * 6)))
    batch = s2s.as_batch(["a", "b"], ["abc", "dbc"])
    close(s2s.letters_right(model, batch, False), torch.tensor([0.5, 1, 1, 1]).double(), 0)
    batch = s2s.as_batch(["a", "b"], ["abc", "adb"])
    # after a, true, comes b; after d, true, comes e; after b comes c
    close(s2s.letters_right(model, batch, True), torch.tensor([1, 0.5, 0.5, 0.5]).double(), 0)
    close(s2s.letters_right(model, batch, False), torch.tensor([1, 0.5, 0.5, 1]).double(), 0)


class Spelled(nn.Module):
    """An encoder whose vector holds the letters at some places and nothing of the others."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def forward(self, source, lengths):
        kept = F.one_hot(source[:, self.places], V).flatten(1).float()
        return torch.stack((torch.zeros_like(kept), kept))  # two layers, the last one counts


def test_a_probe_finds_the_letters_that_a_vector_holds_and_no_others():
    random.seed(0)
    parts = [s2s.reversal(n, shortest=4, longest=4) for n in (600, 300)]
    found = s2s.probe(s2s.Seq2Seq(Spelled([1, 3]), None), *parts)
    assert found[[1, 3]].tolist() == [1, 1]
    assert found[[0, 2]].max() < 0.25


def test_a_probe_has_a_bias():
    class Flat(nn.Module):
        def forward(self, source, lengths):
            return torch.zeros(1, len(source), 2)

    only_a = s2s.as_batch(["aab"] * 5 + ["aba"] * 2, ["a"] * 7)
    found = s2s.probe(s2s.Seq2Seq(Flat(), None), only_a, only_a)
    close(found, torch.tensor([1, 5 / 7, 5 / 7]).double())


# ---- BLEU ----------------------------------------------------------------------------------------


def reference_score(found, wanted):
    lines = [" ".join(words) for words in found]
    streams = [[" ".join(words) for words in stream] for stream in zip(*wanted, strict=True)]
    how = {"tokenize": "none", "smooth_method": "none", "force": True}
    return sacrebleu.corpus_bleu(lines, streams, **how)


@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_bleu_is_that_of_sacrebleu(references, seed):
    draw = random.Random(seed)
    wanted, found = [], []
    for _ in range(12):
        sentence = draw.choices("abcde", k=draw.randint(3, 14))
        others = []
        for _ in range(references):
            other = sentence + draw.choices("abcde", k=draw.randint(0, 3))
            others.append(other[draw.randint(0, 2) :])
        wanted.append(others)
        found.append(sentence[: draw.randint(2, len(sentence))] + draw.choices("ab", k=seed))
    score = s2s.bleu(found, wanted)
    expected = reference_score(found, wanted)
    assert score.score == pytest.approx(expected.score, rel=1e-9)
    assert 100 * score.brevity == pytest.approx(100 * expected.bp)
    assert [100 * p for p in score.precisions] == pytest.approx(expected.precisions)
    assert s2s.by_sacrebleu(found, wanted) == pytest.approx(expected.score, rel=1e-12)


def test_bleu_by_hand():
    mat = ["the", "cat", "sat", "on", "the", "mat"]
    score = s2s.bleu([["the", "cat", "sat", "on", "a", "mat"]], [[mat]])
    assert score.precisions == pytest.approx([5 / 6, 3 / 5, 2 / 4, 1 / 3])
    assert score.brevity == 1
    assert score.score == pytest.approx(100 * (1 / 12) ** 0.25)
    short = s2s.bleu([["the", "cat", "sat", "on"]], [[mat]])
    assert short.precisions == [1, 1, 1, 1]
    assert short.score == pytest.approx(100 * math.exp(1 - 6 / 4))
    long = s2s.bleu([[*mat, "and"]], [[mat]])
    assert long.brevity == 1  # what is too long pays by its precision alone
    clipped = s2s.bleu([["the"] * 6], [[mat]])
    assert clipped.precisions[0] == pytest.approx(2 / 6)
    assert clipped.score == 0
    assert s2s.bleu([[]], [[mat]]).score == 0
    assert s2s.bleu([mat], [[mat]]).score == pytest.approx(100)


def test_runs_count_as_often_as_in_the_reference_that_has_most_of_them():
    words = ["a", "b", "a", "b", "a"]
    assert s2s.counted(words, 2) == {("a", "b"): 2, ("b", "a"): 2}
    assert s2s.counted(words, 6) == {}
    references = [["a", "a"], ["b", "a", "b", "c"]]
    assert s2s.matched(words, references, 1) == 2 + 2
    assert s2s.matched(words, references, 2) == 1 + 1


def test_the_closest_reference_counts_and_of_two_the_shorter():
    references = [["a"] * n for n in (9, 4, 8)]
    assert s2s.closest_length(["b"] * 6, references) == 4
    assert s2s.closest_length(["b"] * 7, references) == 8
    assert s2s.closest_length(["b"] * 2, references) == 4


def test_bleu_is_taken_over_all_sentences_at_once_as_in_a_corpus():
    found = [list("abcdef"), list("gh")]
    wanted = [[list("abcdef")], [list("gx")]]
    score = s2s.bleu(found, wanted)
    assert score.precisions == pytest.approx([7 / 8, 5 / 6, 1, 1])
