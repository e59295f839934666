"""Formats as codes, gradients lost, the scaler and autocast of notebooks/mixed_precision.py."""

import copy
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loader import definitions
from networks import close, parameters_of

net = definitions("mixed_precision")
NAMES = ("bfloat16", "float16", "float8 e5m2", "float8 e4m3")
OTHERS = {  # formats of ml_dtypes that the page does not have, and one that it has
    "float4_e2m1fn": (2, 1, "none"),
    "float6_e2m3fn": (2, 3, "none"),
    "float6_e3m2fn": (3, 2, "none"),
    "float8_e3m4": (3, 4, "ieee"),
    "float8_e4m3": (4, 3, "ieee"),
    "float8_e4m3fn": (4, 3, "nan"),
}


def width(form) -> int:
    return 1 + form.exponent + form.fraction


def decoded(code: int, form) -> float:
    return net.decode(torch.tensor([code]), form).item()


def encoded(x: float, form, **how) -> int:
    return net.encode(torch.tensor([x]), form, **how).item()


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(100, 1, 16, 16), torch.arange(100) % 10


# ---- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_all_codes_are_torchs_numbers(name):
    form = net.FORMATS[name]
    codes = torch.arange(1 << width(form))
    known = codes.to(net.WHOLE[width(form)]).view(net.TYPES[name])
    assert net.same(net.decode(codes, form), known)


def test_random_codes_of_float32_are_its_numbers():
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int32)
    codes = bits.long() & 0xFFFFFFFF
    assert net.same(net.decode(codes, net.FORMATS["float32"]), bits.view(torch.float32))


@pytest.mark.parametrize("name", OTHERS)
def test_codes_and_casts_of_other_formats_are_those_of_ml_dtypes(name):
    form = net.Format(*OTHERS[name])
    kind = getattr(ml_dtypes, name)
    codes = torch.arange(1 << width(form))
    known = codes.to(torch.uint8).numpy().view(kind).astype("f4")
    assert net.same(net.decode(codes, form), torch.from_numpy(known))
    x = torch.cat([net.samples(form, 5000), torch.tensor([1e4, -1e4, 1e-9])])
    found = torch.from_numpy(x.numpy().astype(kind).astype("f4"))
    assert net.same(net.decode(net.encode(x, form), form), found)


@pytest.mark.parametrize("name", ("bfloat16", "float16", "float8 e5m2"))
def test_casts_of_all_sizes_are_torchs(name):
    form = net.FORMATS[name]
    torch.manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([math.inf, -math.inf, math.nan])])
    assert net.same(net.decode(net.encode(x, form), form), x.to(net.TYPES[name]))


@pytest.mark.parametrize("name", [*NAMES, "tf32", "float4 e2m1"])
def test_a_number_of_a_format_keeps_its_code(name):
    form = net.FORMATS[name]
    codes = torch.arange(form.top + 1)
    x = net.decode(codes, form).float()
    assert torch.equal(net.encode(x, form), codes)
    assert torch.equal(net.encode(-x, form), codes + (1 << width(form) - 1))


def test_the_layout_of_a_few_codes():
    half = net.FORMATS["float16"]
    assert decoded(0b0_01111_0000000000, half) == 1
    assert decoded(0b1_10000_1000000000, half) == -3
    assert decoded(1, half) == 2**-24
    assert decoded(0b0_00001_0000000000, half) == 2**-14
    assert decoded(half.top, half) == 65_504
    assert decoded(half.top + 1, half) == math.inf
    assert decoded(0xFC00, half) == -math.inf
    assert math.isnan(decoded(0x7C01, half))
    four = [decoded(code, net.FORMATS["float4 e2m1"]) for code in range(8)]
    assert four == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert decoded(0x7E, net.FORMATS["float8 e4m3"]) == 448
    assert math.isnan(decoded(0x7F, net.FORMATS["float8 e4m3"]))
    assert math.copysign(1, decoded(0x8000, half)) == -1


def test_ties_go_to_the_even_code():
    half = net.FORMATS["float16"]
    one = 15 << 10
    assert encoded(1 + 2**-11, half) == one
    assert encoded(1 + 3 * 2**-11, half) == one + 2
    assert encoded(1 + 2**-11 + 2**-20, half) == one + 1
    assert encoded(2**-25, half) == 0
    assert encoded(1.5 * 2**-25, half) == 1
    assert encoded(3 * 2**-25, half) == 2
    assert encoded(2048.0 + 1, half) == encoded(2048.0, half)
    tf32 = net.FORMATS["tf32"]
    assert decoded(encoded(1 + 2**-11, tf32), tf32) == 1
    assert decoded(encoded(1 + 2**-10, tf32), tf32) == 1 + 2**-10


def test_beyond_the_largest_come_infinity_nan_or_the_largest():
    half, eight, four = (net.FORMATS[n] for n in ("float16", "float8 e4m3", "float4 e2m1"))
    assert encoded(65_519.0, half) == half.top
    assert encoded(65_520.0, half) == half.top + 1
    assert encoded(math.inf, half) == half.top + 1
    assert encoded(1e30, half, saturate=True) == half.top
    assert encoded(464.0, eight) == eight.top
    assert math.isnan(decoded(encoded(465.0, eight), eight))
    assert decoded(encoded(-465.0, eight, saturate=True), eight) == -448
    assert decoded(encoded(100.0, four), four) == 6
    assert math.isnan(decoded(encoded(math.nan, half, saturate=True), half))
    assert encoded(math.nan, half) == 0x7FFF and encoded(math.nan, eight) == 0x7F


def test_other_types_are_refused():
    with pytest.raises(AssertionError, match="float32"):
        net.encode(torch.ones(2).double(), net.FORMATS["float16"])
    with pytest.raises(AssertionError, match="its bits"):
        net.encode(torch.ones(2), net.FORMATS["float32"])


@pytest.mark.parametrize("name", ("float32", *NAMES))
def test_properties_are_those_of_finfo(name):
    found = net.properties(net.FORMATS[name])
    known = torch.finfo(net.TYPES[name])
    assert (found["max"], found["tiny"], found["eps"]) == (known.max, known.tiny, known.eps)


def test_properties_that_finfo_does_not_have():
    assert net.properties(net.FORMATS["tf32"])["eps"] == 2**-10
    assert net.properties(net.FORMATS["tf32"])["subnormal"] == 2**-136
    assert net.properties(net.FORMATS["float16"])["subnormal"] == 2**-24
    assert net.properties(net.FORMATS["float8 e4m3"])["subnormal"] == 2**-9
    four = {"max": 6, "tiny": 1, "subnormal": 0.5, "eps": 0.5}
    assert net.properties(net.FORMATS["float4 e2m1"]) == four


def test_same_looks_at_signs_and_lets_nan_equal_nan():
    a = torch.tensor([1.0, 0.0, math.nan])
    assert net.same(a, a.clone())
    assert not net.same(a, torch.tensor([1.0, -0.0, math.nan]))
    assert not net.same(a, torch.tensor([1.0, 0.0, 2.0]))
    assert not net.same(a, torch.tensor([2.0, 0.0, math.nan]))


def test_samples_have_ties_both_signs_and_no_overflow():
    form = net.FORMATS["float8 e5m2"]
    torch.manual_seed(0)
    x = net.samples(form, 4000)
    assert x.abs().max() <= 57_344
    assert len(x) > 5500
    assert 0.3 < (x < 0).float().mean() < 0.7
    assert (x.abs() < 2.0**-16).any() and (x.abs() > 2.0**13).any()
    assert (x[-2:] == 0).all() and x[-2:].signbit().tolist() == [False, True]
    tail = x[-2002:-1002]  # the ties with a plus lie before those with a minus
    codes = net.encode(tail, form)
    assert (net.decode(codes, form) != tail).all()
    assert (codes % 2 == 0).all()


# ---- arithmetic in another format ----------------------------------------------------------------


def test_a_rounded_number_passes_a_rounded_gradient():
    x = torch.tensor([1.2, 3.4], requires_grad=True)
    y = net.casting(torch.floor, torch.ceil)(x)
    assert y.tolist() == [1, 3]
    (y * torch.tensor([0.5, 2.5])).sum().backward()
    assert x.grad.tolist() == [1, 3]


def test_rounding_functions_are_the_types_of_their_names():
    x = torch.tensor([1 + 2**-9, 1 + 2**-4, 2.0**-24, 2.0**-25])
    assert net.to_float16(x).tolist() == [1 + 2**-9, 1 + 2**-4, 2**-24, 0]
    assert net.to_bfloat16(x).tolist() == [1, 1 + 2**-4, 2**-24, 2**-25]
    assert net.as_it_is(x) is x
    assert net.in_float16(x).dtype == torch.float16


def test_a_scale_lets_the_largest_number_just_fit():
    to_eight = net.scaled(torch.float8_e4m3fn)
    x = torch.tensor([1.0, 300.0, -1000.0, 7.0])
    y = to_eight(x)
    factor = 0.25  # 1,000 * 0.25 fits below 448, 1,000 * 0.5 does not
    assert y.tolist() == ((x * factor).to(torch.float8_e4m3fn).float() / factor).tolist()
    assert torch.equal(to_eight(x * 2.0**-20), y * 2.0**-20)
    assert to_eight(torch.zeros(3)).tolist() == [0, 0, 0]
    assert to_eight(torch.tensor([448.0, 1.0])).tolist() == [448, 1]


def test_the_network_has_the_sizes_of_the_text():
    network = net.make_network()
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert parameters_of(network) == 80 + 1168 + 4640 + 330
    assert network[:1](torch.zeros(1, 1, 16, 16)).shape == (1, 8, 8, 8)
    assert network[:5](torch.zeros(1, 1, 16, 16)).shape == (1, 32, 4, 4)
    assert all(p.abs().max() == 0 for name, p in network.named_parameters() if "bias" in name)
    assert abs(network[4].weight.std().item() - math.sqrt(2 / 144)) < 0.01
    assert abs(network[2].weight.std().item() - math.sqrt(2 / 72)) < 0.02


def test_run_in_is_the_network_and_casts_inputs_weights_and_outputs(data):
    network = net.make_network()
    seen = []
    y, given = net.run_in(network, data[0][:3], lambda x: seen.append(tuple(x.shape)) or x)
    close(y, network(data[0][:3]))
    assert [g.shape[1] for g in given] == [8, 16, 32, 10]
    assert len(seen) == 1 + 8 + 5
    assert seen[0] == (3, 1, 16, 16) and (8, 1, 3, 3) in seen and seen[-1] == (3, 10)
    y, _ = net.run_in(network, data[0][:3], lambda x: 0 * x)
    assert not y.any()


def test_rounding_in_float32_is_float16_where_sums_are_exact():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randint(-2, 3, p.shape))
    x = torch.randint(-2, 3, (5, 1, 6, 6)).float()
    found = []
    for which, cast in (
        (copy.deepcopy(network).half(), net.as_it_is),
        (network, net.in_float16),
        (network, net.casting(net.to_float16, net.to_float16)),
    ):
        x_in = x.to(next(which.parameters()).dtype)
        y, given = net.run_in(which, x_in, cast)
        weights = torch.randint(-2, 3, y.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((y * weights.to(y.dtype)).sum(), given)
        found.append([y.float(), *(g.float() for g in gradients)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


# ---- gradients lost ------------------------------------------------------------------------------


def test_gradients_are_those_of_the_loss_and_grow_with_its_scale():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    found = net.output_gradients(network, x, y, net.as_it_is)
    assert found.shape == (5 * 4 + 5 * 3,)
    by_hand = (F.softmax(network(x), -1) - F.one_hot(y, 3)) / 5
    close(found[20:].view(5, 3), by_hand)
    more = net.output_gradients(network, x, y, net.as_it_is, 7)
    assert torch.equal(more, found * 128)
    half = net.output_gradients(network, x, y, net.casting(net.to_float16, net.to_float16), -22)
    assert torch.equal(half, half.half().float()) and (half == 0).any()


def test_shares_lost_by_hand():
    g = torch.tensor([0.0, 2**-25, 1.01 * 2**-25, -(2**-24), 1.0])
    assert net.predicted_loss(g) == 0.25
    assert net.predicted_loss(g, 1) == 0
    assert net.predicted_loss(g, -1) == 0.75
    assert net.predicted_loss(g) == net.counted_loss(g, g.half())
    assert net.counted_loss(g, torch.tensor([1.0, 0, 0, 5, 0])) == 0.75
    assert net.counted_loss(g, torch.tensor([0.0, 3, 3, 5, 1])) == 0


def test_what_is_predicted_is_what_a_cast_loses():
    torch.manual_seed(0)
    g = torch.randn(20_000) * 2.0 ** torch.randint(-40, -10, (20_000,))
    for power in (-5, 0, 9):
        scaled = (g * 2.0**power).half()
        assert net.predicted_loss(g, power) == net.counted_loss(g, scaled)


# ---- training ------------------------------------------------------------------------------------


def by_hand(network, data, epochs: int) -> list[float]:
    """What `fit` should do without formats and scales."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    history = []
    for _ in range(epochs):
        losses = []
        for chosen in torch.randperm(len(data[1])).split(50):
            loss = F.cross_entropy(network(data[0][chosen]), data[1][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(chosen))
        history.append(sum(losses) / len(data[1]))
    return history


def fitted(data, **how):
    torch.manual_seed(3)
    network = net.make_network()
    history = net.fit(network, data, net.as_it_is, **how)
    return network, history


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_fit_is_plain_descent_where_nothing_is_rounded(data):
    data = (data[0][:70], data[1][:70])  # the last batch is smaller
    torch.manual_seed(3)
    network = net.make_network()
    known = by_hand(network, data, 2)
    found, history = fitted(data, epochs=2)
    assert equal(network, found)
    assert history == pytest.approx(known, rel=1e-5)
    assert len(fitted(data)[1]) == 5


def test_a_power_of_two_in_loss_and_rate_changes_no_bit(data):
    plain = fitted(data, epochs=2)
    for how in ({"divide": 14}, {"divide": 14, "scaler": net.Scaler()}):
        found = fitted(data, epochs=2, **how)
        assert equal(plain[0], found[0])
        assert plain[1] == found[1]


def test_small_gradients_are_lost_without_a_scaler(data):
    sixteen = net.casting(net.to_float16, net.to_float16)
    torch.manual_seed(3)
    network = net.make_network()
    before = copy.deepcopy(network)
    net.fit(network, data, sixteen, epochs=1, divide=30)
    assert equal(before, network)
    net.fit(network, data, sixteen, epochs=1, divide=30, scaler=net.Scaler(2.0**30))
    assert not equal(before, network)


def test_weights_are_kept_in_a_format(data):
    network, _ = fitted(data, epochs=1, store=net.to_bfloat16)
    assert all(torch.equal(p, net.to_bfloat16(p)) for p in network.parameters())
    before = copy.deepcopy(network)
    net.keep(network, None)
    assert equal(before, network)
    net.keep(network, torch.round)
    assert all(torch.equal(p, p.round()) for p in network.parameters())


def test_sums_stall_at_twice_what_the_fraction_can_count():
    ones = torch.ones(2100)
    assert net.running_sum(ones, net.to_float16) == 2048
    assert net.running_sum(ones[:300], net.to_bfloat16) == 256
    assert net.running_sum(torch.tensor([1.0, 2.0, 4.0]), net.as_it_is) == 7
    assert net.running_sum(torch.ones(0), net.to_float16) == 0


def test_small_steps_tell_what_was_lost(data):
    torch.manual_seed(0)
    network = net.make_network()
    twin = copy.deepcopy(network)
    torch.manual_seed(4)
    fall, lost = net.small_steps(network, data, None, rate=0.01)
    torch.manual_seed(4)
    before = F.cross_entropy(twin(data[0]), data[1]).item()
    for chosen in torch.randperm(100).split(50):
        twin.zero_grad()
        F.cross_entropy(twin(data[0][chosen]), data[1][chosen]).backward()
        with torch.no_grad():
            for p in twin.parameters():
                p -= 0.01 * p.grad
    assert equal(network, twin)
    close(torch.tensor(fall), torch.tensor(before - F.cross_entropy(twin(data[0]), data[1]).item()))
    assert lost < 0.2
    falls = []
    for how in ({}, {"rate": 3e-3}):
        torch.manual_seed(5)
        falls.append(net.small_steps(copy.deepcopy(network), data, None, **how))
    assert falls[0] == falls[1]
    half_dark = (data[0].clone().index_fill_(3, torch.arange(8), 0), data[1])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))  # half of its gradients are zero
    assert net.small_steps(linear, half_dark, None, rate=100.0)[1] < 0.01
    fall, lost = net.small_steps(network, data, torch.round, rate=0.01)
    assert fall == 0 and lost == 1
    assert all(torch.equal(p, p.round()) for p in network.parameters())


def test_by_chance_a_number_goes_to_its_neighbours_and_keeps_its_mean():
    torch.manual_seed(0)
    x = torch.tensor([1 + 2**-9, -(1 + 2**-9), 3.0, 0.0]).repeat(20_000, 1)
    y = net.stochastic_bfloat16(x)
    assert y[:, 0].unique().tolist() == [1, 1 + 2**-7]
    assert y[:, 1].unique().tolist() == [-(1 + 2**-7), -1]
    assert (y[:, 2] == 3).all() and (y[:, 3] == 0).all()
    shares = (y[:, :2].abs() > 1).double().mean(0)
    assert ((shares - 0.25).abs() < 0.02).all()


# ---- the scaler ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overflows", "interval"), [((), 3), ((0,), 4), ((2, 3, 9), 3), ((5, 11), 6), ((1, 4, 7), 1)]
)
def test_the_scaler_is_torchs_step_for_step(data, overflows, interval):
    ours = net.planted(net.Scaler(interval=interval), set(overflows), data, 14)
    scaler = torch.amp.GradScaler("cpu", growth_interval=interval)
    theirs = net.planted(scaler, set(overflows), data, 14)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1] == [step not in overflows for step in range(14)]
    assert equal(ours[2], theirs[2])


def test_other_constants_are_torchs_too(data):
    how = {"growth": 4.0, "backoff": 0.25, "interval": 2}
    ours = net.planted(net.Scaler(8.0, **how), {3}, data, 8)
    scaler = torch.amp.GradScaler(
        "cpu", 8.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=2
    )
    theirs = net.planted(scaler, {3}, data, 8)
    assert ours[0] == theirs[0] == [8, 32, 32, 8, 8, 32, 32, 128]
    assert equal(ours[2], theirs[2])
    known = torch.amp.GradScaler("cpu")
    ours = net.Scaler()
    assert (ours.factor, ours.growth, ours.backoff, ours.interval) == (
        known.get_scale(),
        known.get_growth_factor(),
        known.get_backoff_factor(),
        known.get_growth_interval(),
    )


def test_gradients_are_divided_once_and_nan_is_not_taken():
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([p], 1.0)
    scaler = net.Scaler(4.0)
    scaler.scale((p * torch.tensor([1.0, 3.0])).sum()).backward()
    assert p.grad.tolist() == [4, 12]
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [1, 3]
    scaler.step(optimizer)
    assert p.tolist() == [0, -1]
    scaler.update()
    p.grad = torch.tensor([math.nan, 8.0])
    scaler.step(optimizer)
    assert p.tolist() == [0, -1]
    scaler.update()
    assert scaler.get_scale() == 2
    p.grad = torch.tensor([2.0, 0.0])
    scaler.step(optimizer)
    assert p.tolist() == [-1, -1]


def test_clipping_before_dividing_leaves_a_step_of_nothing(data):
    assert net.step_norm(data, True) == pytest.approx(1, rel=1e-4)
    assert net.step_norm(data, False) == pytest.approx(2**-16, rel=1e-4)


# ---- autocast ------------------------------------------------------------------------------------


def test_behaviour_is_read_from_the_types():
    m = torch.rand(3, 3)
    assert net.behaviour((torch.mm, m, m)) == net.LOWER
    assert net.behaviour((F.mse_loss, m, m)) == net.FULL
    assert net.behaviour((torch.relu, m)) == net.GIVEN
    assert net.behaviour((torch.mm, m, m), torch.float16) == net.LOWER
    assert net.behaviour((lambda a: a.float(), m)) == net.FULL
    assert net.behaviour((lambda a: a.bfloat16(), m)) == net.LOWER


def test_each_call_runs_and_the_lists_name_no_other():
    found = net.calls()
    named = " ".join([*net.DOCUMENTED.values(), *net.ON_CUDA.values()]).split()
    assert set(named) <= set(found)
    for function, *inputs in found.values():
        assert torch.is_tensor(function(*inputs))
    m = found["exp"][1]
    for name, known in (
        ("cumsum", m.cumsum(0)),
        ("softmax", F.softmax(m, 1)),
        ("layer_norm", F.layer_norm(m, (3,))),
        ("cat", torch.cat([m, m])),
        ("index_copy", m),
        ("mv", m @ m[0]),
        ("cross_entropy", F.cross_entropy(m, torch.arange(3))),
        ("l1_loss", torch.tensor(0.0)),
        ("batch_norm", F.batch_norm(found["batch_norm"][1], m[0, :2], m[0, :2])),
    ):
        function, *inputs = found[name]
        close(function(*inputs), known)
    assert found["bmm"][0](*found["bmm"][1:]).shape == (2, 3, 3)
    assert found["conv2d"][0](*found["conv2d"][1:]).shape == (1, 2, 4, 4)
    assert found["conv_transpose2d"][0](*found["conv_transpose2d"][1:]).shape == (1, 2, 8, 8)
    assert {net.listed(name, net.DOCUMENTED) for name in found} == {net.LOWER, net.FULL, net.GIVEN}
    assert net.listed("sum", {net.FULL: "cumsum prod"}) == net.GIVEN
    assert net.listed("mm", net.DOCUMENTED) == net.LOWER


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_our_autocast_is_torchs_bit_for_bit(dtype, data):
    torch.manual_seed(0)
    network = net.MixedNetwork()
    x, y = data[0][:6], data[1][:6]
    ours = net.gradients_under(net.Autocast(dtype, net.DOCUMENTED), network, x, y)
    theirs = net.gradients_under(torch.autocast("cpu", dtype), network, x, y)
    assert len(ours) == 2 + 8
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert ours[0].dtype == dtype and ours[1].dtype == ours[2].dtype == torch.float32


def test_our_autocast_keeps_casts_of_parameters_and_leaves_the_rest():
    layer = nn.Linear(3, 3)
    x = torch.rand(2, 3)
    with net.Autocast(torch.bfloat16, net.DOCUMENTED) as mode:
        layer(x)
        first = mode.casts[layer.weight]
        layer(x)
        assert mode.casts[layer.weight] is first and len(mode.casts) == 2
        assert torch.mm(x.T, x).dtype == torch.bfloat16
        assert torch.mm(x.T, x, out=torch.empty(3, 3)).dtype == torch.float32
        assert torch.mm(x.T, mat2=x).dtype == torch.bfloat16
        assert torch.mm(x.T.double(), x.double()).dtype == torch.bfloat16
        assert (
            torch.mm(torch.ones(1, 1, dtype=int), torch.ones(1, 1, dtype=int)).dtype == torch.int64
        )
        assert F.mse_loss(x.bfloat16(), x).dtype == torch.float32
        assert torch.relu(x).dtype == torch.float32
    assert mode.cast(x, torch.float32) is x


def test_the_network_for_autocast_attends():
    network = net.MixedNetwork()
    x = torch.randn(2, 1, 16, 16)
    assert network(x).shape == (2, 10)
    tokens = network.stem(x).flatten(2).mT
    q, k, v = network.project(network.norm(tokens)).chunk(3, -1)
    y = tokens + F.scaled_dot_product_attention(q, k, v)
    close(network(x), network.classifier(F.gelu(y).mean(1)))


def test_casts_are_counted():
    x = torch.rand(3)
    with net.Casts() as casts:
        x.bfloat16()
        x.float()
        x.double().half()
        x + x
    assert casts.count == 3


def test_exceptions_compute_in_what_the_page_says():
    found = [kind for _, kind in net.exceptions()]
    assert found == ["bfloat16", "float32", "float32", "bfloat16", "float32", "float32"]
    x = torch.tensor([3.0], requires_grad=True)
    y = net.Square.apply(x)
    assert y.item() == 9
    y.backward()
    assert x.grad.item() == 6


# ---- speed, blocks -------------------------------------------------------------------------------


def test_a_call_is_timed_after_one_that_is_not():
    done = []
    assert 0 <= net.seconds(lambda: done.append(1), 4) < 1
    assert len(done) == 5
    net.seconds(lambda: done.append(1))
    assert len(done) == 9


def test_calls_for_speed_are_in_the_type_that_is_asked_for():
    found = net.speed_calls(torch.bfloat16)
    a, b = (call() for call in found.values())
    assert a.dtype == b.dtype == torch.bfloat16
    assert a.shape == (128, 128) and b.shape == (8, 16, 14, 14)


def test_a_block_has_its_own_power_of_two():
    x = torch.tensor([4.0, 1.0, -6.0, 0.5, 4.0, 1.0, -6.0, 0.5])
    scale = torch.tensor([1.0] * 4 + [2.0**-9] * 4)
    assert net.in_blocks(x, 4).tolist() == x.tolist()
    assert torch.equal(net.in_blocks(x * scale, 4), x * scale)
    assert net.in_blocks(x * scale, 8)[4:].tolist() == [0, 0, 0, 0]
    assert net.in_blocks(torch.tensor([7.9, 2.4]), 2).tolist() == [6, 2]
    assert net.in_blocks(torch.tensor([1.0, -6.0]), 2).tolist() == [1, -6]
    assert np.isclose(net.in_blocks(torch.tensor([8.0, 2.4]), 2), [8, 2]).all()
