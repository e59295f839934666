"""Keras layers and their twins in PyTorch and NumPy, files of Keras, of notebooks/tf_models.py."""

import copy
import io
import json
import socket
import zipfile
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from loader import definitions
from networks import close

net = definitions("tf_models")
# Keras 3.15 asks NumPy for arrays in a way that NumPy 2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = (2, 7, 6, 4)


@pytest.fixture(scope="module")
def layers():
    """Keras's layers, imported as the notebook does: with PyTorch below, in a folder of its own."""
    assert net.BACKEND == "torch" and net.keras.backend.backend() == "torch"
    return net.layers


def compared(make, shape=SHAPE, numbers=(0, 1)):
    """Twin, Keras and NumPy give the same for a layer."""
    for number in numbers:
        twin, keras = net.three(make, shape, number)
        assert max(twin, keras) < 1e-5


@torch.no_grad()
def twin_of(layer, x, number=0):
    """(outputs of the twin in Keras's axes, outputs of Keras) with random weights."""
    net.called(layer, x)
    net.randomise(layer, number)
    found = net.last(net.twin(layer).eval()(net.first(torch.from_numpy(x))))
    return found, net.called(layer, x)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# ---- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, expected",
    [
        ((6, 3, 2), (0, 1)),
        ((7, 3, 2), (1, 1)),
        ((224, 3, 2), (0, 1)),
        ((224, 7, 2), (2, 3)),
        ((5, 1, 3), (0, 0)),
        ((5, 2), (0, 1)),
        ((13, 6, 5), (1, 2)),  # TensorFlow's own drawn example
        ((7, 4, 3), (1, 2)),
    ],
)
def test_same_padding_in_cases_by_hand(case, expected):
    assert net.same_padding(*case) == expected


def test_same_padding_leaves_just_enough_for_the_outputs():
    for n in range(1, 12):
        for kernel in range(1, 8):
            for stride in range(1, 5):
                before, after = net.same_padding(n, kernel, stride)
                outputs = (n + before + after - kernel) // stride + 1
                assert 0 <= after - before <= 1
                assert outputs == -(-n // stride) or (before, after) == (0, 0)


def test_a_map_is_padded_on_each_axis_by_its_own_size_and_value():
    x = torch.ones(1, 1, 6, 7)
    y = net.SamePad((3, 5), (2, 1), value=-2.0)(x)
    assert y.shape == (1, 1, 7, 11)
    close(y[0, 0, :6, 2:9], x[0, 0])
    assert (y[0, 0, 6] == -2).all() and (y[..., :2] == -2).all() and (y[..., 9:] == -2).all()


# ---- layer by layer ------------------------------------------------------------------------------


def test_each_case_of_the_page_is_equal_three_times(layers):
    for name, (make, shape) in net.CASES.items():
        twin, keras = net.three(make, shape, 5)
        assert twin < 1e-5, name
        # the average with uneven padding depends on the version of Keras
        assert keras < 1e-5 or name == "AveragePooling2D", name


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, (2, 3)])
@pytest.mark.parametrize("size", [1, 2, (3, 2), 4])
def test_convolutions(layers, size, strides, padding):
    # TensorFlow wants equal strides in depth-wise layers
    equal = strides if strides == 1 else 2
    compared(lambda: layers.Conv2D(3, size, strides, padding), numbers=(0,))
    compared(lambda: layers.DepthwiseConv2D(size, equal, padding, depth_multiplier=2), numbers=(0,))
    how = {"depth_multiplier": 3}
    compared(lambda: layers.SeparableConv2D(3, size, equal, padding, **how), numbers=(0,))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, (3, 2), 4])
def test_transposed_convolutions(layers, stride, padding):
    for size in (1, 2, (3, 2), 5):
        compared(
            lambda size=size: layers.Conv2DTranspose(3, size, stride, padding),
            (1, 3, 4, 2),
            numbers=(0,),
        )


def test_a_transposed_convolution_by_hand(layers):
    layer = layers.Conv2DTranspose(1, (1, 3), (1, 2), "same", use_bias=False)
    x = np.array([1.0, 10.0], dtype="float32").reshape(1, 1, 2, 1)
    layer(x)
    layer.set_weights([np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)])
    found = net.twin(layer)(net.first(torch.from_numpy(x))).flatten()
    close(found, torch.tensor([1.0, 2.0, 3.0 + 10.0, 20.0]))  # the last, 30, falls away
    assert net.cropped(3, 2, "same") == (0, 1) and net.cropped(5, 2, "same") == (1, 2)
    assert net.cropped(2, 4, "same") == (0, -2) == net.cropped(2, 4, "valid")
    assert net.cropped(5, 2, "valid") == (0, 0)


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose"])
def test_layers_without_a_bias(layers, kind):
    first = () if kind == "DepthwiseConv2D" else (3,)
    size = () if kind == "Dense" else (2,)
    layer = getattr(layers, kind)(*first, *size, use_bias=False)
    found, expected = twin_of(layer, noise(2, 4) if kind == "Dense" else noise(*SHAPE))
    close(found, expected)
    # a parameter for each weight; a transposed one adds its shift last, zeros here
    twin = net.twin(layer)
    assert sum(p.count_nonzero() for p in twin.parameters()) == layer.count_params()
    separable = layers.SeparableConv2D(3, 2, use_bias=False)
    close(*twin_of(separable, noise(*SHAPE)))
    assert len(list(net.twin(separable).parameters())) == 2


def test_a_convolution_in_groups(layers):
    close(*twin_of(layers.Conv2D(6, 3, groups=2), noise(*SHAPE)))


def test_the_outputs_of_a_depthwise_layer_stand_by_channel(layers):
    layer = layers.DepthwiseConv2D(1, depth_multiplier=2, use_bias=False)
    x = np.array([1.0, 10.0], dtype="float32").reshape(1, 1, 1, 2)
    layer(x)
    layer.set_weights([np.array([2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 2, 2)])
    expected = [2.0, 3.0, 40.0, 50.0]
    assert net.twin(layer)(net.first(torch.from_numpy(x))).flatten().tolist() == expected
    layer.use_bias = True


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pools(layers, padding):
    for size, stride in ((2, 2), (3, 2), ((3, 2), (1, 2)), (2, 3)):
        compared(
            lambda size=size, stride=stride: layers.MaxPooling2D(size, stride, padding),
            numbers=(0,),
        )
        twin, keras = net.three(
            lambda size=size, stride=stride: layers.AveragePooling2D(size, stride, padding),
            SHAPE,
            0,
        )
        assert twin < 1e-5
        assert padding == "same" or keras < 1e-5


def test_a_maximum_of_negative_numbers_is_not_that_of_the_padding(layers):
    x = -np.ones((1, 3, 3, 1), dtype="float32")
    pool = layers.MaxPooling2D(2, 2, "same")
    assert net.twin(pool)(net.first(torch.from_numpy(x))).max() == -1
    assert net.by_hand(pool, x).max() == -1


def test_an_average_leaves_the_padding_out(layers):
    x = np.array([10.0, 20.0], dtype="float32").reshape(1, 1, 2, 1)
    pool = layers.AveragePooling2D((1, 3), (1, 2), "same")
    assert net.by_hand(pool, x).item() == 15
    assert net.twin(pool)(net.first(torch.from_numpy(x))).item() == 15


def test_norms_take_epsilon_and_momentum(layers):
    compared(lambda: layers.BatchNormalization(epsilon=0.3, momentum=0.7))
    compared(lambda: layers.LayerNormalization(epsilon=0.3), (2, 5, 8))
    layer = layers.BatchNormalization(momentum=0.7)
    layer(noise(*SHAPE))
    assert abs(net.twin(layer).momentum - 0.3) < 1e-9


def test_a_norm_s_twin_learns_the_same_mean_and_another_variance(layers):
    x = noise(2, 2, 2, 3)
    layer = layers.BatchNormalization(momentum=0.5)
    layer(x)
    twin = net.twin(layer).train()
    layer(x, training=True)
    twin(net.first(torch.from_numpy(x)))
    mean, variance = net.tensors(layer)[2:]
    close(mean, twin.running_mean)
    close((variance - 0.5) * 8 / 7, twin.running_var - 0.5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_give_all_outputs_or_the_last(layers, kind):
    x = noise(2, 5, 3)
    every = getattr(layers, kind)(4, return_sequences=True)
    found, expected = twin_of(every, x)
    assert found.shape == (2, 5, 4)
    close(found, expected)
    found, expected = twin_of(getattr(layers, kind)(4), x)
    assert found.shape == (2, 4)
    close(found, expected)
    compared(lambda: getattr(layers, kind)(4, return_sequences=True), (2, 5, 3))


def test_gates_come_in_another_order():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert net.in_order(weight, (1, 0, 2)).flatten().tolist() == [3, 4, 1, 2, 5, 6]


def test_attention_with_several_heads(layers):
    compared(lambda: layers.MultiHeadAttention(2, 4), (2, 5, 8))
    compared(lambda: layers.MultiHeadAttention(3, 2), (1, 4, 6))


def test_layers_without_weights(layers):
    compared(lambda: layers.ZeroPadding2D(((1, 2), (3, 0))))
    compared(lambda: layers.ReLU())
    compared(lambda: layers.ReLU(0.5))
    compared(lambda: layers.Flatten())
    compared(lambda: layers.GlobalAveragePooling2D())
    compared(lambda: layers.Embedding(9, 5), (3, 4))


def test_flatten_has_the_channels_fastest():
    x = torch.arange(12).view(1, 2, 2, 3)  # two channels of 0 to 5 and of 6 to 11
    assert net.FlattenLast()(x).tolist() == [[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]


def test_axes_change_for_maps_only():
    x = torch.zeros(2, 3, 4, 5)
    assert net.first(x).shape == (2, 5, 3, 4) and net.last(net.first(x)).shape == x.shape
    assert net.first(x[0]).shape == net.last(x[0]).shape == (3, 4, 5)


def test_windows_see_what_they_should():
    x = np.arange(1.0, 7.0).reshape(1, 6, 1, 1)
    seen = net.windows(x, (3, 1), (2, 1), "same")[0, :, 0, 0, :, 0]
    assert seen.tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 0]]
    seen = net.windows(x, (4, 1), (3, 1), "same", fill=9)[0, :, 0, 0, :, 0]
    assert seen.tolist() == [[1, 2, 3, 4], [4, 5, 6, 9]]
    assert net.windows(x, (2, 1), (2, 1), "valid").shape == (1, 3, 1, 1, 2, 1)


def test_what_has_no_twin_is_named(layers):
    with pytest.raises(TypeError, match=r"no twin is known for Softmax \('answer'\)"):
        net.twin(layers.Softmax(name="answer"))
    with pytest.raises(TypeError, match="Softmax is not written out"):
        net.by_hand(layers.Softmax(), noise(1, 2))


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "SeparableConv2D", "Conv2DTranspose"])
def test_an_activation_within_a_layer_is_refused(layers, kind):
    size = () if kind == "Dense" else (2,)
    layer = getattr(layers, kind)(3, *size, activation="relu", name="both")
    layer(noise(*SHAPE))
    with pytest.raises(ValueError, match="'both': put the activation in a layer of its own"):
        net.twin(layer)
    deep = layers.DepthwiseConv2D(2, activation="relu")
    deep(noise(*SHAPE))
    with pytest.raises(ValueError, match="put the activation"):
        net.twin(deep)


def test_what_torch_cannot_do_is_refused(layers):
    gru = layers.GRU(3, reset_after=False)
    gru(noise(1, 2, 3))
    with pytest.raises(ValueError, match="reset_after=False"):
        net.twin(gru)
    attention = layers.MultiHeadAttention(2, 3)
    attention(noise(1, 4, 8), noise(1, 4, 8))
    with pytest.raises(ValueError, match="needs 8 = heads"):
        net.twin(attention)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        net.loaded(nn.Linear(2, 3), torch.zeros(3, 2))
    with pytest.raises(RuntimeError):
        net.loaded(nn.Linear(2, 3, bias=False), torch.zeros(2, 3))


def test_random_weights_hide_nothing(layers):
    layer = layers.BatchNormalization()
    layer(noise(*SHAPE))
    net.randomise(layer, 0)
    first = np.concatenate(layer.get_weights())
    assert first.min() >= 0.1 and first.max() <= 0.9 and len(set(first)) == 16
    net.randomise(layer, 1)
    assert not np.allclose(first, np.concatenate(layer.get_weights()))


def test_the_least_and_largest_bias_of_the_forget_gate():
    bias = [torch.arange(8.0), torch.full((8,), 0.5)]
    assert net.forget_bias(bias, 2) == "2.50 to 3.50"


# ---- where padding agrees ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, expected",
    [
        ((7, 3, 2), True),
        ((6, 3, 2), False),
        ((8, 5, 1), True),
        ((8, 4, 1), False),  # one output more
        ((7, 2, 2), False),
        ((7, 7, 3), True),
        ((8, 7, 3), False),
        ((8, 1, 3), True),
    ],
)
def test_where_symmetric_padding_agrees(layers, case, expected):
    torch.manual_seed(0)
    assert net.predicted(*case) == expected == net.agree(*case)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(layers):
    """A network of digits with random weights."""
    network = net.digits_network()
    for layer in network.layers:
        net.randomise(layer, 0)
    return network


def test_the_network_of_digits_is_as_the_page_says(digits):
    kinds = [type(layer).__name__ for layer in digits.layers]
    assert kinds == ["Conv2D", "BatchNormalization", "ReLU"] * 3 + ["Flatten", "Dense"]
    maps = [tuple(layer.output.shape[1:]) for layer in digits.layers[::3]]
    assert maps == [(14, 14, 8), (7, 7, 16), (4, 4, 32), (512,)]
    convs = digits.layers[:9:3]
    assert all(c.strides == (2, 2) and c.kernel_size == (3, 3) for c in convs)
    assert not any(c.use_bias for c in convs) and digits.output_shape == (None, 10)


def test_a_chain_has_a_twin(digits):
    x = noise(2, 28, 28, 1)
    with torch.no_grad():
        close(net.twin(digits).eval()(net.first(torch.from_numpy(x))), digits(x))


def mistaken(digits, name):
    right = net.twin(digits).eval()
    wrong = copy.deepcopy(right)
    net.MISTAKES[name](wrong)
    return right, wrong


def test_symmetric_padding_stands_in_the_place_of_same(digits):
    _, wrong = mistaken(digits, "padding=1")
    assert [wrong[i][0].padding for i in (0, 3, 6)] == [(1, 1, 1, 1)] * 3
    x = torch.randn(1, 1, 28, 28)
    close(wrong[0](x), F.conv2d(x, wrong[0][1].weight, stride=2, padding=1))


def test_the_epsilon_of_torch_is_set(digits):
    right, wrong = mistaken(digits, "epsilon 1e-5")
    assert {right[i].eps for i in (1, 4, 7)} == {1e-3}
    assert {wrong[i].eps for i in (1, 4, 7)} == {1e-5}


def test_kernels_are_turned_and_nothing_else(digits):
    right, wrong = mistaken(digits, "kernels turned")
    for i in (0, 3, 6):
        close(wrong[i][1].weight, right[i][1].weight.transpose(2, 3))
    close(wrong[10].weight, right[10].weight)


def test_flatten_is_torch_s(digits):
    right, wrong = mistaken(digits, "nn.Flatten")
    assert [type(part) for part in wrong[9:]] == [nn.Flatten, nn.Linear]
    assert [type(part) for part in wrong[:9]] == [type(part) for part in right[:9]]


def test_no_mistake_changes_nothing(digits):
    right, wrong = mistaken(digits, "none")
    assert str(right) == str(wrong)


def test_what_a_mistake_does_is_counted(digits, capsys):
    x = torch.from_numpy(noise(20, 1, 28, 28))
    answers = torch.from_numpy(digits.predict(net.last(x).numpy(), verbose=0)).argmax(1)
    assert net.carried(digits, (x, answers), net.MISTAKES["none"])[:2] == (1.0, 0)

    def inverted(network):
        network[-1].weight.data.zero_()  # no scores but the first, of 0
        network[-1].bias.data.fill_(-1e-9)
        network[-1].bias.data[0] = 0

    right, changed, difference = net.carried(digits, (x, answers), inverted)
    assert changed == (answers != 0).sum() and right == 1 - changed / 20
    assert abs(difference - 1) < 1e-6
    assert capsys.readouterr().out == ""  # no bar in the page


def test_training_learns_and_depends_on_the_seed_alone(layers):
    torch.manual_seed(1)
    x = torch.randn(100, 1, 28, 28)
    y = torch.arange(100) % 2
    x[y == 1] += 1
    first, again, other = (net.trained((x, y), number) for number in (3, 3, 4))
    close(net.tensors(first.layers[-1])[0], net.tensors(again.layers[-1])[0])
    assert not torch.allclose(*(net.tensors(n.layers[-1])[0] for n in (first, other)))
    found = first(net.last(x), training=True).argmax(1)
    assert (found == y).double().mean() > 0.95


def test_the_gain_of_a_smaller_epsilon(layers):
    assert abs(net.gain(0.001) - (0.002 / 0.00101) ** 0.5) < 1e-4
    assert abs(net.gain(1.0) - 1) < 1e-3


# ---- a whole network -----------------------------------------------------------------------------


def test_mending_changes_strided_convolutions_and_norms():
    network = net.mend(models.mobilenet_v2())
    pads = [part for part in network.modules() if isinstance(part, net.SamePad)]
    strided = [
        part for part in network.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)
    ]
    assert len(pads) == len(strided) == 5
    assert {part.padding for part in strided} == {(0, 0)}
    others = [
        part
        for part in network.modules()
        if isinstance(part, nn.Conv2d) and part.stride == (1, 1) and part.kernel_size == (3, 3)
    ]
    assert {part.padding for part in others} == {(1, 1)}
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {part.eps for part in norms} == {1e-3} and len(norms) == 52
    with torch.device("meta"):
        left = net.mend(models.mobilenet_v2(), padding=False, epsilon=0.5)
    assert not any(isinstance(part, net.SamePad) for part in left.modules())
    assert {p.eps for p in left.modules() if isinstance(p, nn.BatchNorm2d)} == {0.5}


@pytest.fixture(scope="module")
def pair(layers):
    """A small network of Keras, and one of torch in its twin's place, with other weights."""
    make = net.keras.Sequential
    chain = make(
        [
            net.keras.Input((9, 8, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    source = net.keras.Model(chain.inputs, chain.outputs[0])
    target = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(True), net.FlattenLast()
    )
    return source, target.append(nn.Linear(80, 5))


def test_weights_are_carried_by_rank_and_differences_found_by_depth(pair):
    source, target = pair
    x = torch.from_numpy(noise(2, 3, 9, 8))
    net.measured(source, x)
    wrong = copy.deepcopy(target)
    right = net.mend(copy.deepcopy(target))
    net.carry(source, right)
    net.carry(source, wrong)
    found = net.along(source, right, x)
    assert len(found) == 2 and max(found) < 1e-5
    assert min(net.along(source, wrong, x)) > 1e-2
    # no hook is left
    assert not any(part._forward_hooks for part in right.modules())


def test_what_cannot_be_carried_is_told_apart(pair):
    source, target = pair
    with pytest.raises(ValueError, match="3 layers have weights, in the target 2"):
        net.carry(source, target[:2])
    with pytest.raises(ValueError, match="does not fit"):
        net.carry(source, nn.Sequential(*target[:4], nn.Linear(80, 6)))


def test_averages_are_those_of_the_images(pair):
    source, _ = pair
    x = torch.from_numpy(noise(3, 3, 9, 8, seed=4))
    net.measured(source, x)
    (norm,) = net.norms_of(source)
    with torch.no_grad():
        seen = source.layers[1](net.last(x))
    mean, variance = net.tensors(norm)[2:]
    close(mean, seen.mean((0, 1, 2)))
    close(variance, seen.var((0, 1, 2), correction=0))
    assert norm.momentum == 0.99


def test_nothing_asks_the_network(layers):
    def refused(*_):
        raise AssertionError("asks another host")

    with patch.object(socket.socket, "connect", refused), patch("socket.getaddrinfo", refused):
        network = net.keras.applications.MobileNetV2(weights=None)
        assert network.count_params() == 3_538_984
        net.trained((torch.randn(20, 1, 28, 28), torch.zeros(20)), 0)


# ---- files ---------------------------------------------------------------------------------------


def test_h5py_reads_what_keras_holds(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    config, weights = net.read_keras(tmp_path / "digits.keras")
    assert config["class_name"] == "Sequential"
    assert list(weights) != [] and set(weights) == {layer.name for layer in digits.layers}
    for layer in digits.layers:
        for ours, theirs in zip(weights[layer.name], layer.get_weights(), strict=True):
            assert np.array_equal(ours, theirs)


def test_a_file_by_hand(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "scores"
        for i in range(11):  # ten stands between one and two in the order of letters
            group[str(i)] = np.full(2, i)
    with zipfile.ZipFile(tmp_path / "hand.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "made up"}))
        archive.writestr("model.weights.h5", content.getvalue())
    config, weights = net.read_keras(tmp_path / "hand.keras")
    assert config == {"class_name": "made up"}
    assert [value[0] for value in weights["scores"]] == list(range(11))


def test_broken_files_are_named(tmp_path):
    file = tmp_path / "broken.keras"
    file.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ValueError, match=r"broken\.keras is no \.keras file"):
        net.read_keras(file)
    for left, missing in (("config.json", "model.weights.h5"), ("model.weights.h5", "config.json")):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(left, "{}")
        with pytest.raises(ValueError, match=f"broken.keras has no {missing}: save"):
            net.read_keras(file)


def test_code_in_a_file_runs_only_without_the_guard(layers, tmp_path):
    mark = tmp_path / "mark"
    net.trap(str(mark)).save(tmp_path / "trap.keras")
    assert mark.exists()
    load = net.keras.saving.load_model
    said, ran = net.outcome(lambda: load(tmp_path / "trap.keras"), mark)
    assert "Lambda" in said and not ran and not said.endswith(".")
    guardless = net.outcome(lambda: load(tmp_path / "trap.keras", safe_mode=False), mark)
    assert guardless == ("loads", True)
    assert net.outcome(lambda: net.read_keras(tmp_path / "trap.keras"), mark) == ("loads", False)


def test_a_call_that_runs_and_then_fails_has_run(tmp_path):
    def call():
        (tmp_path / "mark").touch()
        raise ValueError("broken. For good.")

    assert net.outcome(call, tmp_path / "mark") == ("broken", True)


def test_a_network_from_its_file_alone(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    found = net.without_keras(tmp_path / "digits.keras").eval()
    x = noise(2, 28, 28, 1)
    with torch.no_grad():
        close(found(net.first(torch.from_numpy(x))), digits(x))


# ---- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_colours_are_prepared_as_keras_does(layers, mode):
    x = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 3))
    expected = net.keras.applications.imagenet_utils.preprocess_input(x.copy(), mode=mode)
    assert np.allclose(net.preprocessed(x, mode), expected, atol=1e-4)


def test_red_by_hand(layers):
    red = np.array([255.0, 0.0, 0.0])
    assert net.preprocessed(red, "tf").tolist() == [1, -1, -1]
    assert net.preprocessed(red, "caffe")[2] == 255 - 123.68
    assert net.preprocessed(red, "none").tolist() == [255, 0, 0]
    modes = [net.mode_of(n) for n in ("mobilenet_v2", "resnet", "densenet", "efficientnet")]
    assert modes == ["tf", "caffe", "torch", "none"]


def test_rows_of_a_kernel_in_the_order_of_torch():
    x = torch.randn(5, 2, 3, 4)  # (B, C, H, W)
    kernel = torch.randn(24, 6)
    expected = net.FlattenLast()(x) @ kernel
    close(x.flatten(1) @ net.rows_for_torch(kernel, 2), expected)
