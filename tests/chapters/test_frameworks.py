"""Gradients, layers, traced graphs and timing by hand, of notebooks/frameworks.py."""

import gc
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loader import definitions

net = definitions("frameworks")


def tensor(x):
    return net.Tensor(np.asarray(x, dtype=float), requires_grad=True)


def gradients(function, *arrays):
    """Ours and torch's gradients of the sum of a function of arrays."""
    ours = [tensor(x) for x in arrays]
    theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
    y = function(*ours)
    z = function(*theirs)
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=1e-13)
    net.backward((y * weights_of(y.shape)).total(axis=None))
    (z * torch.tensor(weights_of(z.shape))).sum().backward()
    return [x.grad.data for x in ours], [x.grad.numpy() for x in theirs]


def weights_of(shape):
    """So that the gradients of the entries differ."""
    return np.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)


A = np.random.default_rng(0).normal(size=(3, 4))
B = np.random.default_rng(1).normal(size=(3, 4))

# ---- operators -----------------------------------------------------------------------------------

SAME = {  # what is written alike with our tensors and with torch's
    "add": (lambda a, b: a + b, A, B),
    "add a number": (lambda a: 3 + a + 2, A),
    "subtract": (lambda a, b: a - b, A, B),
    "from a number": (lambda a: 3 - a, A),
    "less a number": (lambda a: a - 3, A),
    "multiply": (lambda a, b: a * b, A, B),
    "times a number": (lambda a: 3 * a * 2, A),
    "divide": (lambda a, b: a / b, A, B),
    "power": (lambda a: a**3, A),
    "exponent": (lambda a, b: abs_of(a) ** b, A, B),
    "matmul": (lambda a, b: a @ b.mT, A, B),
    "matmul of batches": (lambda a, b: a @ b, A.reshape(3, 2, 2), B.reshape(3, 2, 2)),
    "matmul, one of them repeated": (lambda a, b: a @ b, A.reshape(3, 2, 2), B[:2, :2]),
    "mT": (lambda a: a.mT * 2, A),
    "mT of a batch": (lambda a: a.mT * 2, A.reshape(3, 2, 2)),
    "exp": (lambda a: a.exp(), A),
    "log": (lambda a: (a * a).log(), A),
    "tanh": (lambda a: a.tanh(), A),
    "relu": (lambda a: a.relu(), A),
    "reshape": (lambda a: a.reshape(shape=(2, 6)), A),
    "take a row": (lambda a: a[1], A),
    "take one entry twice": (lambda a: a[[0, 0, 2]], A),
    "take entries": (lambda a: a[[0, 1, 1], [3, 2, 2]], A),
    "a row repeated": (lambda a, b: a * b, A, B[0]),
    "a column repeated": (lambda a, b: a * b, A, B[:, :1]),
    "a row of one repeated": (lambda a, b: a + b, A[:1], B),
    "both repeated": (lambda a, b: a * b, A[:1], B[:, :1]),
    "a number repeated": (lambda a, b: a * b, A[0, 0], B),
    "used twice": (lambda a: a * a + a, A),
}


def abs_of(a):
    return (a * a + 1) ** 0.5


@pytest.mark.parametrize("name", SAME)
def test_an_operator_has_torchs_value_and_gradient(name):
    function, *arrays = SAME[name]
    for ours, theirs in zip(*gradients(function, *arrays), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


PAIRS = {  # named otherwise in torch
    "total": (lambda a: a.total(axis=0), lambda a: a.sum(0, keepdim=True)),
    "total of two": (lambda a: a.total(axis=(0, 1)), lambda a: a.sum((0, 1), keepdim=True)),
    "total of all": (lambda a: a.total(axis=None), lambda a: a.sum((0, 1), keepdim=True)),
    "largest": (lambda a: a.largest(axis=1), lambda a: a.amax(1, keepdim=True)),
    "transpose": (lambda a: a.transpose(axes=(1, 0)), lambda a: a.permute(1, 0)),
    "transpose of three": (
        lambda a: a.reshape(shape=(3, 2, 2)).transpose(axes=(2, 0, 1)),
        lambda a: a.reshape(3, 2, 2).permute(2, 0, 1),
    ),
    "softmax": (lambda a: net.softmax(a), lambda a: a.softmax(-1)),
    "pool": (
        lambda a: net.pool(a.reshape(shape=(1, 1, 2, 6))),
        lambda a: F.avg_pool2d(a.reshape(1, 1, 2, 6), 2),
    ),
    "pad": (
        lambda a: net.pad(a.reshape(shape=(1, 1, 2, 6)), 2),
        lambda a: F.pad(a.reshape(1, 1, 2, 6), (2, 2, 2, 2)),
    ),
    "put": (
        lambda a: a.put(index=([1, 0, 1],), shape=(2, 4)),
        lambda a: torch.zeros(2, 4).double().index_add(0, torch.tensor([1, 0, 1]), a),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_operator_does_what_torch_does_under_another_name(name):
    ours, theirs = PAIRS[name]

    def both(a):
        return (ours if isinstance(a, net.Tensor) else theirs)(a)

    for found, expected in zip(*gradients(both, A), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_equal_largest_values_share_the_gradient():
    def largest(x):
        return net.largest(x)

    ours, theirs = gradients(largest, [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(ours, theirs)
    np.testing.assert_allclose(ours[0][0], [0, 0.5, 0.5])


def test_relu_has_no_slope_at_zero():
    x = tensor([-1.0, 0.0, 2.0])
    net.backward(x.relu().total(axis=0))
    assert x.grad.data.tolist() == [0, 0, 1]


def test_windows_are_those_of_a_convolution():
    x = np.arange(2 * 3 * 5 * 6.0).reshape(2, 3, 5, 6)
    found = net.windows_of(x, 3)
    assert found.shape == (2, 3, 3, 4, 3, 3)
    assert (found[1, 2, 1, 3] == x[1, 2, 1:4, 3:6]).all()


def test_windows_laid_on_an_image_add_up():
    ones = np.ones((1, 1, 2, 3, 2, 2))
    assert net.laid(ones, 2, (1, 1, 3, 4))[0, 0].tolist() == [
        [1, 2, 2, 1],
        [2, 4, 4, 2],
        [1, 2, 2, 1],
    ]


def test_cutting_windows_has_a_second_derivative():
    x = tensor(np.random.default_rng(2).normal(size=(1, 1, 4, 4)))
    y = net.Windows.cut(x, k=3)
    net.backward((y * y * y).total(axis=None), create_graph=True)
    g = x.grad
    x.grad = None
    net.backward((g * g).total(axis=None))
    t = torch.tensor(x.data, requires_grad=True)
    z = t.unfold(2, 3, 1).unfold(3, 3, 1)
    (first,) = torch.autograd.grad((z**3).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), t)
    np.testing.assert_allclose(x.grad.data, second.numpy(), rtol=1e-12)


# ---- backward ------------------------------------------------------------------------------------


def test_the_figures_numbers_by_hand():
    a, b = tensor(2), tensor(3)
    net.backward((a * b + a) ** 2)
    assert a.grad.data == 2 * 8 * 4
    assert b.grad.data == 2 * 8 * 2


def test_a_gradient_passes_through_a_node_once_all_its_users_have_told():
    x = tensor(1.5)
    y = x * x
    z = y * y + y  # y is used twice, at two depths
    net.backward(z * y)
    assert x.grad.data == pytest.approx(6 * 1.5**5 + 4 * 1.5**3)


def test_many_uses_take_no_exponential_time():
    x = tensor(1.0)
    y = x
    for _ in range(200):
        y = y * 0.5 + y * 0.5
    net.backward(y)
    assert x.grad.data == 1


def test_order_puts_parents_first():
    a, b = tensor(1), tensor(2)
    c = a * b
    d = c + a
    order = list(net.in_order(d, {}))
    assert set(order) == {a, b, c, d}
    assert order.index(c) > max(order.index(a), order.index(b))
    assert order[-1] is d
    assert list(net.in_order(net.Tensor(1), {})) == []


def test_gradients_add_up_in_leaves_alone():
    x = tensor(3.0)
    y = x * x
    net.backward(y)
    net.backward(y)
    assert x.grad.data == 12
    assert y.grad is None


def test_constants_get_no_gradient():
    x, c = tensor(2.0), net.Tensor(5.0)
    net.backward(x * c)
    assert x.grad.data == 5
    assert c.grad is None
    assert not (c * 2).requires_grad
    assert (c * 2).parents == ()


@pytest.mark.parametrize("given", [[1, 2], np.ones(2, dtype="float32")])
def test_all_numbers_are_float64(given):
    x = net.Tensor(given)
    assert x.data.dtype == np.float64
    assert x.shape == (2,) and not x.requires_grad and x.grad is None


def test_backward_wants_one_number():
    with pytest.raises(AssertionError, match="one number"):
        net.backward(tensor([1.0, 2.0]))


def test_nothing_is_recorded_when_switched_off():
    x = tensor(2.0)
    with net.recording(False):
        y = x * x
    assert not y.requires_grad and y.parents == ()
    assert (x * x).requires_grad
    with pytest.raises(ZeroDivisionError), net.recording(False):
        1 / 0  # noqa: B018
    assert net.Tensor.recording is True


def test_gradients_are_recorded_only_if_asked():
    x = tensor(2.0)
    net.backward(x**3)
    assert not x.grad.requires_grad
    x.grad = None
    net.backward(x**3, create_graph=True)
    first = x.grad
    x.grad = None
    net.backward(first)
    assert x.grad.data == 12


def test_arrays_leave_the_operator_to_the_tensor():
    y = np.ones(3) * tensor([1.0, 2.0, 3.0])
    assert isinstance(y, net.Tensor)
    assert y.data.dtype == np.float64
    assert isinstance(np.ones(3) + tensor([1.0, 2.0, 3.0]), net.Tensor)


@pytest.mark.parametrize(
    ("given", "shape"),
    [((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), (1, 3)), ((2, 3), ()), ((4, 2, 3), (2, 1))],
)
def test_shrinking_sums_what_was_repeated(given, shape):
    g = net.Tensor(np.arange(np.prod(given, dtype=float)).reshape(given))
    t = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    t.expand(given).backward(torch.tensor(g.data))
    found = net.shrink(g, shape)
    assert found.shape == shape
    assert (found.data == t.grad.numpy()).all()


def test_shrinking_leaves_what_fits():
    g = net.Tensor(np.ones((2, 1)))
    assert net.shrink(g, (2, 1)) is g


# ---- random expressions --------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(10, 16))
def test_random_expressions_have_torchs_gradients(number):
    rng = np.random.default_rng(number)
    leaves = [rng.normal(size=shape) for shape in net.LEAVES]
    gaps = net.both(net.expression(rng), leaves)
    assert set(gaps) == {"value", "gradient", "gradient of its square"}
    assert gaps["value"] < 1e-12 and gaps["gradient"] < 1e-12
    assert gaps["gradient of its square"] < 1e-9


@pytest.mark.parametrize("step", range(14))
def test_each_step_of_the_expressions_is_tried(step):
    rng = np.random.default_rng(step)
    leaves = [rng.normal(size=shape) for shape in net.LEAVES]
    for i in range(len(leaves)):
        for j in range(len(leaves)):
            assert max(net.both([(step, i, j)], leaves).values()) < 1e-9


def test_each_step_by_numpy():
    a, b = A, B[0]
    wide = [
        lambda a, b: np.tanh(a @ a.T) @ a,
        lambda a, b: a[[0, 2, 0]] * b,
        lambda a, b: a.T.reshape(3, 4) + b,
        lambda a, b: 2 - a[1, 1:3][[0, 1, 1, 0]],
    ]
    by_numpy = [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: np.tanh(a) * b,
        lambda a, b: a / (b**2 + 1),
        lambda a, b: np.exp(np.tanh(a)) - 2,
        lambda a, b: np.log(a**2 + 1),
        lambda a, b: np.maximum(a, 0) * b,
        lambda a, b: (b**2 + 1) ** np.tanh(a),
        lambda a, b: a.max(1, keepdims=True) - b,
        lambda a, b: a.sum(1, keepdims=True) * np.tanh(b),
        *wide,
    ]
    for step, expected in zip(net.STEPS, by_numpy, strict=True):
        np.testing.assert_allclose(step(tensor(a), tensor(b)).data, expected(a, b), rtol=1e-12)
    leaves = [tensor(np.full(shape, 0.5)) for shape in net.LEAVES]
    values = [*(np.full(shape, 0.5) for shape in net.LEAVES), np.full((3, 4), 1.0)]
    total = sum(np.tanh(value).sum() for value in values)
    assert net.evaluated([(0, 0, 1)], leaves).data.item() == pytest.approx(total)
    values[-1] = np.full((3, 4), 0.25)  # made (3, 4) before three of its rows are taken
    total = sum(np.tanh(value).sum() for value in values)
    assert net.evaluated([(11, 1, 2)], leaves).data.item() == pytest.approx(total)


def test_an_expression_reaches_all_steps_and_what_it_made():
    rng = np.random.default_rng(0)
    plans = [net.expression(rng) for _ in range(200)]
    assert {len(plan) for plan in plans} == {8}
    assert {int(line[0]) for plan in plans for line in plan} == set(range(len(net.STEPS)))
    for plan in plans:
        for place, (_, i, j) in enumerate(plan):
            assert min(i, j) >= 0 and max(i, j) < len(net.LEAVES) + place
    last = {int(i) for plan in plans for i in plan[-1][1:]}
    assert last == set(range(len(net.LEAVES) + 7))
    assert len(net.expression(rng, 3)) == 3


def test_apart_is_relative_to_the_largest_of_all():
    ours = [net.Tensor([10.0, 1.0]), net.Tensor([[1.0]])]
    theirs = [torch.tensor([10.0, 1.0]), torch.tensor([[2.0]])]
    assert net.apart(ours, theirs) == pytest.approx(0.1)


# ---- layers --------------------------------------------------------------------------------------


def two_layers():
    class Two(net.Layer):
        def __init__(self):
            self.first = net.Dense(3)
            self.second = net.Dense(2)
            self.size = 7

        def call(self, x):
            return self.second(self.first(x))

    return Two()


def test_a_layer_is_built_once_at_its_first_call():
    layer = net.Dense(3)
    assert layer.parameters() == {} and not layer.built
    x = net.Tensor(np.ones((5, 4)))
    y = layer(x)
    weight = layer.weight
    assert layer.built and y.shape == (5, 3)
    assert layer(x).data.tolist() == y.data.tolist()
    assert layer.weight is weight
    assert weight.shape == (3, 4) and layer.bias.shape == (3,)


def test_new_parameters_are_small_and_need_a_gradient():
    np.random.seed(0)
    weight = net.parameter(200, 100)
    assert weight.requires_grad and weight.shape == (200, 100)
    assert abs(weight.data).max() <= 0.1
    assert abs(weight.data).max() > 0.099 and weight.data.min() < -0.099


def test_parameters_have_dotted_names():
    layer = two_layers()
    layer(net.Tensor(np.ones((5, 4))))
    names = ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert list(layer.parameters()) == names
    assert list(layer.state_dict()) == names
    assert layer.parameters()["second.weight"] is layer.second.weight


def test_a_state_dict_is_a_copy_and_goes_into_another():
    one, two = two_layers(), two_layers()
    x = net.Tensor(np.ones((5, 4)))
    y = one(x)
    assert not np.allclose(two(x).data, y.data)
    state = one.state_dict()
    two.load_state_dict(state)
    assert (two(x).data == y.data).all()
    state["first.bias"] += 1
    assert (two(x).data == y.data).all() and (one(x).data == y.data).all()


def test_a_state_that_does_not_fit_is_named():
    layer = two_layers()
    with pytest.raises(KeyError, match="first.bias"):
        layer.load_state_dict({"first.bias": np.ones(3)})  # not built yet
    layer(net.Tensor(np.ones((5, 4))))
    state = layer.state_dict()
    with pytest.raises(ValueError, match=r"first.weight: \(3, 4\) against \(2, 2\)"):
        layer.load_state_dict(state | {"first.weight": np.ones((2, 2))})
    with pytest.raises(KeyError, match="third"):
        layer.load_state_dict(state | {"third": np.ones(1)})


def test_a_state_in_float32_becomes_float64():
    layer = net.Dense(2)
    layer(net.Tensor(np.ones((5, 3))))
    layer.load_state_dict({n: v.astype("float32") for n, v in layer.state_dict().items()})
    assert layer.weight.data.dtype == np.float64


def test_training_reaches_layers_within_layers():
    layer = two_layers()
    assert layer.training and layer.first.training
    layer.train(False)
    assert not (layer.training or layer.first.training or layer.second.training)
    layer.train()
    assert layer.second.training


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_convolution_is_torchs(padding):
    theirs = nn.Conv2d(2, 3, 3, padding=padding).double()
    ours = net.Convolution(3, 3, padding=padding)
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 6))
    ours(net.Tensor(x))
    ours.load_state_dict({n: v.numpy() for n, v in theirs.state_dict().items()})
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(net.Tensor(x)).data, expected, rtol=1e-12)
    assert net.Convolution(3, 3).padding == 0


# ---- the headline --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(0)
    return rng.random((6, 1, 28, 28)), rng.integers(0, 10, 6)


def test_cross_entropy_is_torchs(digits):
    logits = np.random.default_rng(3).normal(size=(6, 10)) * 50
    y = digits[1]
    ours = tensor(logits)
    net.backward(net.cross_entropy(ours, y))
    theirs = torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(theirs, torch.as_tensor(y))
    loss.backward()
    assert net.cross_entropy(ours, y).data.item() == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(ours.grad.data, theirs.grad.numpy(), atol=1e-15)


@pytest.mark.parametrize("name", ["perceptron", "LeNet", "attention"])
def test_networks_train_as_torchs(name, digits):
    torch.manual_seed(10)
    ours, theirs = net.twins(name, digits[0])
    assert set(ours.parameters()) == {n for n, _ in theirs.named_parameters()}
    a = net.our_steps(ours, *digits, 3)
    b = net.torch_steps(theirs, *digits, 3)
    assert len(a) == len(b) == 3
    np.testing.assert_allclose(a, b, rtol=1e-12)
    assert a[2] < a[0]
    for label, p in ours.parameters().items():
        expected = theirs.get_parameter(label)
        np.testing.assert_allclose(p.data, expected.detach().numpy(), atol=1e-14)


@pytest.mark.parametrize("name", ["perceptron", "attention"])
def test_gaps_of_each_parameter(name, digits):
    torch.manual_seed(10)
    np.random.seed(10)
    found = net.gaps(name, *digits)
    count = len(list(net.PAIRS[name][1]().parameters()))
    assert {len(gaps) for gaps in found.values()} == {count}
    assert max(found["ours"]) < 1e-12
    assert 1e-9 < max(found["float32"]) < 1e-4
    assert 1e-14 < max(found["difference"]) < 1e-6


def test_a_wrong_gradient_differs_from_the_slope(digits):
    torch.manual_seed(10)
    np.random.seed(10)
    ours, _ = net.twins("perceptron", digits[0])
    net.our_steps(ours, *digits, 1, rate=0)
    before = ours.hidden.weight.data
    assert net.slope(ours, "hidden.weight", *digits) < 1e-7
    assert ours.hidden.weight.data is before
    ours.hidden.weight.grad.data *= 2
    assert net.slope(ours, "hidden.weight", *digits) > 1e-5
    assert net.Tensor.recording


def test_a_rate_of_zero_keeps_the_weights(digits):
    ours, _ = net.twins("perceptron", digits[0])
    before = ours.state_dict()
    losses = net.our_steps(ours, *digits, 2, rate=0)
    assert losses[0] == losses[1]
    assert all((before[name] == p.data).all() for name, p in ours.parameters().items())


def test_the_gradients_of_torch_are_of_their_type(digits):
    theirs = net.torch_perceptron()
    single = net.torch_gradients(theirs, *digits, torch.float32)
    exact = net.torch_gradients(theirs, *digits, torch.float64)
    again = net.torch_gradients(theirs, *digits, torch.float64)
    for name, g in exact.items():
        assert g.dtype == single[name].dtype == torch.float64
        assert torch.equal(g, again[name])  # cleared in between
        assert torch.equal(single[name], single[name].float().double())
        assert not torch.equal(g, g.float().double())


def test_what_ours_does_otherwise_than_torch():
    found = {
        case.__name__: [net.outcome(case, *framework) for framework in net.FRAMEWORKS]
        for case in (net.second_time, net.changed, net.long_chain)
    }
    assert found == {
        "second_time": ["12", "RuntimeError"],
        "changed": ["120", "RuntimeError"],
        "long_chain": ["RecursionError", "1"],
    }


# ---- the life of a layer -------------------------------------------------------------------------

LIFE = ["made", "built for (4, 3)", "run on (4, 3)", "run on (4, 3)"]


@pytest.mark.parametrize("name", ["OurNoted", "KerasNoted", "LazyNoted"])
def test_a_layer_is_made_built_and_run(name):
    x = np.ones((4, 3), dtype="float32")
    given = {"OurNoted": net.Tensor(x), "KerasNoted": x, "LazyNoted": torch.tensor(x)}[name]
    net.NOTES.clear()
    layer = getattr(net, name)(2)
    y = layer(given)
    assert tuple(y.shape) == (4, 2)
    layer(given)
    assert net.NOTES == LIFE


def test_the_lazy_layer_and_the_one_of_keras_are_linear():
    x = torch.randn(4, 3)
    lazy, keras_layer = net.LazyNoted(2), net.KerasNoted(2)
    y = lazy(x)
    assert torch.allclose(y, x @ lazy.weight.mT + lazy.bias)
    assert lazy.bias.abs().max() == 0 and lazy.weight.min() >= 0 and lazy.weight.max() <= 1
    with torch.no_grad():
        y = keras_layer(x)
        expected = x @ keras_layer.kernel.value + keras_layer.bias.value
    assert torch.allclose(y, expected)


def test_keras_does_what_the_table_says():
    rows = net.keras_rows()
    assert len(rows) == 7
    assert [seen for *_, seen in rows] == [True] * 7


# ---- a front end ---------------------------------------------------------------------------------


def test_a_trace_is_a_list_of_lines():
    lines = net.trace(lambda x, y: x * y + 2, 2)
    assert lines == [
        ("input", 0),
        ("input", 1),
        ("multiply", 0, 1),
        ("constant", 2),
        ("add", 2, 3),
        ("output", 4),
    ]
    assert net.run(lines, 5, 6) == 32


def test_a_number_may_stand_in_front():
    lines = net.trace(lambda x: 2 * (3 + x), 1)
    assert net.run(lines, 4) == 14
    assert net.run(net.trace(lambda x: x > 2, 1), 3) is True


def test_a_proxy_is_neither_true_nor_false():
    with pytest.raises(TypeError, match="select"):
        net.trace(lambda x: 1 if x > 0 else 2, 1)


def test_the_output_may_be_any_line():
    lines = [("input", 0), ("constant", 3), ("add", 0, 0), ("multiply", 0, 1), ("output", 2)]
    assert net.run(lines, 4) == 8


def test_constants_are_folded():
    lines = [("constant", 2), ("constant", 3), ("add", 0, 1), ("input", 0), ("multiply", 2, 3)]
    folded = net.rewritten([*lines, ("output", 4)], net.fold)
    assert folded[2] == ("constant", 5)
    assert folded[4] == ("multiply", 2, 3)
    assert net.run(folded, 7) == 35


def test_lines_are_shared_and_later_ones_follow():
    lines = net.trace(lambda x: (x + 1) * (x + 1), 1)
    shared = net.rewritten(lines, net.reuse)
    assert shared == [
        ("input", 0),
        ("constant", 1),
        ("add", 0, 1),
        ("multiply", 2, 2),
        ("output", 3),
    ]


def test_dead_lines_go_and_inputs_stay():
    lines = [("input", 0), ("input", 1), ("constant", 9), ("multiply", 0, 2), ("constant", 1)]
    lines += [("add", 1, 4), ("output", 5)]
    assert net.without_dead(lines) == [
        ("input", 0),
        ("input", 1),
        ("constant", 1),
        ("add", 1, 2),
        ("output", 3),
    ]


def test_the_passes_keep_the_result():
    lines = net.trace(net.example, 2)
    assert sum(line[0] in net.ARITHMETIC for line in lines) == 7
    for change in (net.fold, net.reuse):
        lines = net.rewritten(lines, change)
        assert net.run(lines, 0.5, 2.0) == net.example(0.5, 2.0) == 5.5**2 + 2
    assert net.run(net.without_dead(lines), 0.5, 2.0) == 5.5**2 + 2


def test_both_branches_of_a_select_are_in_the_graph():
    lines = net.trace(net.with_select("lambda x: x * 2 if x > 0 else (x + 1 if x > -5 else x)"), 1)
    assert sum(line[0] == "select" for line in lines) == 2
    for x, y in ((3, 6), (-2, -1), (-7, -7)):
        assert net.run(lines, x) == y


# ---- stages --------------------------------------------------------------------------------------


def test_dynamo_gives_its_graph_to_the_compiler():
    x = torch.linspace(-2, 2, 9)
    torch._dynamo.reset()
    keep = net.Keep()
    assert torch.equal(torch.compile(net.staged, backend=keep)(x), net.staged(x))
    assert len(keep.graphs) == 1


def test_calls_are_named_in_order():
    names = ["silu", "mul", "add", "sub", "relu", "square"]
    assert net.called(torch.fx.symbolic_trace(net.Staged())) == names
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.ops.aten.silu.default, (graph.placeholder("x"),)))
    assert net.called(torch.fx.GraphModule({}, graph)) == ["silu"]


def test_the_staged_function_by_hand():
    x = torch.tensor([0.0, 3.0])
    y = 3 / (1 + torch.tensor(-3.0).exp()) * 2 + 1 - 3
    assert torch.allclose(net.staged(x), torch.stack([torch.tensor(1.0), y**2]))
    assert torch.equal(net.Staged()(x), net.staged(x))


def test_forward_and_backward_are_two_graphs():
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    forward, back = net.Keep(), net.Keep()
    y = net.joint(forward, back)(x)
    y.sum().backward()
    assert len(forward.graphs) == len(back.graphs) == 1
    assert torch.allclose(y, net.staged(x))
    assert torch.allclose(x.grad, torch.autograd.grad(net.staged(x).sum(), x)[0])


def test_a_kernel_stands_between_three_quotes():
    assert net.kernel_of("a = call(r'''\nfor\n''')\nb = r'''no'''") == "\nfor\n"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_inductor_computes_the_same():
    x = torch.linspace(-3, 3, 20)
    y, source = net.compiled(net.staged, x)
    assert torch.allclose(y, net.staged(x))
    assert "Vectorized" not in source and "import torch" not in source
    assert net.loop_of(source)


def test_what_is_not_found_is_no_error():
    assert net.kernel_of("no kernel") == ""
    assert net.loop_of("") == net.loop_of("x = 1;") and "no loop" in net.loop_of("")


def test_a_loop_is_cut_from_its_kernel():
    source = """
    {
        for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(6L); x0+=1)
        {
            {
                auto tmp0 = in_ptr0[static_cast<int64_t>(x0)];
                out_ptr0[static_cast<int64_t>(x0)] = tmp0;
            }
        }
    }
    flag = nullptr;
    """
    assert net.loop_of(source) == (
        "for(int64_t x0=0; x0<6; x0+=1)\n    auto tmp0 = in_ptr0[x0];\n    out_ptr0[x0] = tmp0;"
    )


def test_graphs_are_counted_after_each_call():
    x = torch.ones(3)
    assert net.graphs_after(net.staged, (x,), (x,), (x.double(),)) == [1, 1, 2]
    assert net.graphs_after(net.staged, (x,)) == [1]  # starts anew
    assert torch.equal(net.repeats(x, 3), 8 * x)
    assert net.branches(x).tolist() == [2, 2, 2]
    assert net.branches(-x).tolist() == [-2, -2, -2]
    assert net.branches(0 * x).tolist() == [-1, -1, -1]


def test_a_front_end_that_refuses():
    assert net.refused(torch.fx.symbolic_trace, torch.fx.proxy.TraceError)
    assert not net.refused(lambda function: function, ValueError)


# ---- timing --------------------------------------------------------------------------------------


def test_warming_up_is_not_timed():
    calls = []
    assert len(net.latencies(lambda: calls.append(1), warm=4, count=3)) == 3
    assert len(calls) == 7
    assert len(net.latencies(lambda: calls.append(1))) == 15
    assert len(calls) == 7 + 25


def test_a_gpu_is_waited_for_before_and_after_each_timed_step(monkeypatch):
    order = []
    monkeypatch.setitem(net.latencies.__globals__, "wait", lambda: order.append("wait"))
    net.latencies(lambda: order.append("step"), warm=1, count=2)
    assert order == ["step", *["wait", "step", "wait"] * 2]


def test_latencies_are_seconds_of_the_step():
    import time

    taken = net.latencies(lambda: time.sleep(0.005), warm=0, count=2)
    assert all(0.004 < t < 0.5 for t in taken)


def test_the_spread_is_that_of_the_quartiles():
    assert net.spread_of([1, 2, 3, 4, 5, 6, 7]) == pytest.approx((6 - 2) / 4)


def test_a_benchmark_is_made_from_a_seed_and_trains():
    one, two = (net.Bench(*net.BENCHES["perceptron"]) for _ in range(2))
    assert torch.equal(one.eval(), two.eval())
    assert not one.eval().requires_grad and not one.network.training
    before = one.eval().square().mean()
    one.train()
    first = {name: p.clone() for name, p in one.network.named_parameters()}
    assert one.network.training
    assert one.eval().square().mean() < before
    two.train()
    for name, p in two.network.named_parameters():
        assert torch.equal(p, first[name])
        assert torch.equal(p.grad, one.network.get_parameter(name).grad)
    gradient = two.network.output.bias.grad.clone()
    two.train()
    assert not torch.allclose(two.network.output.bias.grad, gradient, rtol=1e-6)
    assert two.network.output.bias.grad.norm() < 1.5 * gradient.norm()


# ---- tools ---------------------------------------------------------------------------------------


def test_tools_equal_what_is_done_by_hand():
    torch.manual_seed(10)
    parts = (net.data_tools, net.weight_tools, net.derivative_tools)
    tools = {name: row for part in parts for name, row in part().items()}
    assert len(tools) == 11
    for words, found, by_hand in tools.values():
        assert words
        torch.testing.assert_close(found, by_hand)


def test_flat_joins_in_order():
    assert net.flat([torch.ones(2, 1), torch.zeros(1)]).tolist() == [1, 1, 0]


# ---- solutions -----------------------------------------------------------------------------------


def test_forward_mode_is_reverse_mode():
    values = [0.3, -0.5, 0.8]
    leaves = [tensor(v) for v in values]
    net.backward(net.mixed(*leaves))
    np.testing.assert_allclose(
        net.forward_mode(net.mixed, values), [x.grad.data for x in leaves], rtol=1e-13
    )
    assert net.forward_mode(lambda a, b: a * b + a, [2.0, 3.0]) == [4, 2]
    assert net.value(2, 3) == 64


def test_lines_of_a_cell_without_text(tmp_path):
    file = tmp_path / "cells.py"
    file.write_text(
        "# %%\nx = 1\n\n# %% tags=['a']\n# words\n\ndef f():\n"
        '    """Words."""\n    return 1\n\n\n# %%\ny = 2\n'
    )
    space = {}
    exec(compile(file.read_text(), str(file), "exec"), space)
    assert net.cell_length(space["f"]) == 2
    kernel = tmp_path / "kernel.py"
    kernel.write_text("def f():\n    return 1\n\ny = 2\n")
    exec(compile(kernel.read_text(), str(kernel), "exec"), space)
    assert net.cell_length(space["f"]) == 3


def test_reverse_mode_takes_a_hundred_lines():
    parts = (net.operator, net.shares, net.Tensor.__sub__, net.backward)
    assert sum(net.cell_length(part) for part in parts) <= 100
    assert gc.isenabled()
