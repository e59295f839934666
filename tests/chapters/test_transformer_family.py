"""Masks, attention in groups, GPT-2 and LLaMA, their cache, and the rules of writing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting

family = definitions("transformer_family")

# What the authors' releases have, as transformers builds them.
PARAMETERS = {
    "GPT-2 small": 124_439_808,
    "GPT-2 XL": 1_557_611_200,
    "LLaMA 7B": 6_738_415_616,
    "LLaMA 65B": 65_285_660_672,
    "Llama 2 70B": 68_976_648_192,
    "Mistral 7B": 7_241_732_096,
}


def small(**changes):
    size = {"layers": 2, "d_model": 32, "n_heads": 4, "n_groups": 2, "d_mlp": 20}
    return family.Size(**size | {"V": 11, "T_most": 16} | changes)


def gpt_small():
    return small(n_groups=4)


def model(kind: str, **changes):
    """A small network whose vectors are random, too."""
    torch.manual_seed(0)
    size = replace(gpt_small() if kind == "GPT2" else small(), **changes)
    network = getattr(family, kind)(size)
    for name, p in network.named_parameters():
        p.data = networks.random_like(name, p)
    return network


def tokens_of(*shape: int):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(1))


# ---- masks ---------------------------------------------------------------------------------------


def test_masks_show_what_their_names_say():
    places = torch.arange(5)
    t, s = places[2:, None], places
    assert family.everything(3, 2, None).all()
    assert family.everything(3, 2, None).shape == (3, 5)
    assert torch.equal(family.causal(3, 2, None), s <= t)
    assert torch.equal(family.causal(5, 0, None), s <= places[:, None])
    assert torch.equal(family.prefix(3, 2, None, length=4), (s <= t) | (s < 4))
    assert torch.equal(family.prefix(8, 0, None)[0], torch.arange(8) < 4)
    assert torch.equal(family.window(3, 2, None, width=2), (s <= t) & (s > t - 2))
    assert family.window(9, 0, None)[8].tolist() == [False] * 6 + [True] * 3
    for mask in (family.everything, family.causal, family.prefix, family.window):
        assert mask(3, 2, "meta").is_meta and mask(3, 2, None).dtype == torch.bool


def test_what_is_reached_is_found_by_gradients():
    x = torch.randn(1, 4, 3)
    found = family.reached(lambda x: x.cumsum(1), x)
    assert torch.equal(found, torch.ones(4, 4).tril().bool())
    assert torch.equal(family.reached(lambda x, k: k * x, x, 2.0), torch.eye(4).bool())
    assert family.reached(lambda x: x[:, :2], x).shape == (2, 4)
    assert not x.requires_grad


@pytest.mark.parametrize("name", ["everything", "causal", "prefix"])
def test_outputs_depend_on_what_the_mask_shows_after_two_layers(name):
    mask = getattr(family, name)
    found = family.reached(family.last_states, torch.randn(1, 7, 32), model("Llama"), mask)
    assert torch.equal(found, mask(7, 0, None))


def test_an_encoder_decoder_lets_through_what_a_prefix_decoder_does():
    torch.manual_seed(0)
    both = family.BothHalves(16)
    assert len(both.halves.encoder.layers) == len(both.halves.decoder.layers) == 2
    assert both.halves.encoder.layers[0].linear1.out_features == 32
    x = torch.randn(1, 8, 16)
    assert torch.equal(family.reached(both, x), family.prefix(8, 0, None))
    networks.close(both.train()(x), both.eval()(x))
    memory = both.halves.encoder(x[:, :4])
    networks.close(both(x)[:, :4], memory)
    hidden = nn.Transformer.generate_square_subsequent_mask(4)
    written = both.halves.decoder(x[:, 4:], memory, tgt_mask=hidden)
    networks.close(both(x)[:, 4:], written)


# ---- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_groups_is_torchs(groups):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 5, 8), *torch.randn(2, 3, groups, 7, 8)
    mask = family.causal(5, 2, None)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    networks.close(family.attend(q, k, v, mask), expected)
    lengths = torch.tensor([2, 7, 4])  # a mask for each sequence of a batch
    lengths = (torch.arange(7) < lengths[:, None])[:, None, None, None]  # (B, 1, 1, 1, S)
    found = family.attend(q, k, v, lengths)
    for row, length in enumerate((2, 7, 4)):
        parts = (t[row : row + 1, :, :length] for t in (k, v))
        alone = family.attend(q[row : row + 1], *parts, torch.ones(5, length).bool())
        networks.close(found[row : row + 1], alone)


def test_one_memory_is_read_by_all_heads():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 3, 8), *torch.randn(2, 2, 1, 3, 8)
    mask = family.causal(3, 0, None)
    networks.close(family.one_memory(q, k, v, mask), family.attend(q, k, v, mask))


def test_heads_must_come_in_equal_groups():
    with pytest.raises(AssertionError, match="n_groups must divide n_heads"):
        family.Llama(small(n_groups=3))


def test_products_of_a_step_do_not_depend_on_the_groups():
    for way, groups in ((family.attend, 1), (family.attend, 4), (family.one_memory, 1)):
        step = on_meta(family.Step, way, groups, S=9)
        assert step.k.shape == step.v.shape == (1, groups, 9, 128)
        q = torch.empty(1, 4, 1, 128, device="meta")
        assert counting.macs(step, q) == 2 * 4 * 9 * 128
    torch.manual_seed(0)
    step, q = family.Step(family.attend, 2, S=9), torch.randn(1, 4, 1, 128)
    expected = F.scaled_dot_product_attention(q, step.k, step.v, enable_gqa=True)
    networks.close(step(q), expected)
    assert family.Step(family.attend, 1).k.shape[2] == 2048


def test_the_least_of_fifteen_times_is_taken(monkeypatch):
    times = iter([0.0, 3.0, 10.0, 12.0] + [float(n) for n in range(100, 204, 4)])
    monkeypatch.setattr(family._namespace["time"], "perf_counter", lambda: next(times))
    calls = []
    assert family.seconds(calls.append, "q") == 2.0
    assert calls == ["q"] * 15


# ---- parts ---------------------------------------------------------------------------------------


def test_rms_norm_is_torchs_and_keeps_a_scaled_token():
    torch.manual_seed(0)
    ours, theirs = family.RMSNorm(6), nn.RMSNorm(6, eps=1e-6)
    weight = torch.rand(6) + 0.5
    ours.load_state_dict({"weight": weight})
    theirs.load_state_dict({"weight": weight})
    for scale in (1.0, 1e-3):
        x = scale * torch.randn(2, 3, 6)
        networks.close(ours(x), theirs(x))
    assert family.RMSNorm(6, 0.5).eps == 0.5
    networks.close(family.RMSNorm(6).weight, torch.ones(6), 0)


def test_a_rotation_keeps_lengths_and_products_depend_on_the_distance():
    torch.manual_seed(0)
    turn = family.Rotation()
    x = torch.randn(1, 1, 6, 8)
    turned = turn(x, 0)
    networks.close(turned.norm(dim=-1), x.norm(dim=-1))
    networks.close(turned[:, :, 0], x[:, :, 0])
    networks.close(turn(x[:, :, 2:], 2), turned[:, :, 2:])
    pair = torch.zeros(1, 1, 2, 4)
    pair[..., 1] = 1.0  # the second pair, turned by 1 / 100
    expected = torch.tensor([0, math.cos(0.01), 0, math.sin(0.01)])
    networks.close(turn(pair, 0)[0, 0, 1], expected)
    q, k = x[:, :, :1], x[:, :, 1:2]
    near = turn(q, 3) @ turn(k, 1).mT
    networks.close(turn(q, 9) @ turn(k, 7).mT, near)
    assert not torch.allclose(turn(q, 9) @ turn(k, 8).mT, near, atol=1e-3)
    assert family.NoRotation()(x, 3) is x


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_have_their_parameters_and_cache(name):
    kind, size = family.SIZES[name]
    network = on_meta(kind, size)
    assert parameters_of(network) == PARAMETERS[name]
    d = size.d_model // size.n_heads
    assert family.cached_numbers(network) == 2 * size.layers * size.n_groups * d


def test_products_of_gpt2_small_are_those_of_its_matrices_and_its_attention():
    kind, size = family.SIZES["GPT-2 small"]
    T, D = 64, 768
    tokens = torch.zeros(1, T, dtype=torch.long, device="meta")
    expected = 12 * (12 * D * D * T + 2 * T * T * D) + 50257 * D * T
    assert counting.macs(on_meta(kind, size), tokens) == expected


def test_gpt2_is_that_of_transformers():
    torch.manual_seed(0)
    theirs = family.their_gpt2(gpt_small()).eval()
    assert isinstance(theirs, GPT2Model)
    shape = (2, 32, 4, 11, 20, 16)
    names = ("n_layer", "n_embd", "n_head", "vocab_size", "n_inner", "n_positions")
    assert tuple(getattr(theirs.config, name) for name in names) == shape
    assert theirs.config.activation_function == GPT2Config().activation_function
    for name, p in theirs.named_parameters():
        p.data = networks.random_like(name, p)
    ours = family.GPT2(gpt_small())
    ours.load_state_dict(family.gpt2_weights(theirs))
    tokens = tokens_of(3, 9)
    expected = theirs(tokens).last_hidden_state @ theirs.wte.weight.T
    networks.close(ours(tokens)[0], expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_llama_is_that_of_transformers(groups):
    size = small(n_groups=groups)
    theirs = family.their_llama(size).eval()
    assert isinstance(theirs, LlamaForCausalLM)
    assert theirs.config.rms_norm_eps == LlamaConfig().rms_norm_eps == family.RMSNorm(2).eps
    ours = family.Llama(size)
    networks.share_weights(ours, theirs)
    tokens = tokens_of(3, 9)
    networks.close(ours(tokens)[0], theirs(tokens).logits)


def test_vectors_are_drawn_anew_and_matrices_stay():
    network = family.GPT2(gpt_small())
    before = {name: p.clone() for name, p in network.named_parameters()}
    torch.manual_seed(0)
    assert family.randomise(network) is network
    scales, shifts = [], []
    for name, p in network.named_parameters():
        if p.ndim == 1:
            (scales if name.endswith("weight") else shifts).append(p.detach())
        else:
            networks.close(p, before[name], 0)
    scales, shifts = torch.cat(scales), torch.cat(shifts)
    assert abs(scales.mean() - 1) < 0.05 and abs(shifts.mean()) < 0.05
    assert abs(scales.std() - 0.1) < 0.02 and abs(shifts.std() - 0.1) < 0.02


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_read_in_pieces_with_a_cache_all_is_the_same(kind):
    network, tokens = model(kind), tokens_of(2, 10)
    whole, cache = network(tokens)
    first, past = network(tokens[:, :4])
    middle, past = network(tokens[:, 4:5], past)
    last, past = network(tokens[:, 5:], past)
    networks.close(torch.cat((first, middle, last), 1), whole)
    for a, b in zip(sum(past, ()), sum(cache, ()), strict=True):
        networks.close(a, b)
    groups = network.size.n_groups
    assert [t.shape for t in cache[1]] == [(2, groups, 10, 8)] * 2
    assert family.cached_numbers(network) == 2 * 2 * groups * 8


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_later_tokens_and_padding_change_nothing_before_them(kind):
    network, tokens = model(kind), tokens_of(3, 8)
    whole, _ = network(tokens)
    other = tokens.clone()
    other[:, 5:] = 0
    changed, _ = network(other)
    networks.close(changed[:, :5], whole[:, :5])
    assert not torch.allclose(changed[:, 5], whole[:, 5])
    networks.close(network(tokens[:, :5])[0], whole[:, :5])
    networks.close(network(tokens.flip(0))[0], whole.flip(0))
    full, _ = network(tokens, mask=family.everything)
    seen, _ = network(other, mask=family.everything)
    assert not torch.allclose(full[:, 0], seen[:, 0])


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_swapping_two_tokens_changes_what_a_full_mask_reads_by_their_places_only(kind):
    network, tokens = model(kind), tokens_of(1, 6)
    tokens[0, 1:3] = torch.tensor([4, 7])
    swapped = tokens[:, [0, 2, 1, 3, 4, 5]]
    found, _ = network(tokens, mask=family.everything)
    other, _ = network(swapped, mask=family.everything)
    assert not torch.allclose(found[:, 5], other[:, 5], atol=1e-4)
    for block in network.blocks:
        block.attention.turn = family.NoRotation()
    if kind == "GPT2":
        network.positions.weight.data.zero_()
    found, _ = network(tokens, mask=family.everything)
    other, _ = network(swapped, mask=family.everything)
    networks.close(found[:, 5], other[:, 5])


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_a_model_runs_forward_and_backward_on_the_meta_device(kind):
    size = gpt_small() if kind == "GPT2" else small()
    network = on_meta(getattr(family, kind), size)
    with torch.device("cpu"):  # a tensor made on the wrong device fails
        scores, _ = network(torch.zeros(2, 3, dtype=torch.long, device="meta"))
        scores.sum().backward()
    assert scores.shape == (2, 3, 11)
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(kind):
    network = model(kind)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, tokens):
            return self.network(tokens)[0][:, -1]

    networks.learns(Last(), tokens_of(8, 6), 0.01, 60)


# ---- writing -------------------------------------------------------------------------------------


def test_rules_are_those_of_transformers():
    torch.manual_seed(0)
    scores = 2 * torch.randn(4, 30)
    chances = scores.softmax(-1)
    for temperature in (0.5, 1.0, 2.0):
        expected = TemperatureLogitsWarper(temperature)(None, scores).softmax(-1)
        networks.close(family.cooled(scores, temperature), expected)
    for k in (1, 3, 30):
        expected = TopKLogitsWarper(k)(None, scores).softmax(-1)
        networks.close(family.top_k(chances, k), expected)
    for p in (0.1, 0.5, 0.9):
        expected = TopPLogitsWarper(p)(None, scores).softmax(-1)
        networks.close(family.top_p(chances, p), expected)
    assert (family.top_p(chances, 0.01).max(-1).values == 1).all()
    networks.close(family.top_p(chances, 1.0), chances)


def test_rules_are_used_with_the_numbers_in_their_names():
    torch.manual_seed(0)
    scores = 2 * torch.randn(2, 30)
    chances = scores.softmax(-1)
    expected = {
        "greedy": F.one_hot(scores.argmax(-1), 30).float(),
        "temperature 0.5": (2 * scores).softmax(-1),
        "temperature 1": chances,
        "top-k, k = 5": family.top_k(chances, 5),
        "top-p, p = 0.8": family.top_p(chances, 0.8),
    }
    assert set(family.RULES) == set(expected)
    for name, rule in family.RULES.items():
        networks.close(rule(scores), expected[name], name=name)


def test_writing_goes_on_from_a_start_with_the_whole_past():
    network, start = model("Llama"), tokens_of(3, 4)
    greedy = family.RULES["greedy"]
    found = family.write(network, start, 5, greedy)
    assert found.shape == (3, 9)
    tokens = start
    for _ in range(5):
        scores, _ = network(tokens)
        tokens = torch.cat((tokens, scores[:, -1:].argmax(-1)), 1)
    assert torch.equal(found, tokens)
    torch.manual_seed(0)
    drawn = family.write(network, start[:1].expand(300, -1), 1, lambda s: s.softmax(-1))
    shares = torch.bincount(drawn[:, -1], minlength=11) / 300
    assert (shares - network(start[:1])[0][0, -1].softmax(-1)).abs().amax() < 0.1


def test_known_and_different_words_are_counted_behind_the_start():
    start = family.START
    texts = [start + "and he sed an", start + "he he said unto\nhim x"]
    assert family.known(texts, {"and", "he", "said"}) == pytest.approx(5 / 8)
    assert family.different(texts) == pytest.approx(6 / 8)


# ---- training ------------------------------------------------------------------------------------


def test_every_third_paragraph_is_taken():
    assert family.every("a\nb\nc\nd\ne\nf\ng", 3) == "a\nd\ng"


def test_training_asks_for_the_next_character_of_random_pieces(monkeypatch):
    seen, kept, rates, masks = [], [], [], []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(400))

        def forward(self, numbers, mask):
            seen.append(numbers)
            masks.append(mask)
            scores = self.scores.expand(*numbers.shape, 400).clone()
            scores.retain_grad()
            kept.append(scores)
            return scores, None

    adam = torch.optim.AdamW

    class AdamW(adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[0]["betas"] == (0.9, 0.95)
            return super().step(*args)

    clipped = []
    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most))
    torch.manual_seed(0)
    losses = family.train(Model(), torch.arange(400), 30)
    assert len(losses) == 30 and losses[0] == pytest.approx(math.log(400))
    assert len(seen) == 30 and seen[0].shape == (4, 128) and clipped == [1.0] * 30
    networks.rises_and_falls(rates, peak=5e-3, at=2)
    for numbers, scores in zip(seen, kept, strict=True):
        assert (numbers.diff(dim=1) == 1).all()
        assert (scores.grad.argmin(-1) == numbers + 1).all()
    starts = torch.cat([numbers[:, 0] for numbers in seen])
    assert starts.min() < 20 and starts.max() > 250
    family.train(Model(), torch.arange(129), 2, mask=family.everything)
    assert (seen[-1][:, 0] == 0).all()
    assert masks == [family.causal] * 30 + [family.everything] * 2


def test_bits_are_the_mean_surprise_in_pieces():
    network = model("Llama")
    numbers = tokens_of(300)
    total = 0.0
    for first in (0, 129):
        piece = numbers[first : first + 129]
        chances = network(piece[None, :-1])[0][0].softmax(-1)
        total -= sum(math.log2(chances[t, piece[t + 1]].item()) for t in range(128))
    assert family.bits(network, numbers) == pytest.approx(total / 256, rel=1e-5)


def test_a_text_that_repeats_is_learnt():
    torch.manual_seed(0)
    numbers = torch.arange(5).repeat(60)
    network = family.Llama(small(V=5))
    before = family.bits(network, numbers)
    family.train(network, numbers, 40)
    assert family.bits(network, numbers) < before / 10


def test_pooled_heads_are_the_mean_and_equal_heads_stay_what_they_are():
    network = model("Llama", n_groups=4)
    for block in network.blocks:
        for layer in (block.attention.to_k, block.attention.to_v):
            heads = layer.weight.data.view(2, 2, 8, 32)
            heads[:, 1] = heads[:, 0]
    tokens = tokens_of(2, 7)
    fewer = family.pooled(network, 2)
    assert fewer.size == small()
    networks.close(fewer(tokens)[0], network(tokens)[0])
    one = family.pooled(network, 1).blocks[1].attention
    heads = network.blocks[1].attention.to_v.weight.view(4, 8, 32)
    networks.close(one.to_v.weight, heads.mean(0))
    assert not torch.allclose(one.to_k.weight, one.to_v.weight)
