"""The vision transformers of notebooks/vit.py."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import vision_transformer as library

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

vit = definitions("vit")

# Sizes whose weights torchvision publishes; their entries hold parameters and G MACs at 224x224.
PUBLISHED = {
    "vit_b_16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1,
    "vit_b_32": torchvision.models.ViT_B_32_Weights.IMAGENET1K_V1,
    "vit_l_16": torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1,
    "vit_l_32": torchvision.models.ViT_L_32_Weights.IMAGENET1K_V1,
    "vit_h_14": torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1,
}
LARGER = {
    ("vit_b_16", 384): torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    ("vit_l_16", 512): torchvision.models.ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    ("vit_h_14", 518): torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,
}
DIGITS = ("patch_vit", "conv_stem_vit", "SmallCNN")


def small(**how):
    """A ViT of three blocks whose class token and shifts are not zero."""
    torch.manual_seed(0)
    sizes = {"depth": 3, "d_model": 16, "n_heads": 4, "num_classes": 10} | how
    network = vit.ViT(vit.Patches(2, 16, size=4), 6, **sizes)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return network


# ---- published sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(vit, name))
    assert parameters_of(network) == weights.meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize(("size", "weights"), LARGER.items())
def test_larger_images_cost_more_positions_and_the_macs_torchvision_gives(size, weights):
    name, image = size
    network = on_meta(getattr(vit, name), image)
    assert parameters_of(network) == weights.meta["num_params"]
    assert round(macs_of(network, 1, 3, image, image) / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize(("name", "patch"), [("vit_b_32", 32), ("vit_l_32", 32)])
def test_a_size_with_large_patches_has_positions_for_the_image_it_is_given(name, patch):
    network = on_meta(getattr(vit, name), 4 * patch)
    assert network.positions.rows.shape[1] == 1 + 16
    assert networks.runs_on_meta(network, 2, 3, 4 * patch, 4 * patch).shape == (2, 1000)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(vit, name))
    assert networks.runs_on_meta(network, 2, 3, 224, 224).shape == (2, 1000)


@pytest.mark.parametrize(
    ("size", "patch", "image", "depth"),
    [("BASE", 16, 48, 2), ("BASE", 32, 64, 1), ("LARGE", 16, 48, 1), ("HUGE", 14, 28, 1)],
)
def test_with_the_same_weights_a_network_does_what_that_of_torchvision_does(
    size, patch, image, depth
):
    torch.manual_seed(0)
    numbers = getattr(vit, size)
    theirs = on_meta(
        library.VisionTransformer,
        image,
        patch,
        depth,
        numbers["n_heads"],
        numbers["d_model"],
        4 * numbers["d_model"],
    )
    ours = on_meta(vit.published, numbers | {"depth": depth}, patch, image)
    x = torch.randn(2, 3, image, image)
    networks.share_weights(ours, theirs)
    networks.same_outputs(ours, theirs, x)
    if size == "BASE":
        networks.same_training(ours, theirs, x)


@pytest.mark.parametrize(("name", "heads"), [("vit_b_16", 12), ("vit_l_16", 16), ("vit_h_14", 16)])
def test_published_sizes_have_as_many_heads_as_those_of_torchvision(name, heads):
    theirs = on_meta(getattr(torchvision.models, name)).encoder.layers
    ours = on_meta(getattr(vit, name)).blocks
    assert {layer.num_heads for layer in theirs} == {heads}
    assert [block.attention.n_heads for block in ours] == [heads] * len(theirs)


def test_an_image_that_the_patches_do_not_fill_is_refused():
    with pytest.raises(AssertionError, match="patch must divide image"):
        vit.vit_b_16(230)


# ---- parts ---------------------------------------------------------------------------------------


def test_tokens_are_the_patches_row_by_row_times_one_matrix():
    torch.manual_seed(0)
    patches, x = vit.Patches(2, 5, size=3), torch.randn(2, 2, 6, 9)
    tokens = patches(x)
    assert tokens.shape == (2, 6, 5)
    piece = x[1, :, 3:6, 6:9].flatten()  # the last of the second row
    networks.close(tokens[1, 5], patches.conv.weight.flatten(1) @ piece + patches.conv.bias)
    piece = x[0, :, 0:3, 3:6].flatten()
    networks.close(tokens[0, 1], patches.conv.weight.flatten(1) @ piece + patches.conv.bias)


def test_weights_of_attention_are_those_of_a_case_by_hand_and_of_torch():
    q = torch.tensor([[2.0, 0, 0, 0]])
    k = torch.tensor([[0.0, 0, 0, 0], [1, 5, 0, 0], [2, 0, 5, 0]])
    total = 1 + math.e + math.e**2
    expected = torch.tensor([[1 / total, math.e / total, math.e**2 / total]])
    networks.close(vit.attention_weights(q, k), expected)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 7)
    networks.close(vit.attention_weights(q, k) @ v, F.scaled_dot_product_attention(q, k, v))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(AssertionError, match="n_heads must divide"):
        vit.Attention(10, 4)


def test_each_head_reads_its_own_part_of_the_token():
    torch.manual_seed(0)
    q, k, v = vit.Attention(12, 3).heads(torch.randn(2, 5, 12))
    assert q.shape == k.shape == v.shape == (2, 3, 5, 4)
    attention = vit.Attention(12, 3)
    x = torch.randn(2, 5, 12)
    whole = x @ attention.to_qkv.weight.T + attention.to_qkv.bias
    networks.close(attention.heads(x)[2][:, 1], whole[:, :, 24 + 4 : 24 + 8])


def test_positions_start_at_the_deviation_asked_for_and_are_added():
    torch.manual_seed(0)
    networks.starts_with(vit.Positions(100, 200).rows, 0.02)
    networks.starts_with(vit.Positions(100, 200, std=0.5).rows, 0.5)
    networks.starts_with(vit.patch_vit().positions.rows, 0.5, share=0.15)
    networks.starts_with(vit.published(vit.BASE | {"depth": 0}, 16, 224).positions.rows, 0.02)
    positions, x = vit.Positions(3, 4), torch.randn(2, 3, 4)
    networks.close(positions(x), x + positions.rows)


def test_a_block_whose_last_layers_are_zero_returns_its_input():
    torch.manual_seed(0)
    block, x = vit.Block(8, 2), torch.randn(2, 5, 8)
    assert not torch.allclose(block(x), x)
    for layer in (block.attention.to_out, block.mlp[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    networks.close(block(x), x, 0)


# ---- what the order of patches means -------------------------------------------------------------


def test_patches_are_put_in_another_order_and_no_pixel_is_changed():
    x = torch.arange(2 * 2 * 4 * 6.0).view(2, 2, 4, 6)
    y = vit.reorder(x, torch.tensor([5, 0, 1, 2, 3, 4]), size=2)
    networks.close(y[:, :, :2, :2], x[:, :, 2:, 4:], 0)  # the last patch comes first
    networks.close(y[:, :, :2, 2:], x[:, :, :2, :4], 0)
    networks.close(y[:, :, 2:, 2:], x[:, :, 2:, :4], 0)
    assert vit.reorder(torch.ones(1, 1, 14, 14), torch.tensor([3, 2, 1, 0])).all()


def test_patches_and_positions_in_one_order_change_no_output_and_patches_alone_do():
    torch.manual_seed(0)
    network = vit.patch_vit()
    before = copy.deepcopy(network.state_dict())
    x, order = torch.randn(3, 1, 28, 28), torch.randperm(16)
    same = vit.reorder_positions(network, order)
    networks.close(same(vit.reorder(x, order)), network(x))
    assert not torch.allclose(network(vit.reorder(x, order)), network(x), atol=1e-3)
    networks.close(network.positions.rows, before["positions.rows"], 0)
    assert same.positions.rows.requires_grad


def test_without_positions_the_order_of_patches_is_not_seen():
    torch.manual_seed(0)
    network = vit.patch_vit()
    nn.init.zeros_(network.positions.rows)
    x = torch.randn(3, 1, 28, 28)
    networks.close(network(vit.reorder(x, torch.randperm(16))), network(x))


# ---- the digit networks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), list(zip(DIGITS, (27_978, 28_454, 27_554), strict=True))
)
def test_digit_networks_have_equal_parameters_and_an_output_for_each_class(name, parameters):
    network = on_meta(getattr(vit, name))
    assert parameters_of(network) == parameters
    assert networks.runs_on_meta(network, 3, 1, 28, 28).shape == (3, 10)


@pytest.mark.parametrize("name", DIGITS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    networks.learns(getattr(vit, name)(), torch.randn(20, 1, 28, 28), rate=0.01, steps=25)


def test_a_digit_vit_has_two_blocks_of_four_heads():
    network = on_meta(vit.patch_vit)
    assert [block.attention.n_heads for block in network.blocks] == [4, 4]


def test_the_stem_of_convolutions_is_three_of_stride_two_and_one_of_a_pixel():
    torch.manual_seed(0)
    stem, x = vit.ConvStem(2, 16), torch.randn(2, 2, 32, 24)
    layers = nn.Sequential(stem.conv1, stem.conv2, stem.conv3, stem.last)
    assert stem(x).shape == (2, 12, 16)
    networks.close(stem.eval()(x), layers.eval()(x).flatten(2).mT)
    convs = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == [3, 3, 3, 1]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 1]
    assert [conv.bias is None for conv in convs] == [True, True, True, False]


def test_the_small_cnn_has_four_convolutions_and_takes_the_mean_over_the_map():
    torch.manual_seed(0)
    network = vit.SmallCNN().eval()
    x = torch.randn(2, 1, 28, 28)
    maps = nn.Sequential(network.conv1, network.conv2, network.conv3, network.conv4)(x)
    assert maps.shape == (2, 72, 7, 7)
    networks.close(network(x), network.classifier(maps.mean((2, 3))))
    assert isinstance(network.conv4[2], nn.ReLU)


def test_digits_move_down_up_right_and_left_in_turn_and_the_background_comes_in():
    x = torch.rand(8, 1, 6, 5)
    y = vit.moved(x, 2)
    for k in (0, 4):
        networks.close(y[k, :, 2:], x[k, :, :-2], 0)
        networks.close(y[k + 1, :, :-2], x[k + 1, :, 2:], 0)
        networks.close(y[k + 2, :, :, 2:], x[k + 2, :, :, :-2], 0)
        networks.close(y[k + 3, :, :, :-2], x[k + 3, :, :, 2:], 0)
        assert (y[k, :, :2] == x.min()).all()
        assert (y[k + 3, :, :, -2:] == x.min()).all()
    networks.close(vit.moved(x, 0), x, 0)


def test_the_rate_rises_from_a_twenty_fifth_for_a_fifth_of_the_steps_and_falls_to_nothing(
    monkeypatch,
):
    rates, settings = networks.steps_of(monkeypatch, vit.training, batches=4)
    part = torch.zeros(180, 1, 28, 28), torch.zeros(180)  # four batches of 50 at most
    vit.train(nn.Linear(1, 1), part, epochs=5)
    assert (settings["weight_decay"], settings["batch"], settings["fused"]) == (0.05, 50, True)
    networks.rises_and_falls(rates, peak=0.005, at=3)


# ---- counters, positions, looking inside ---------------------------------------------------------


def test_hooks_count_the_modules_and_nothing_of_the_products_of_attention():
    network = small()
    T, D = 7, 16
    expected = 6 * 2 * 16 * D + 3 * T * (4 * D * D + 8 * D * D) + 10 * D
    x = torch.randn(1, 2, 8, 12)
    assert vit.macs_by_hooks(network, x) == expected
    assert macs_of(on_meta(small), 1, 2, 8, 12) == expected + 3 * 2 * T * T * D
    assert not network.blocks[0].mlp[0]._forward_hooks
    assert vit.macs_by_hooks(on_meta(library.vit_b_16), torch.empty(1, 3, 224, 224).to("meta")) == (
        11_271_124_992
    )


def test_noise_moves_every_weight_a_little():
    torch.manual_seed(0)
    network = nn.Linear(100, 100)
    before = copy.deepcopy(network.state_dict())
    assert vit.add_noise(network) is network
    networks.starts_with(network.weight.detach() - before["weight"], 0.05)
    assert not (network.bias == before["bias"]).any()


def test_positions_are_interpolated_as_in_torchvision_and_at_their_own_side_stay():
    torch.manual_seed(0)
    rows = torch.randn(1, 1 + 9, 4)
    state = {"encoder.pos_embedding": rows}
    theirs = library.interpolate_embeddings(80, 16, state)["encoder.pos_embedding"]
    ours = vit.resize_positions(rows, 5)
    networks.close(ours, theirs, 1e-6)
    networks.close(vit.resize_positions(rows, 3), rows)
    networks.close(ours[:, 0], rows[:, 0], 0)


def test_a_copy_gets_other_positions_and_takes_images_of_their_size():
    network = vit.patch_vit()
    rows = torch.randn(1, 37, 32)
    other = vit.with_positions(network, rows)
    networks.close(other.positions.rows, rows, 0)
    assert other.positions.rows.requires_grad
    assert other(torch.randn(2, 1, 42, 42)).shape == (2, 10)
    assert network.positions.rows.shape == (1, 17, 32)


def test_maps_of_attention_are_those_that_the_blocks_use():
    network, x = small(), torch.randn(2, 2, 8, 12)
    maps = vit.attention_maps(network, x)
    assert [tuple(weights.shape) for weights in maps] == [(2, 4, 7, 7)] * 3
    tokens = network.tokens(x)
    for block, weights in zip(network.blocks, maps, strict=True):
        normed = block.norm1(tokens)
        v = block.attention.heads(normed)[2]
        mixed = block.attention.to_out((weights @ v).transpose(1, 2).flatten(2))
        networks.close(mixed, block.attention(normed))
        tokens = block(tokens)
    assert not maps[0].requires_grad


def test_rollout_of_a_case_by_hand():
    first = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    maps = [torch.stack((2 * m, 0 * m)).unsqueeze(0) for m in (first, second)]  # mean of heads: m
    # Block 1: class = c/2 + a/2, a = a/2 + b/2; block 2: half of class, half of a.
    expected = torch.tensor([[0.25 + 0.25, 0.25]])
    networks.close(vit.rollout(maps), expected)
    flat = [torch.full((2, 3, 5, 5), 0.2)] * 2
    networks.close(vit.rollout(flat), torch.full((2, 4), 0.15))


def test_without_patches_the_network_reads_the_others_alone():
    network, x = small(), torch.randn(2, 2, 8, 12)
    scores = torch.tensor([[5.0, 0, 1, 4, 2, 3], [0.0, 5, 4, 3, 2, 1]])
    tokens = network.tokens(x)
    found = vit.without(network, x, scores, n=2)
    networks.close(found[0], network.classify(tokens[:1, [0, 2, 3, 5, 6]])[0])
    networks.close(found[1], network.classify(tokens[1:, [0, 1, 4, 5, 6]])[0])
    networks.close(vit.without(network, x, scores), vit.without(network, x, scores, n=4), 0)
    assert not found.requires_grad


# ---- the small numbers in the norms --------------------------------------------------------------


def test_layer_norms_have_the_epsilon_of_torchvision_where_tokens_hardly_vary():
    torch.manual_seed(0)
    block, x = vit.Block(8, 2), 1e-3 * torch.randn(2, 5, 8)
    theirs = on_meta(library.EncoderBlock, 2, 8, 32, 0.0, 0.0)
    networks.share_weights(block, theirs)
    networks.same_outputs(block, theirs, x)
    for layer in (block.attention.to_out, theirs.self_attention.out_proj):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # so that little reaches the second norm, too
    networks.same_outputs(block, theirs, x)
    network = small(depth=0)
    tokens = 1e-3 * torch.randn(2, 7, 16)
    normed = F.layer_norm(tokens[:, 0], (16,), network.norm.weight, network.norm.bias, 1e-6)
    networks.close(network.classify(tokens), network.classifier(normed))


def test_batch_norms_are_those_of_torch_where_maps_hardly_vary():
    torch.manual_seed(0)
    ours, x = vit.conv_norm(2, 3, stride=1), 1e-2 * torch.randn(4, 2, 6, 6)
    theirs = nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    networks.same_function(ours, theirs, x)


def test_two_networks_of_the_first_blocks_have_the_widths_and_as_many_blocks():
    size = {"depth": 5, "d_model": 12, "n_heads": 3}
    theirs, ours = vit.shallow(size, 4, 8, 2)
    assert len(theirs.encoder.layers) == len(ours.blocks) == 2
    assert theirs.encoder.layers[0].num_heads == ours.blocks[0].attention.n_heads == 3
    networks.same_function(ours, theirs, torch.randn(2, 3, 8, 8))
