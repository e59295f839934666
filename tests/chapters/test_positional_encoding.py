"""Attention, the kinds of positions and the reader of notebooks/positional_encoding.py."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

pe = definitions("positional_encoding")

BY_DISTANCE = ("relative", "T5", "RoPE", "ALiBi")
EACH = pytest.mark.parametrize("kind", ["none", "sinusoidal", "learned", *BY_DISTANCE])


def kind_of(kind: str):
    """What builds positions of a kind."""
    return pe.NoPositions if kind == "none" else pe.KINDS[kind]


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


def attention(kind: str):
    """One layer of the reader's size, and an input: 3 sequences of 11."""
    return pe.Attention(32, 4, kind_of(kind)()), torch.randn(3, 11, 32)


# ---- sinusoids -------------------------------------------------------------------------------


def test_sinusoids_are_those_of_the_paper_place_by_place():
    found = pe.sinusoid(torch.tensor([0, 3, 50]), 8)
    for row, place in zip(found, (0, 3, 50), strict=True):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("k", [1, 7, -4])
def test_one_matrix_moves_all_places_and_is_a_rotation(k):
    matrix = pe.shift(k, 16)
    places = torch.arange(10, 30)
    close(pe.sinusoid(places, 16) @ matrix.mT, pe.sinusoid(places + k, 16))
    close(matrix @ matrix.mT, torch.eye(16))


def test_sinusoids_are_added_to_what_comes_in():
    x = torch.randn(2, 5, 8)
    close(pe.Sinusoidal().at_input(x) - x, pe.sinusoid(torch.arange(5), 8).expand(2, 5, 8))


def test_learnt_rows_are_added_by_place_and_end():
    positions, x = pe.Learned(6, 8), torch.randn(2, 5, 8)
    close(positions.at_input(x), x + positions.rows.weight[:5])
    with pytest.raises(IndexError):
        positions.at_input(torch.randn(2, 7, 8))


def test_without_positions_nothing_changes():
    positions, x = pe.NoPositions(), torch.randn(2, 4, 5, 8)
    assert positions.turn(x) is x and positions.at_input(x) is x
    assert positions.bias(x) == 0


def test_places_are_made_where_the_inputs_are(monkeypatch):
    positions = on_meta(
        pe.Learned, 9, 8
    )  # before the spy: torch keeps a list of what makes tensors
    seen, arange = [], torch.arange

    def spy(*arguments, device=None, **how):
        seen.append(str(device))
        return arange(*arguments, device=device, **how)

    monkeypatch.setattr(torch, "arange", spy)
    positions.at_input(torch.empty(2, 5, 8, device="meta"))
    for squeezed in (pe.Rotary(), pe.Interpolated()):
        squeezed.places(5, torch.device("meta"))
    assert seen == ["meta"] * 3


# ---- distances -------------------------------------------------------------------------------


def test_a_distance_is_the_place_of_the_key_minus_that_of_the_query():
    found = pe.distances(4)
    assert found[1].tolist() == [-1, 0, 1, 2]
    assert found[:, 0].tolist() == [0, -1, -2, -3]


@pytest.mark.parametrize(("n", "furthest"), [(32, 128), (16, 16), (8, 5), (16, 128)])
def test_buckets_are_those_of_t5(n, furthest):
    distance = torch.arange(-400, 401)
    expected = T5Attention._relative_position_bucket(distance, True, n, furthest)
    assert torch.equal(pe.buckets(distance, n, furthest), expected)


def test_buckets_by_hand():
    found = pe.buckets(torch.tensor([0, -1, -7, -8, -128, -500, 1, 7, 128]), 32, 128)
    assert found.tolist() == [0, 1, 7, 8, 15, 15, 17, 23, 31]


def test_the_bias_by_buckets_is_looked_up_for_each_head():
    positions = pe.Buckets(4, n_buckets=8, furthest=5)
    found = positions.bias(torch.zeros(2, 4, 9, 8))
    rows = positions.rows.weight
    assert found.shape == (4, 9, 9)
    for query, key in ((0, 0), (3, 8), (8, 3), (5, 4)):
        bucket = pe.buckets(torch.tensor(key - query), 8, 5)
        close(found[:, query, key], rows[bucket])


def test_a_vector_for_each_clipped_distance_is_added_to_the_keys():
    positions, q = pe.Relative(8, reach=2), torch.randn(2, 4, 6, 8)
    assert positions.rows.weight.shape == (5, 8)
    found = positions.bias(q)
    for query in range(6):
        for key in range(6):
            row = positions.rows.weight[min(max(key - query, -2), 2) + 2]
            close(found[:, :, query, key], q[:, :, query] @ row / math.sqrt(8))


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16])
def test_the_slopes_are_those_of_alibi_and_the_score_falls_to_both_sides(n_heads):
    positions = pe.LinearBias(n_heads)
    found = positions.bias(torch.zeros(1, n_heads, 7, 8))
    theirs = build_alibi_tensor(torch.ones(1, 7, dtype=torch.long), n_heads, torch.float)
    close(found[:, 6] - found[:, 6, :1], theirs[:, 0])
    close(found, found.mT)
    close(found, found.flip(1, 2))


@pytest.mark.parametrize("n_heads", [3, 6])
def test_heads_that_are_no_power_of_two_are_refused(n_heads):
    with pytest.raises(AssertionError, match="power of two"):
        pe.LinearBias(n_heads)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(AssertionError, match="divide"):
        pe.Attention(32, 5, pe.NoPositions())


def test_slopes_that_differ_by_side():
    found = pe.OneSided(4).bias(torch.zeros(1, 4, 5, 8))
    plain = pe.LinearBias(4).bias(torch.zeros(1, 4, 5, 8))
    close(found.tril(), plain.tril())
    close(found.triu(), 2 * plain.triu())


# ---- RoPE ------------------------------------------------------------------------------------


def test_pairs_are_turned_by_their_place():
    x = torch.randn(2, 3, 6, 8)
    found = pe.Rotary().turn(x)
    close(found.norm(dim=3), x.norm(dim=3))
    for place in range(6):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            factor = complex(math.cos(angle), math.sin(angle))
            pairs = torch.view_as_complex(x[:, :, place].unflatten(2, (4, 2)).contiguous())
            expected = torch.view_as_real(pairs[..., i] * factor)
            close(found[:, :, place, 2 * i : 2 * i + 2], expected)


def test_the_scores_are_those_of_llama_with_its_order_of_channels():
    q, k = torch.randn(2, 2, 4, 9, 8).unbind(0)
    waves = pe.sinusoid(torch.arange(9), 8)
    sin, cos = (waves[:, side::2].repeat(1, 2)[None] for side in (0, 1))
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    their_q, their_k = apply_rotary_pos_emb(q[..., order], k[..., order], cos, sin)
    turn = pe.Rotary().turn
    close(turn(q) @ turn(k).mT, their_q @ their_k.mT)


def test_squeezed_places_are_fractions_that_end_before_sixteen():
    assert pe.Interpolated().places(64, None).tolist() == [t / 4 for t in range(64)]
    assert pe.Interpolated().places(16, None).tolist() == [*range(16)]
    x = torch.randn(1, 1, 32, 8)
    close(pe.Interpolated().turn(x)[:, :, ::2], pe.Rotary().turn(x[:, :, ::2]))


# ---- attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked):
    ours, x = attention("none")
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    parts = (ours.to_q, ours.to_k, ours.to_v)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj = ours.to_out
    hidden = torch.zeros(11, 11, dtype=torch.bool)
    if masked:
        hidden = torch.ones(11, 11, dtype=torch.bool).triu(1)
    mask = torch.zeros(11, 11).masked_fill(hidden, -math.inf)
    close(ours(x, mask), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0])


@EACH
def test_outputs_follow_their_tokens_only_without_positions(kind):
    layer, x = attention(kind)
    x = layer.positions.at_input(x)
    order = torch.randperm(11)
    blind = kind in ("none", "sinusoidal", "learned")  # theirs has come in before
    found, expected = layer(x[:, order]), layer(x)[:, order]
    assert torch.allclose(found, expected, atol=1e-5) == blind


@pytest.mark.parametrize("kind", BY_DISTANCE)
def test_where_distances_count_a_sequence_may_begin_anywhere(kind):
    layer, x = attention(kind)
    before = torch.randn(3, 4, 32)
    mask = torch.zeros(15)
    mask[:4] = -math.inf  # nobody looks at what stands in front
    close(layer(torch.cat((before, x), dim=1), mask)[:, 4:], layer(x))


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_where_places_are_added_it_may_not(kind):
    positions = kind_of(kind)()
    added = positions.at_input(torch.zeros(1, 9, 32))
    assert (added[:, 4:] - added[:, :5]).abs().min(1).values.max() > 0.1


def test_weights_are_copied_with_zeros_for_a_bias_and_the_identity_for_none():
    ours, x = attention("none")
    sources = [nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32), None]
    pe.take_weights(ours, sources)
    close(ours.to_q(x), sources[0](x))
    close(ours.to_k(x), sources[1](x))
    close(ours.to_v(x), sources[2](x))
    close(ours.to_out(x), x)
    with pytest.raises(ValueError, match="zip"):
        pe.take_weights(ours, sources[:3])


def test_an_encoder_layer_is_that_of_torch():
    ours = pe.EncoderLayer(32, 4, pe.NoPositions())
    theirs = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    with torch.no_grad():
        for norm in (ours.norm1, ours.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
        parts = (ours.attention.to_q, ours.attention.to_k, ours.attention.to_v)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.self_attn.out_proj = ours.attention.to_out
    theirs.linear1, theirs.linear2 = ours.mlp[0], ours.mlp[2]
    theirs.norm1, theirs.norm2 = ours.norm1, ours.norm2
    x = torch.randn(3, 7, 32)
    mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -math.inf)
    close(ours(x), theirs(x))
    close(ours(x, mask), theirs(x, src_mask=mask))


# ---- counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", 0), ("sinusoidal", 0), ("learned", 512 * 768), ("relative", 33 * 64)]
    + [("T5", 32 * 8), ("RoPE", 0), ("ALiBi", 0)],
)
def test_published_sizes_have_the_parameters_of_a_product_by_hand(kind, expected):
    assert parameters_of(on_meta(pe.PUBLISHED[kind][1])) == expected


@EACH
def test_attention_costs_four_products_by_weights_and_two_of_tokens(kind):
    layer = on_meta(pe.Attention, 512, 8, on_meta(pe.PUBLISHED[kind][1]))
    T, D = 128, 512
    more = T * 33 * D if kind == "relative" else 0
    assert macs_of(layer, 1, T, D) == 4 * T * D * D + 2 * T * T * D + more
    assert parameters_of(layer) - parameters_of(layer.positions) == 4 * (D * D + D)


@EACH
def test_a_reader_has_the_parameters_of_a_sum_by_hand(kind):
    reader = on_meta(lambda: pe.Reader(kind_of(kind)()))
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 4 * 32
    rest = 18 * 32 + 2 * 32 + (32 * 2 + 2)
    assert parameters_of(reader) == 2 * layer + rest + parameters_of(on_meta(kind_of(kind)))
    assert len(pe.Reader(kind_of(kind)(), n_layers=3).layers) == 3


# ---- masks and the reader --------------------------------------------------------------------


def test_masks_hide_padding_and_what_comes_later():
    tokens = torch.tensor([[5, 6, 7], [5, 6, 0]])
    hidden = pe.no_padding(tokens)
    assert hidden.shape == (2, 1, 1, 3)
    assert (hidden[:, 0, 0] == -math.inf).tolist() == [[False] * 3, [False, False, True]]
    assert (hidden[tokens[:, None, None] != 0] == 0).all()
    earlier = pe.only_earlier(tokens)
    assert earlier.shape == (2, 1, 3, 3)
    assert (earlier[0, 0] == 0).tolist() == torch.ones(3, 3).tril().bool().tolist()
    assert (earlier[1, 0] == 0).tolist() == [[True, False, False], [True, True, False]] + [
        [True, True, False]
    ]


@EACH
@pytest.mark.parametrize("mask", ["no_padding", "only_earlier"])
def test_padding_changes_nothing_and_lengths_may_differ(kind, mask):
    reader = pe.Reader(kind_of(kind)(), getattr(pe, mask))
    tokens = torch.randint(1, 18, (3, 12))
    lengths = (12, 9, 4)
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = pe.PAD
    found = reader(tokens)
    close(reader(F.pad(tokens, (0, 5))), found)
    for k, length in enumerate(lengths):
        close(found[k], reader(tokens[k : k + 1, :length])[0])
    assert found.shape == (3, 2)


@EACH
def test_with_a_causal_mask_a_later_token_changes_nothing_before_it(kind):
    reader = pe.Reader(kind_of(kind)(), pe.only_earlier)
    tokens = torch.randint(3, 17, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = pe.A
    before, after = reader.encode(tokens), reader.encode(changed)
    close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amax(2).min() > 1e-4
    assert (pe.Reader(kind_of(kind)()).encode(changed)[:, 0]).shape == (2, 32)


@EACH
def test_the_mirror_image_gets_another_answer_where_the_sides_differ(kind):
    reader = pe.Reader(kind_of(kind)())
    tokens, _ = pe.order_batch(20, 11)
    same = torch.allclose(reader(tokens.flip(1)), reader(tokens), atol=1e-6)
    assert same == (kind in ("none", "ALiBi"))
    marked = F.pad(tokens, (0, 1), value=pe.END)
    turned = F.pad(tokens.flip(1), (0, 1), value=pe.END)
    same = torch.allclose(reader(turned), reader(marked), atol=1e-6)
    assert same == (kind == "none")


@EACH
def test_the_answer_is_of_the_mean_of_what_is_read(kind):
    reader = pe.Reader(kind_of(kind)())
    tokens = torch.randint(1, 18, (3, 7))
    x = reader.positions.at_input(reader.embed(tokens))
    for layer in reader.layers:
        x = layer(x)
    close(reader.encode(tokens), reader.norm(x))
    close(reader(tokens), reader.answer(reader.norm(x).mean(1)))


@EACH
def test_a_reader_runs_forward_and_backward_on_the_meta_device(kind):
    for mask in (pe.no_padding, pe.only_earlier):
        reader = on_meta(lambda mask=mask: pe.Reader(kind_of(kind)(), mask))
        tokens = torch.ones(3, 9, dtype=torch.long, device="meta")
        answers = reader(tokens)
        answers.sum().backward()
        assert answers.shape == (3, 2)
        assert all(p.grad is not None for p in reader.parameters())
    layer = on_meta(lambda: pe.Attention(32, 4, kind_of(kind)()))
    used = kind in ("learned",)
    unused = ("positions",) if used else ()
    assert networks.runs_on_meta(layer, 2, 5, 32, unused=unused).shape == (2, 5, 32)


# ---- the task --------------------------------------------------------------------------------


def test_sequences_hold_one_a_and_one_b_anywhere_and_the_answer_is_their_order():
    tokens, first = pe.order_batch(2000, 6)
    assert tokens.shape == (2000, 6)
    of_a, of_b = (tokens == pe.A), (tokens == pe.B)
    assert (of_a.sum(1) == 1).all() and (of_b.sum(1) == 1).all()
    assert torch.equal(first, (of_a.int().argmax(1) < of_b.int().argmax(1)).long())
    for where in (of_a, of_b):
        assert (where.double().mean(0) - 1 / 6).abs().max() < 0.04
    assert abs(first.double().mean() - 0.5) < 0.05
    assert set(tokens.unique().tolist()) == {1, 2, *range(3, 17)}


def test_a_marked_sequence_ends_with_the_marker():
    tokens, first = pe.marked_batch(5, 6, torch.Generator().manual_seed(3))
    plain, order = pe.order_batch(5, 6, torch.Generator().manual_seed(3))
    assert torch.equal(tokens[:, :6], plain)
    assert torch.equal(first, order)
    assert (tokens[:, 6] == pe.END).all()
    assert tokens.shape == (5, 7)


class Knows(nn.Module):
    """Right where the sequence begins with a token below a bound."""

    def __init__(self, bound: int):
        super().__init__()
        self.bound = bound
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        first = (tokens == pe.A).int().argmax(1) < (tokens == pe.B).int().argmax(1)
        first = first ^ (tokens[:, 0] > self.bound)
        return torch.stack((~first, first), dim=1).float()


def test_the_share_right_is_of_five_hundred_fixed_sequences():
    assert pe.share_right(Knows(99), 8) == 1
    tokens, _ = pe.order_batch(500, 8, torch.Generator().manual_seed(8))
    expected = (tokens[:, 0] <= 9).double().mean().item()
    assert pe.share_right(Knows(9), 8) == pytest.approx(expected)
    torch.manual_seed(5)
    assert pe.share_right(Knows(9), 8) == pytest.approx(expected)
    marked, _ = pe.marked_batch(500, 8, torch.Generator().manual_seed(8))
    expected = (marked[:, 0] <= 9).double().mean().item()
    assert pe.share_right(Knows(9), 8, pe.marked_batch) == pytest.approx(expected)


def test_training_ends_where_the_loss_stays_small_and_takes_adam_with_a_rising_rate(monkeypatch):
    seen = []

    class Spy(torch.optim.Adam):
        def __init__(self, parameters, **how):
            seen.append(how)
            super().__init__(parameters, **how)

        def step(self):
            seen.append(self.param_groups[0]["lr"])
            return super().step()

    class Sure(nn.Module):
        """Right from the first step on, with a loss of nothing."""

        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, tokens):
            seen.append(tuple(tokens.shape))
            return 100 * self.one * Knows(99)(tokens)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    steps = pe.train(Sure(), T=5)
    assert steps == math.ceil(math.log(0.02) / math.log(0.9))
    assert seen[0] == {"lr": 0.005, "fused": True}
    assert seen[1::2][:3] == [(32, 5)] * 3
    rates = seen[2::2]
    assert rates[0] == pytest.approx(0.005 / 20)
    assert rates[10] == pytest.approx(0.005 * (0.05 + 0.95 / 2))
    assert rates[-1] == pytest.approx(0.005)
    assert len(rates) == steps
    seen.clear()
    pe.train(Sure())
    assert seen[1] == (32, 16)


def test_a_reader_that_learns_nothing_is_stopped():
    class Blind(nn.Module):
        """Two equal answers."""

        def __init__(self):
            super().__init__()
            self.same = nn.Parameter(torch.zeros(1))

        def forward(self, tokens):
            return self.same.expand(len(tokens), 2)

    assert pe.train(Blind(), T=5) == 600


@pytest.mark.parametrize("kind", ["relative", "RoPE"])
def test_a_reader_with_positions_learns_the_order_of_few_tokens(kind):
    reader = pe.Reader(kind_of(kind)())
    assert pe.train(reader, T=6) < 300
    assert pe.share_right(reader, 6) > 0.95


def test_kinds_are_built_at_the_size_of_the_reader():
    assert pe.KINDS["learned"]().rows.weight.shape == (65, 32)
    assert pe.KINDS["relative"]().reach == 8
    assert pe.KINDS["T5"]().furthest == 16
    assert pe.KINDS["T5"]().rows.weight.shape == (16, 4)
    marked = {kind for kind, batch in pe.BATCHES.items() if batch is pe.marked_batch}
    assert marked == {"ALiBi"}
    assert set(pe.BATCHES.values()) == {pe.order_batch, pe.marked_batch}
