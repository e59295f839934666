"""The stacks of notebooks/transformer.py, their masks, norms and cache, the loss and the schedule."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting
from workbench.text import BEGIN, PAD

t = definitions("transformer")

NORMS = {"post": "PostNorm", "pre": "PreNorm"}


def residual(norm: str):
    return getattr(t, NORMS[norm])


def tiny():
    return t.Size(2, 16, 4, 24, dropout=0.0)


def tokens(*shape: int):
    return torch.randint(3, 20, shape)


def fresh(norm: str = "post"):
    """A network of 20 tokens whose every parameter is random, so that no scale of 1 hides."""
    torch.manual_seed(0)
    model = t.Transformer(20, tiny(), residual(norm))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stacks", "D"), [("BASE", 44_140_544, 512), ("BIG", 176_361_472, 1024)]
)
def test_published_sizes_have_the_parameters_of_torchs_stacks_and_one_table(name, stacks, D):
    size = getattr(t, name)
    model = on_meta(t.Transformer, 37_000, size)
    assert parameters_of(model.encoder) + parameters_of(model.decoder) == stacks
    assert parameters_of(model) == stacks + 37_000 * D
    assert parameters_of(on_meta(t.torch_stacks, size, False)) == stacks


def test_sizes_are_those_of_table_3():
    assert (t.BASE.depth, t.BASE.d_model, t.BASE.n_heads, t.BASE.d_inner) == (6, 512, 8, 2048)
    assert (t.BIG.depth, t.BIG.d_model, t.BIG.n_heads, t.BIG.d_inner) == (6, 1024, 16, 4096)
    assert (t.BASE.dropout, t.BIG.dropout) == (0.1, 0.3)
    shares = {m.p for m in on_meta(t.Transformer, 9, t.BIG).modules() if type(m) is nn.Dropout}
    assert shares == {0.3}
    assert type(on_meta(t.Transformer, 9).encoder.layers[0].residual1) is t.PostNorm


@pytest.mark.parametrize(("V", "T"), [(100, 7), (37_000, 25)])
def test_macs_on_the_meta_device_are_those_of_the_formula(V, T):
    model = on_meta(t.Transformer, V)
    numbers = torch.zeros(1, T, dtype=torch.long, device="meta")
    assert counting.macs(t.OnSelf(model), numbers) == t.macs_by_formula(t.BASE, V, T)


# ---- reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_outputs_and_all_gradients_are_those_of_torchs_stacks(norm):
    torch.manual_seed(0)
    theirs = t.torch_stacks(tiny(), norm == "pre")
    ours = t.Stacks(tiny(), residual(norm))
    t.share(theirs, ours)
    x, y = torch.randn(3, 9, 16), torch.randn(3, 5, 16)
    hidden = torch.arange(9) >= torch.tensor([[9], [4], [1]])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    masks = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
    expected = theirs(x, y, tgt_mask=causal, **masks)
    found = ours(x, y, ~hidden[:, None, None])
    networks.close(found, expected)
    weight = torch.randn_like(found)
    for output in (found, expected):
        (output * weight).sum().backward()
    for parameter in theirs.parameters():
        parameter.data = parameter.grad  # so that torch_weights gives gradients in our order
    for (name, a), b in zip(ours.named_parameters(), t.torch_weights(theirs), strict=True):
        if name.endswith("to_k.bias"):  # adds the same to all scores of a query: no gradient
            assert a.grad.abs().max() < 1e-5 and b.abs().max() < 1e-5
        else:
            networks.close(a.grad, b, 1e-4)


def test_attention_in_heads_is_that_of_torch_and_its_weights_are_a_softmax():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5)
    mask = torch.rand(2, 1, 4, 6) > 0.3
    mask[..., 0] = True
    weights = t.attention_weights(q, k, mask)
    v = torch.eye(6).expand(2, 3, 6, 6)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    networks.close(weights, expected)
    assert (weights.sum(-1) - 1).abs().max() < 1e-5
    layer, reference = t.MultiHead(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_bias.normal_()
        names = list(layer.state_dict())
        layer.load_state_dict(dict(zip(names, t.torch_weights(reference), strict=True)))
    x, memory = torch.randn(2, 4, 16), torch.randn(2, 6, 16)
    networks.close(layer(x, memory), reference(x, memory, memory)[0])
    with pytest.raises(AssertionError, match="divide"):
        t.MultiHead(16, 3)


def test_the_norm_stands_after_the_sum_or_before_the_function():
    torch.manual_seed(0)
    x, f = torch.randn(3, 4), nn.Linear(4, 4)
    post, pre = t.PostNorm(4), t.PreNorm(4)
    networks.close(post(x, f), F.layer_norm(x + f(x), (4,)))
    networks.close(pre(x, f), x + f(F.layer_norm(x, (4,))))
    for block in (t.PostNorm(4, 1.0), t.PreNorm(4, 1.0)):  # what the function adds is dropped
        expected = F.layer_norm(x, (4,)) if type(block) is t.PostNorm else x
        networks.close(block.train()(x, f), expected)
        assert not torch.allclose(block.eval()(x, f), expected)
        assert t.PostNorm(4).dropout.p == 0


def test_places_are_told_by_sines_and_cosines_in_turn():
    found = t.sinusoids(torch.tensor([0, 3, 50]), 6)
    for row, place in zip(found, (0, 3, 50), strict=True):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert row[2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert row[2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_token_is_its_row_times_the_root_of_the_width_and_its_place():
    model = fresh().eval()
    numbers = tokens(2, 5)
    expected = model.embed(numbers) * 4 + t.sinusoids(torch.arange(5), 16)
    networks.close(model.embedded(numbers), expected)
    networks.close(model.embedded(numbers[:, 3:], 3), expected[:, 3:])
    x = torch.randn(2, 5, 16)
    networks.close(model.scores(x), F.linear(x, model.embed.weight))
    dropped = t.Transformer(20, t.Size(1, 16, 4, 24, dropout=1.0))
    assert not dropped.embedded(numbers).any()
    dropped = t.LearntPlaces(20, t.Size(1, 16, 4, 24, dropout=1.0))
    assert not dropped.embedded(numbers).any()


def test_weights_start_as_glorot_has_them_and_rows_with_a_length_of_about_one():
    torch.manual_seed(0)
    model = t.Transformer(400, t.Size(1, 64, 4, 256))
    networks.starts_with(model.embed.weight, 1 / 8)
    layer = model.encoder.layers[0]
    networks.starts_with(layer.mlp[0].weight, (2 / (64 + 256)) ** 0.5)
    networks.starts_with(model.decoder.layers[0].cross.to_k.weight, 1 / 8)


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_a_later_target_token_changes_nothing_before_it(norm):
    model = fresh(norm).eval()
    source, target = tokens(2, 9), tokens(2, 7)
    scores = model(source, target)
    later = target.clone()
    later[:, 4] = 3 + (later[:, 4] - 2) % 17
    changed = model(source, later)
    networks.close(changed[:, :4], scores[:, :4])
    assert not torch.allclose(changed[:, 4:], scores[:, 4:], atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_sources_of_unequal_lengths_are_read_as_each_alone(norm):
    model = fresh(norm).eval()
    long, short = tokens(1, 9), tokens(1, 4)
    target = tokens(2, 6)
    both = torch.cat((long, F.pad(short, (0, 5), value=PAD)))
    found = model(both, target)
    networks.close(found[:1], model(long, target[:1]))
    networks.close(found[1:], model(short, target[1:]))
    padded = F.pad(target, (0, 3), value=PAD)
    networks.close(model(both, padded)[:, :6], found)


def test_the_order_of_the_source_counts_only_with_places():
    model = fresh().eval()
    source, target = tokens(2, 9), tokens(2, 7)
    scores = model(source, target)
    assert not torch.allclose(model(source.flip(1), target), scores, atol=1e-3)
    torch.manual_seed(0)
    without = t.WithoutPlaces(20, tiny()).eval()
    scores = without(source, target)
    networks.close(without(source.flip(1), target), scores)
    networks.close(without.embedded(source), 4 * without.embed(source), 0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_with_a_cache_gives_the_scores_of_the_full_pass(norm):
    model = fresh(norm).eval()
    source = tokens(3, 9)
    source[1, 5:] = PAD
    found, scores = t.translate(model, source, 6)
    whole, whole_scores = t.translate_whole(model, source, 6)
    assert found.shape == (3, 6) and scores.shape == (3, 6, 20)
    torch.testing.assert_close(found, whole)
    networks.close(scores, whole_scores, 1e-4)
    begun = torch.cat((torch.full((3, 1), BEGIN), found[:, :-1]), 1)
    expected = model(source, begun)
    networks.close(scores, expected, 1e-4)
    torch.testing.assert_close(found, expected.argmax(-1))


@pytest.mark.parametrize("norm", NORMS)
def test_the_network_runs_forward_and_backward_on_the_meta_device(norm):
    model = on_meta(t.Transformer, 20, tiny(), residual(norm))
    with torch.device("meta"):
        scores = model(torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long))
    scores.sum().backward()
    assert scores.shape == (2, 7, 20)
    assert all(p.grad is not None for p in model.parameters())


# ---- loss and schedule ---------------------------------------------------------------------------


def test_the_smoothed_loss_is_torchs_and_leaves_padding_out():
    torch.manual_seed(0)
    scores, wanted = torch.randn(2, 5, 7), torch.randint(3, 7, (2, 5))
    wanted[1, 3:] = PAD
    for smoothing in (0.0, 0.1, 0.3):
        how = {"label_smoothing": smoothing, "ignore_index": PAD}
        expected = F.cross_entropy(scores.mT, wanted, **how)
        networks.close(t.smoothed_loss(scores, wanted, smoothing=smoothing), expected)
    expected = F.cross_entropy(scores.mT, wanted, label_smoothing=0.1, ignore_index=PAD)
    networks.close(t.smoothed_loss(scores, wanted), expected)
    found = t.least_loss(7, 0.2)
    chances = torch.full((7,), 0.2 / 7)
    chances[2] += 0.8
    assert found == pytest.approx(-(chances * chances.log()).sum().item(), rel=1e-4)


def test_the_rate_rises_in_a_line_and_falls_with_the_root():
    assert t.paper_rate(1, 512, 4000) == pytest.approx(512**-0.5 * 4000**-1.5)
    assert t.paper_rate(2000, 512, 4000) == pytest.approx(t.paper_rate(4000, 512, 4000) / 2)
    assert t.paper_rate(4000, 512, 4000) == pytest.approx((512 * 4000) ** -0.5)
    assert t.paper_rate(16_000, 512, 4000) == pytest.approx((512 * 16_000) ** -0.5)
    assert t.passed(4) == (4, 10)


# ---- training ------------------------------------------------------------------------------------


def test_a_reverser_reads_eight_places_with_six_layers():
    torch.manual_seed(0)
    for norm in NORMS:
        model = t.Reverser(residual(norm)).eval()
        assert type(model.encoder.layers[0].residual1) is residual(norm)
        assert len(model.encoder.layers) == 6
        numbers = torch.randint(10, (3, 8))
        x = model.encoder(model.embed(numbers) + model.places)
        networks.close(model(numbers), model.head(x))
        assert model.embed.num_embeddings == model.head.out_features == 10
        assert not torch.allclose(model(numbers.flip(1)).flip(1), model(numbers), atol=1e-3)
        assert {m.p for m in model.modules() if type(m) is nn.Dropout} == {0}
        layer = model.encoder.layers[0]
        assert layer.mlp[0].weight.shape == (64, 32) and layer.attention.n_heads == 4
    torch.manual_seed(0)
    wide = t.Reverser(t.PreNorm, depth=1, d_model=400)
    networks.starts_with(wide.places, 1, 0.05)
    networks.starts_with(wide.embed.weight, 1, 0.05)
    networks.starts_with(wide.head.weight, (2 / 410) ** 0.5, 0.05)


def test_learning_warms_up_in_a_line_and_ends_when_solved(monkeypatch):
    torch.manual_seed(0)
    found = t.learn(t.Reverser(t.PreNorm, depth=1, d_model=64), 0.01, warmup=1)
    assert len(found) < 200 and min(found[-5:]) >= 0.97 > min(found[-6:-1])
    rates, adam = [], t.adam

    def noting(model, rate):
        optimizer = adam(model, rate)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setitem(t._namespace, "adam", noting)
    model = t.Reverser(t.PreNorm, depth=1)
    assert len(t.learn(model, 0.001, warmup=4, steps=6)) == 6
    assert rates == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, 0.001, 0.001])
    settings = adam(model, 0.003).param_groups[0]
    assert settings["betas"] == (0.9, 0.98) and settings["eps"] == 1e-9 and settings["lr"] == 0.003
    rates.clear()
    source, target = tokens(9, 5), tokens(9, 4)
    losses = t.train(fresh(), source, target, 10, peak=0.004)
    assert len(losses) == 10
    networks.rises_and_falls(rates, 0.004, 1)


def test_what_is_written_after_begin_is_learnt():
    torch.manual_seed(0)
    source = tokens(8, 5)
    target = torch.cat((torch.full((8, 1), BEGIN), source.flip(1)), 1)
    model = t.LearntPlaces(20, t.Size(1, 16, 2, 32, dropout=0.0))
    assert model.places.shape == (30, 16)
    expected = model.embed(source) * 4 + model.places[:5]
    networks.close(model.embedded(source), expected)
    networks.close(model.embedded(source[:, 2:], 2), expected[:, 2:])
    t.train(model, source, target, 80, peak=0.02)
    found, _ = t.translate(model.eval(), source, 5)
    torch.testing.assert_close(found, source.flip(1))


def test_gradients_at_the_start_are_those_of_each_layers_last_matrix():
    found = t.gradient_by_layer(t.PostNorm, 3)
    torch.manual_seed(3)
    model = t.Reverser(t.PostNorm)
    x = torch.randint(10, (256, 8))
    F.cross_entropy(model(x).flatten(0, 1), x.flip(1).flatten()).backward()
    expected = [layer.mlp[2].weight.grad.norm().item() for layer in model.encoder.layers]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
