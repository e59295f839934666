"""The scores, decoders and layers of notebooks/attention.py, and what its masks let through."""

import math
import random
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting, text
from workbench.text import BEGIN, END, PAD

attention = definitions("attention")


def everywhere(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


# ---- weighted means and scores -------------------------------------------------------------------


def test_a_context_is_the_mean_by_the_softmax_of_the_scores_that_are_allowed():
    values = torch.tensor([[2.0, 0.0], [0.0, 6.0], [50.0, 50.0]])
    scores = torch.tensor([[0.0, math.log(2), 9.0]])
    before = scores.clone()
    context, weights = attention.attend(scores, values, torch.tensor([[True, True, False]]))
    networks.close(weights, torch.tensor([[1 / 3, 2 / 3, 0]]))
    networks.close(context, torch.tensor([[2 / 3, 4.0]]))
    networks.close(scores, before, 0)


def by_pairs(queries, keys, score):
    """Scores from a function of one query and one key."""
    return torch.stack(
        [
            torch.stack([torch.stack([score(q, k) for k in b]) for q in a])
            for a, b in zip(queries, keys)
        ]
    )


def test_each_score_is_that_of_its_formula_for_each_pair():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    found = attention.Additive(4, 6, d_hidden=7)
    assert parameters_of(found) == 7 * 4 + 7 * 6 + 7
    v = found.v.weight[0]
    wanted = by_pairs(
        queries, keys, lambda q, k: v @ torch.tanh(found.W.weight @ q + found.U.weight @ k)
    )
    networks.close(found(queries, keys), wanted)
    found = attention.Concat(4, 6, d_hidden=7)
    assert parameters_of(found) == 7 * 10 + 7
    v = found.v.weight[0]
    wanted = by_pairs(
        queries, keys, lambda q, k: v @ torch.tanh(found.W.weight @ torch.cat((q, k)))
    )
    networks.close(found(queries, keys), wanted)
    found = attention.General(4, 6)
    assert parameters_of(found) == 24
    wanted = by_pairs(queries, keys, lambda q, k: q @ (found.W.weight @ k))
    networks.close(found(queries, keys), wanted)
    keys = torch.randn(2, 5, 4)
    networks.close(attention.Dot()(queries, keys), by_pairs(queries, keys, torch.dot))


def test_a_sharpened_score_is_multiplied_and_leaves_one_weight():
    torch.manual_seed(0)
    q, k = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    sharp = attention.Sharpened(attention.Dot())
    networks.close(sharp(q, k), 1000 * q @ k.mT)
    networks.close(sharp(q, k).softmax(-1).amax(-1), torch.ones(1, 3))
    assert attention.Sharpened(attention.Dot(), 2.0).factor == 2


def test_real_places_and_the_last_one_by_length():
    lengths = torch.tensor([1, 3])
    real = attention.real_places(lengths, 4)
    assert real.tolist() == [[[True, False, False, False]], [[True, True, True, False]]]
    last = attention.last_place(lengths, 4)
    assert last.tolist() == [[[True, False, False, False]], [[False, False, True, False]]]


# ---- encoder and decoders ------------------------------------------------------------------------


def words_of(*strings: str, V: int = 9):
    vocabulary = text.Vocabulary(["abcdef"])
    lengths = torch.tensor([len(string) for string in strings])
    assert len(vocabulary) == V
    return vocabulary.padded(strings), lengths


@pytest.mark.parametrize("both", [False, True])
def test_an_encoder_gives_all_states_and_the_last_and_does_not_see_padding(both):
    torch.manual_seed(0)
    encoder = attention.Encoder(9, 5, both=both, d_embed=4)
    source, lengths = words_of("abcde", "fed")
    states, last = encoder(source, lengths)
    assert states.shape == (2, 5, 10 if both else 5) and last.shape == (2, 5)
    for row, string in enumerate(("abcde", "fed")):
        alone, _ = words_of(string)
        wanted, end = encoder.rnn(encoder.embed(alone))
        networks.close(states[row, : len(string)], wanted[0])
        networks.close(last[row], end[-1, 0])
    if both:  # what has read the first symbol last
        networks.close(last, states[:, 0, 5:])
    assert not states[1, 3:].any()
    assert attention.Encoder(9, 5).embed.embedding_dim == 32
    assert not attention.Encoder(9, 5).rnn.bidirectional


def memory_of(B=2, S=6, D=5, lengths=(4, 6)):
    states = torch.randn(B, S, D)
    return attention.Memory(states, attention.real_places(torch.tensor(lengths), S))


def test_luongs_decoder_asks_with_the_new_state_and_mixes_context_and_state():
    torch.manual_seed(0)
    decoder = attention.LuongDecoder(9, 5, attention.Dot(), d_embed=4)
    memory, state = memory_of(), torch.randn(2, 5)
    before = torch.randint(9, (2, 3))
    scores, last, weights = decoder(before, state, memory)
    h, _ = decoder.rnn(decoder.embed(before), state[None])
    wanted_scores = (h @ memory.states.mT).masked_fill(~memory.allowed, -math.inf)
    wanted = wanted_scores.softmax(-1)
    networks.close(weights, wanted)
    mixed = torch.tanh(decoder.mix(torch.cat((wanted @ memory.states, h), -1)))
    networks.close(scores, decoder.output(mixed))
    networks.close(last, h[:, -1])
    assert attention.LuongDecoder(9, 5, attention.Dot()).embed.embedding_dim == 32


def test_bahdanaus_decoder_asks_with_the_old_state_and_feeds_the_context_to_the_cell():
    torch.manual_seed(0)
    decoder = attention.BahdanauDecoder(9, 5, d_memory=3, d_embed=4)
    assert decoder.score.v.in_features == 5
    memory, state = memory_of(D=3), torch.randn(2, 5)
    before = torch.randint(9, (2, 3))
    scores, last, weights = decoder(before, state, memory)
    s = state
    for t in range(3):
        e = decoder.score(s[:, None], memory.states).masked_fill(~memory.allowed, -math.inf)
        a = e.softmax(-1)
        networks.close(weights[:, t], a[:, 0])
        context = (a @ memory.states)[:, 0]
        y = decoder.embed(before[:, t])
        _, s = decoder.rnn(torch.cat((y, context), 1)[:, None], s[None])
        s = s[0]
        networks.close(scores[:, t], decoder.output(torch.cat((s, context, y), 1)))
    networks.close(last, s)
    assert attention.BahdanauDecoder(9, 5, d_memory=3).embed.embedding_dim == 32


DECODERS = {
    "luong": lambda: attention.LuongDecoder(9, 5, attention.Dot(), d_embed=4),
    "bahdanau": lambda: attention.BahdanauDecoder(9, 5, d_memory=5, d_embed=4),
}


def small(kind: str, places=None, both=False):
    encoder = attention.Encoder(9, 5, both=both, d_embed=4)
    return attention.Translator(encoder, DECODERS[kind](), *([places] if places else []))


@pytest.mark.parametrize("kind", DECODERS)
def test_later_symbols_change_nothing_before_them_and_a_cut_target_goes_on(kind):
    torch.manual_seed(0)
    model = small(kind)
    source, lengths = words_of("abcde", "fed")
    before = torch.randint(3, 9, (2, 6))
    scores, weights = model(source, lengths, before)
    other = before.clone()
    other[:, 4:] = 3 + (other[:, 4:] - 2) % 6
    changed, looked = model(source, lengths, other)
    networks.close(changed[:, :4], scores[:, :4])
    networks.close(looked[:, :4], weights[:, :4])
    assert not torch.allclose(changed[:, 4:], scores[:, 4:])
    state, memory = model.read(source, lengths)
    first, state, _ = model.decoder(before[:, :2], state, memory)
    second, _, _ = model.decoder(before[:, 2:], state, memory)
    networks.close(torch.cat((first, second), 1), scores)


@pytest.mark.parametrize("kind", DECODERS)
def test_padding_and_neighbours_in_the_batch_change_nothing(kind):
    torch.manual_seed(0)
    model = small(kind)
    source, lengths = words_of("abcde", "fed")
    before = torch.randint(3, 9, (2, 4))
    scores, weights = model(source, lengths, before)
    alone, length = words_of("fed")
    single, looked = model(alone, length, before[1:])
    networks.close(scores[1:], single)
    networks.close(weights[1:, :, :3], looked)
    assert not weights[1, :, 3:].any()
    networks.close(weights.sum(-1), torch.ones(2, 4))


def test_the_fixed_vector_is_the_last_state_whatever_the_score():
    torch.manual_seed(0)
    model = small("luong", attention.last_place)
    source, lengths = words_of("abcde", "fed")
    before = torch.randint(3, 9, (2, 4))
    scores, weights = model(source, lengths, before)
    assert (weights[0, :, 4] == 1).all() and (weights[1, :, 2] == 1).all()
    model.decoder.score = attention.Sharpened(attention.Dot(), -3.0)
    networks.close(model(source, lengths, before)[0], scores)
    state, memory = model.read(source, lengths)
    networks.close(state, memory.states[torch.arange(2), lengths - 1])


class Spelling(nn.Module):
    """A decoder that writes a fixed word, END, and then anything; notes what it is given."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted = torch.tensor(wanted)
        self.given = []

    def forward(self, before, state, memory):
        self.given.append(before[:, 0].tolist())
        return F.one_hot(self.wanted[:, len(self.given) - 1], 9)[:, None].float(), state, None


def test_greedy_writes_the_most_probable_symbol_and_pads_behind_the_end():
    model = small("luong")
    model.decoder = Spelling([[4, END, 5, 6], [7, 8, 3, END]])
    source, lengths = words_of("abcde", "fed")
    found = attention.greedy(model, source, lengths, 4)
    assert found.tolist() == [[4, END, PAD, PAD], [7, 8, 3, END]]
    assert model.decoder.given == [[BEGIN] * 2, [4, 7], [END, 8], [PAD, 3]]
    model.decoder = Spelling([[4, END, 5, 6], [7, 8, 3, END]])
    target = torch.tensor([[BEGIN, 4, END, PAD, PAD], [BEGIN, 7, 8, 4, END]])
    batch = attention.Batch(source, lengths, target)
    assert attention.exact(model, batch) == 0.5


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_runs_forward_and_backward_on_the_meta_device(kind):
    decoder = on_meta(DECODERS[kind])
    with torch.device("meta"):
        memory = attention.Memory(torch.empty(2, 6, 5), everywhere(2, 1, 6))
        scores, last, weights = decoder(
            torch.zeros(2, 3, dtype=torch.long), torch.empty(2, 5), memory
        )
        scores.sum().backward()
    assert scores.shape == (2, 3, 9) and last.shape == (2, 5) and weights.shape == (2, 3, 6)
    assert all(p.grad is not None for p in decoder.parameters())


# ---- tasks and training --------------------------------------------------------------------------


def test_a_string_is_to_be_written_from_the_end_at_all_lengths():
    random.seed(0)
    batch = attention.reversal(600)
    vocabulary = attention.ALPHABET
    for source, length, target in zip(*batch, strict=True):
        read = vocabulary.decode(source[:length])
        assert len(read) == length and not source[length:].any()
        assert target[0] == BEGIN and vocabulary.decode(target[1:]) == read[::-1]
    assert batch.lengths.unique().tolist() == list(range(2, 13))
    assert batch.source.unique().tolist() == [0, *range(3, 13)]
    assert attention.reversal(3, shortest=5, longest=5).lengths.tolist() == [5] * 3


def test_the_networks_of_the_page_have_their_widths():
    model = on_meta(attention.reverser, attention.Dot())
    V, D, e = 13, 64, 32
    gru = 3 * (e * D + D * D + 2 * D)
    assert parameters_of(model) == 2 * V * e + 2 * gru + (2 * D * D + D) + (D * V + V)
    assert model.places is attention.real_places
    fixed = on_meta(attention.reverser, attention.Dot(), attention.last_place)
    assert fixed.places is attention.last_place


def test_the_date_translator_reads_from_both_ends():
    model = on_meta(attention.date_translator)
    assert model.encoder.rnn.bidirectional and model.encoder.rnn.hidden_size == 48
    assert model.encoder.embed.num_embeddings == len(attention.ENGLISH)
    assert model.decoder.embed.num_embeddings == len(attention.NUMERIC) == 14
    assert model.decoder.rnn.input_size == 32 + 96 and model.decoder.output.out_features == 14
    assert model.decoder.score.U.in_features == 96


def test_training_takes_adam_clips_and_counts_no_padding(monkeypatch):
    clipped, rates, asked = [], [], []
    adam, clip = torch.optim.Adam, nn.utils.clip_grad_norm_

    class Adam(adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most) or clip(p, most)
    )
    torch.manual_seed(0)
    model = small("luong")
    source, lengths = words_of("abc", "d")
    target = text.Vocabulary(["abcdef"]).padded(["cba", "d"], ends=True)
    seen = []

    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, source, lengths, before):
            scores, weights = self.inner(source, lengths, before)
            scores.retain_grad()
            seen.append((before, scores))
            return scores, weights

    def draw(B):
        asked.append(B)
        return attention.Batch(source, lengths, target)

    scored = Scored()
    assert attention.train(scored, draw, steps=20) is scored
    assert asked == [32] * 20 and clipped == [1.0] * 20
    networks.rises_and_falls(rates, peak=0.008, at=1)
    for before, scores in seen:
        networks.close(before, target[:, :-1], 0)
        real = target[:, 1:] != PAD
        wanted = scores.softmax(-1) - F.one_hot(target[:, 1:], 9)
        networks.close(scores.grad, wanted * real[..., None] / real.sum())


@pytest.mark.parametrize("kind", DECODERS)
def test_one_batch_is_learnt(kind):
    torch.manual_seed(0)
    random.seed(0)
    encoder = attention.Encoder(13, 24, d_embed=8)
    decoder = {
        "luong": lambda: attention.LuongDecoder(13, 24, attention.General(24, 24), d_embed=8),
        "bahdanau": lambda: attention.BahdanauDecoder(13, 24, d_memory=24, d_embed=8),
    }[kind]()
    model = attention.Translator(encoder, decoder)
    batch = attention.reversal(8, longest=5)
    assert attention.exact(model, batch) < 0.3
    attention.train(model, lambda B: batch, steps=150)
    assert attention.exact(model, batch) == 1


# ---- what is looked at ---------------------------------------------------------------------------


class Looking(nn.Module):
    """A translator with these weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, source, lengths, before):
        return None, self.weights[:, : before.shape[1]]


def test_weights_are_sorted_into_those_at_the_letter_later_and_earlier():
    # writes the letters at places 2, 1, 0, then END
    weights = torch.tensor([[[0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [0.9, 0.05, 0.05]]])
    batch = attention.Batch(None, None, torch.zeros(1, 5, dtype=torch.long))
    letter, later, earlier = attention.looked_at(Looking(weights), batch)
    assert letter == pytest.approx((0.7 + 0.5 + 0.6) / 3)
    assert later == pytest.approx((0.0 + 0.3 + 0.4) / 3)
    assert earlier == pytest.approx((0.3 + 0.2 + 0.0) / 3)


def test_fields_of_a_date_are_found_in_all_formats_with_a_month_in_words():
    for read in (
        "Sunday, May 4, 1980",
        "May 4, 1980",
        "4 May 1980",
        "1980 May 4",
        "May 4 in the year 1980",
    ):
        found = {k: re.search(p, read).group() for k, p in attention.FIELDS.items()}
        assert found == {"year": "1980", "month": "May", "day": "4"}
    assert {k: "1980-05-04"[s] for k, s in attention.DIGITS.items()} == {
        "year": "1980",
        "month": "05",
        "day": "04",
    }


def test_the_weight_on_a_field_is_that_of_its_digits_on_its_characters():
    read = "4 May 1980"
    weights = torch.zeros(11, 10)
    weights[:4, 6:10] = 0.2  # the year's four digits
    weights[5, 2], weights[6, 3:5] = 1.0, 0.25
    weights[8, 0], weights[9, 1] = 0.5, 1.0
    assert attention.on_field(weights, read, "year") == pytest.approx((0.8, 0.4))
    assert attention.on_field(weights, read, "month") == pytest.approx((0.75, 0.3))
    assert attention.on_field(weights, read, "day") == pytest.approx((0.25, 0.1))


def test_the_alignment_of_a_date_is_that_of_its_true_characters(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(attention._namespace, "ENGLISH", text.Vocabulary(["abcdef"]))
    monkeypatch.setitem(attention._namespace, "NUMERIC", text.Vocabulary(["abcdef"]))
    model = small("bahdanau", both=False)
    found = attention.alignment(model, "abc", "fe")
    source, lengths = words_of("abc")
    before = text.Vocabulary(["abcdef"]).padded(["fe"], ends=True)[:, :-1]
    networks.close(found, model(source, lengths, before)[1][0])
    assert found.shape == (3, 3)


def test_dates_to_train_with_are_drawn_from_their_part():
    part = [("May 4", "05-04"), ("1/2", "02-01"), ("4 June", "06-04")]
    batch = attention.draw_dates(part, 2)
    found = []
    for source, length, target in zip(*batch, strict=True):
        read = attention.ENGLISH.decode(source)
        assert len(read) == length
        found.append((read, attention.NUMERIC.decode(target[1:])))
    assert len(set(found)) == 2 and set(found) < set(part)


def test_the_vocabularies_of_dates_have_all_characters_of_the_pairs():
    for read, written in text.dates().train[:500]:
        assert attention.ENGLISH.decode(attention.ENGLISH.encode(read)) == read
        assert attention.NUMERIC.decode(attention.NUMERIC.encode(written)) == written


# ---- scaling -------------------------------------------------------------------------------------


def test_scores_spread_as_the_root_of_the_width_and_the_gradient_is_that_of_the_softmax():
    deviation, largest, left = attention.softness(64, 1.0)
    assert deviation == pytest.approx(8, rel=0.05)
    assert attention.softness(64, 0.125)[0] == pytest.approx(1, rel=0.05)
    assert attention.softness(64, 0.0)[1:] == pytest.approx((1 / 16, 15 / 16))
    torch.manual_seed(0)
    q, k = torch.randn(1000, 1, 64), torch.randn(1000, 16, 64)
    scores = (q @ k.mT)[:, 0]
    derivative = torch.func.vmap(torch.func.jacrev(lambda s: s.softmax(0)))(scores)
    trace = derivative.diagonal(dim1=1, dim2=2).sum(1).mean().item()
    assert left == pytest.approx(trace, rel=1e-4)
    assert largest == pytest.approx(scores.softmax(1).amax(1).mean().item(), rel=1e-4)


# ---- several heads -------------------------------------------------------------------------------

SIZES = [(8, 1), (8, 2), (12, 4)]
KINDS = ["MultiHeadAttention", "EinopsAttention"]


@pytest.mark.parametrize(("D", "h"), [(512, 8), (512, 1), (1024, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_has_four_matrices_and_two_products_a_pair(kind, D, h):
    layer = on_meta(getattr(attention, kind), D, h)
    assert parameters_of(layer) == 4 * (D * D + D)
    assert parameters_of(layer) == parameters_of(on_meta(nn.MultiheadAttention, D, h))
    x = torch.empty(2, 10, D, device="meta")
    of_itself = attention.OfItself(layer, torch.empty(1, 1, 10, 10, device="meta").bool())
    assert counting.macs(of_itself, x) == 2 * (4 * 10 * D * D + 2 * 10 * 10 * D)
    assert networks.runs_on_meta(of_itself, 2, 10, D).shape == (2, 10, D)


def masks_of(B, T, S):
    lengths = torch.tensor([S - 2, S])
    padding = attention.real_places(lengths, S).unsqueeze(1)
    found = {"none": everywhere(1, 1, T, S), "padding": padding}
    if T == S:
        found |= {"causal": attention.no_later(T), "both": padding & attention.no_later(T)}
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("D", "h"), SIZES)
@pytest.mark.parametrize("T", [5, 3])
def test_outputs_weights_and_gradients_are_those_of_torch(kind, D, h, T):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, h, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = getattr(attention, kind)(D, h)
    ours.load_state_dict(attention.from_torch(theirs).state_dict())
    for allowed in masks_of(2, T, 5).values():
        found = []
        for network in (ours, theirs):
            torch.manual_seed(1)
            x = torch.randn(2, T, D, requires_grad=True)
            memory = torch.randn(2, 5, D, requires_grad=True)
            network.zero_grad()
            if network is ours:
                y, weights = ours(x, memory, allowed)
            else:
                forbidden = ~allowed.expand(2, h, T, 5).flatten(0, 1)
                y, weights = theirs(
                    x, memory, memory, attn_mask=forbidden, average_attn_weights=False
                )
            y.square().sum().backward()
            found.append([y, weights, x.grad, memory.grad])
        for a, b in zip(*found, strict=True):
            networks.close(a, b)
    stacked = torch.cat([getattr(ours, name).weight.grad for name in ("query", "key", "value")])
    networks.close(stacked, theirs.in_proj_weight.grad)
    networks.close(ours.output.weight.grad, theirs.out_proj.weight.grad)


def test_the_middle_is_torchs_function_and_its_masks_mean_the_same():
    torch.manual_seed(0)
    layer = attention.MultiHeadAttention(12, 3)
    x = torch.randn(2, 5, 12)
    q, k, v = (layer.split(f(x)) for f in (layer.query, layer.key, layer.value))
    assert q.shape == (2, 3, 5, 4)
    networks.close(q[:, 1], layer.query(x)[..., 4:8])
    for allowed in masks_of(2, 5, 5).values():
        y, _ = layer(x, x, allowed)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        networks.close(y, layer.output(torch.cat(heads.unbind(1), -1)))
    y, _ = layer(x, x, attention.no_later(5))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    networks.close(y, layer.output(torch.cat(heads.unbind(1), -1)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_must_divide_the_width(kind):
    with pytest.raises(AssertionError, match="n_heads must divide d_model"):
        getattr(attention, kind)(10, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_places_give_shuffled_outputs_and_shuffled_memory_the_same(kind):
    torch.manual_seed(0)
    layer = getattr(attention, kind)(8, 2)
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    y, _ = layer(x, x, everywhere(1, 1, 5, 5))
    networks.close(layer(x[:, order], x[:, order], everywhere(1, 1, 5, 5))[0], y[:, order])
    y, _ = layer(x, memory, everywhere(1, 1, 5, 7))
    networks.close(layer(x, memory.flip(1), everywhere(1, 1, 5, 7))[0], y)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mask_forbids_changes_nothing_with_unequal_lengths(kind):
    torch.manual_seed(0)
    layer = getattr(attention, kind)(8, 2)
    x = torch.randn(2, 5, 8)
    other = x.clone()
    other[0, 3:] = 7  # the first has length 3
    padding = attention.real_places(torch.tensor([3, 5]), 5).unsqueeze(1)
    for allowed in (padding, padding & attention.no_later(5)):
        y, weights = layer(x, x, allowed)
        changed, _ = layer(other, other, allowed)
        networks.close(changed[0, :3], y[0, :3])
        networks.close(changed[1], y[1])
        assert not weights[0, :, :, 3:].any()
        networks.close(weights.sum(-1), torch.ones(2, 2, 5))
    short, _ = layer(x[:1, :3], x[:1, :3], everywhere(1, 1, 3, 3))
    networks.close(layer(other, other, padding)[0][:1, :3], short)
    later = x.clone()
    later[:, 3] = 7
    y, _ = layer(x, x, attention.no_later(5))
    changed, _ = layer(later, later, attention.no_later(5))
    networks.close(changed[:, :3], y[:, :3], 0)
    for place in (3, 4):
        assert not torch.allclose(changed[:, place], y[:, place])


def test_numbers_of_a_row_are_put_in_words():
    assert attention.in_words(torch.tensor([1.0, 2.25]), ".1f") == "1.0, 2.2"
