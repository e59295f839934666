"""The recurrent networks of notebooks/rnn.py."""

import copy
import math
from datetime import date, timedelta

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

rnn = definitions("rnn")
R = pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
# Elman 1990: units of input, state and output; parameters and products of one step by hand
SIZES = {
    "exclusive or": ((1, 2, 1), 11, 8),
    "letters": ((6, 20, 6), 666, 640),
    "letters of words": ((5, 20, 5), 625, 600),
    "words": ((31, 150, 31), 31_981, 31_800),
}


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


# ---- cells ---------------------------------------------------------------------------------------


def test_an_elman_cell_is_that_of_torch_with_the_sum_of_its_biases():
    ours, theirs = rnn.ElmanCell(5, 8), nn.RNNCell(5, 8)
    with torch.no_grad():
        ours.from_input.weight.copy_(theirs.weight_ih)
        ours.from_state.weight.copy_(theirs.weight_hh)
        ours.from_input.bias.copy_(theirs.bias_ih + theirs.bias_hh)
    x, state = torch.randn(3, 5), torch.randn(3, 8)
    close(ours(x, state), theirs(x, state))
    linear = rnn.LinearCell(5, 8)
    linear.load_state_dict(ours.state_dict())
    close(torch.tanh(linear(x, state)), theirs(x, state))


def test_a_jordan_cell_whose_outputs_are_its_hidden_units_is_elmans_but_for_the_logistic():
    cell, x = rnn.JordanCell(5, 8, 8), torch.randn(3, 5)
    with torch.no_grad():
        cell.output.weight.copy_(torch.eye(8))
        cell.output.bias.zero_()
    elman = rnn.ElmanCell(5, 8)
    elman.from_input, elman.from_state = cell.from_input, cell.from_state
    state = torch.rand(3, 8)
    close(cell(x, state), torch.sigmoid(elman(x, state)))
    assert cell.d_state == 8
    assert rnn.JordanCell(5, 8, 3).d_state == 3


def test_a_jordan_network_forgets_what_its_outputs_do_not_show():
    network = rnn.JordanNetwork(4)
    x = torch.rand(2, 6, 1)
    with torch.no_grad():
        network.cell.output.weight.zero_()  # no input can show
    changed = x.clone()
    changed[:, 0] += 1
    close(network(x), network(changed))
    assert network(x).shape == (2, 6, 1)
    assert rnn.JordanNetwork(4, 3)(x).shape == (2, 6, 1)


def test_of_several_outputs_a_jordan_network_gives_the_first():
    network, x = rnn.JordanNetwork(4, 3), torch.rand(2, 6, 1)
    close(network(x), rnn.unroll(network.cell, x)[..., 0:1])


def test_a_jordan_network_has_a_bias_for_each_unit_and_one_output_unless_told():
    assert parameters_of(rnn.JordanNetwork(8)) == 8 * (1 + 1 + 1) + 1 * (8 + 1)
    assert parameters_of(rnn.JordanNetwork(8, 3)) == 8 * (1 + 3 + 1) + 3 * (8 + 1)
    assert parameters_of(rnn.JordanCell(5, 8, 3).from_input) == 8 * (5 + 1)
    assert parameters_of(rnn.JordanCell(5, 8, 3).from_state) == 8 * 3


@pytest.mark.parametrize("build", [lambda: rnn.ElmanCell(1, 4), lambda: rnn.JordanCell(1, 4, 2)])
def test_unrolled_a_state_knows_the_past_and_not_the_future(build):
    cell, x = build(), torch.randn(1, 6, 1, requires_grad=True)
    states = rnn.unroll(cell, x)
    (slopes,) = torch.autograd.grad(states[0, 3].sum(), x)
    assert (slopes[0, :, 0] != 0).tolist() == [True] * 4 + [False] * 2
    close(states[:, 0], cell(x[:, 0], torch.zeros(1, cell.d_state)))
    close(states[:, 3], cell(x[:, 3], states[:, 2]))


# ---- layers --------------------------------------------------------------------------------------

LAYERS = {
    "one": (lambda: rnn.ElmanLayer(5, 8), {}),
    "two": (lambda: nn.Sequential(rnn.ElmanLayer(5, 8), rnn.ElmanLayer(8, 8)), {"num_layers": 2}),
    "bidirectional": (lambda: rnn.Bidirectional(5, 8), {"bidirectional": True}),
    "both": (
        lambda: nn.Sequential(rnn.Bidirectional(5, 8), rnn.Bidirectional(16, 8)),
        {"num_layers": 2, "bidirectional": True},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_torch_forward_and_backward(name):
    build, how = LAYERS[name]
    ours, theirs = build(), nn.RNN(5, 8, batch_first=True, **how)
    rnn.take_weights(ours, theirs)
    results = []
    for network in (ours, theirs):
        x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
        found = network(x)
        found = found if network is ours else found[0]
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        results.append((found, x.grad))
    for found, expected in zip(*results, strict=True):
        close(found, expected)
    cells = [part for part in ours.modules() if isinstance(part, rnn.ElmanCell)]
    for cell, (w_x, w_h, b_x, _) in zip(cells, theirs.all_weights, strict=True):
        close(cell.from_input.weight.grad, w_x.grad)
        close(cell.from_state.weight.grad, w_h.grad)
        close(cell.from_input.bias.grad, b_x.grad)


def test_weights_of_too_many_layers_are_refused():
    with pytest.raises(ValueError, match="zip"):
        rnn.take_weights(rnn.ElmanLayer(5, 8), nn.RNN(5, 8, num_layers=2))


def test_two_directions_see_all_of_a_sequence_and_one_sees_the_past():
    seen = {}
    for build in (rnn.ElmanLayer, rnn.Bidirectional):
        x = torch.randn(1, 6, 5, requires_grad=True)
        (slopes,) = torch.autograd.grad(build(5, 8)(x)[0, 2].sum(), x)
        seen[build] = (slopes.abs().sum(2)[0] != 0).tolist()
    assert seen[rnn.ElmanLayer] == [True] * 3 + [False] * 3
    assert seen[rnn.Bidirectional] == [True] * 6


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_the_networks_of_1990_have_the_parameters_and_macs_of_a_sum_by_hand(name):
    sizes, parameters, macs = SIZES[name]
    assert rnn.PUBLISHED[name] == sizes
    network = on_meta(rnn.ElmanNetwork, *sizes)
    theirs = on_meta(rnn.TorchNetwork, *sizes)
    assert parameters_of(network) == parameters
    assert parameters_of(theirs) == parameters + sizes[1]
    for one in (network, theirs):
        assert macs_of(one, 3, 10, sizes[0]) == 30 * macs


def test_the_networks_of_elman_and_of_torch_are_one_function_of_a_sequence():
    ours, theirs = rnn.ElmanNetwork(5, 8, 3), rnn.TorchNetwork(5, 8, 3)
    rnn.take_weights(ours, theirs.rnn)
    ours.output = theirs.output
    x = torch.randn(2, 7, 5)
    close(ours(x), theirs(x))
    close(ours(x), torch.sigmoid(ours.output(rnn.unroll(ours.cell, x))))


def test_every_network_runs_forward_and_backward_on_the_meta_device():
    for build, arguments, shape in (
        (rnn.ElmanNetwork, (31, 150, 31), (2, 5, 31)),
        (rnn.JordanNetwork, (8, 3), (2, 5, 1)),
        (rnn.TorchNetwork, (31, 150, 31), (2, 5, 31)),
        (rnn.ElmanLayer, (5, 8), (2, 5, 5)),
        (rnn.Bidirectional, (5, 8), (2, 5, 5)),
    ):
        assert networks.runs_on_meta(on_meta(build, *arguments), *shape).shape[:2] == (2, 5)
    lengths = torch.full((2,), 5)
    cell = on_meta(rnn.ElmanCell, 3, 4)
    x = torch.empty(2, 5, 3, device="meta")
    assert rnn.read_until(cell, x, lengths.to("meta")).shape == (2, 4)
    network = on_meta(rnn.MonthReader, 20, radius=1.0)
    characters = torch.zeros(2, 5, dtype=torch.long, device="meta")
    network(characters, lengths.to("meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# ---- the gradient through time -------------------------------------------------------------------


def test_gradients_by_hand_are_those_of_autograd_with_a_loss_at_some_steps():
    cell, x = rnn.ElmanCell(5, 8).double(), torch.randn(4, 7, 5, dtype=torch.float64)
    asked = torch.randn(4, 7, 8, dtype=torch.float64)
    asked[:, [1, 2, 5]] = 0  # steps without a loss hand on what comes from later ones
    state = torch.zeros(4, 8, dtype=torch.float64)
    states = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        state.retain_grad()
        states.append(state)
    (torch.stack(states, dim=1) * asked).sum().backward()
    before = asked.clone()
    found, totals = rnn.bptt(cell, x, rnn.unroll(cell, x), asked)
    close(asked, before, 0)
    assert list(found) == [name for name, _ in cell.named_parameters()]
    for name, parameter in cell.named_parameters():
        close(found[name], parameter.grad, 1e-12, name)
    close(totals, torch.stack([s.grad for s in states], dim=1), 1e-12)


@R
def test_a_linear_gradient_goes_by_powers_of_the_radius_and_tanh_stays_below(radius):
    x = torch.randn(6, 9, 5, dtype=torch.float64)
    powers = radius ** torch.arange(9, dtype=torch.float64)
    found = {}
    for kind in (rnn.LinearCell, rnn.ElmanCell):
        cell = rnn.draw_weights(kind(5, 16).double(), radius=radius, size=0.3)
        found[kind] = rnn.by_distance(cell, x)
    close(found[rnn.LinearCell], powers, 1e-10)
    assert (found[rnn.ElmanCell][1:] < powers[1:]).all()


def test_weights_are_drawn_orthogonal_and_normal():
    cell = rnn.draw_weights(rnn.ElmanCell(200, 100), radius=1.5, size=0.3)
    W = cell.from_state.weight
    close(W @ W.mT, 2.25 * torch.eye(100), 1e-4)
    networks.starts_with(cell.from_input.weight, 0.3)
    assert not cell.from_input.bias.any()


def test_the_gradient_by_distance_is_the_mean_of_logarithms_over_the_batch():
    cell = rnn.draw_weights(rnn.ElmanCell(5, 8).double(), radius=1.2, size=1.0)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.manual_seed(1)
    found = rnn.by_distance(cell, x)
    torch.manual_seed(1)
    states = rnn.unroll(cell, x).detach()
    slopes = torch.zeros_like(states)
    slopes[:, -1] = torch.randn(3, 8, dtype=torch.float64)
    _, totals = rnn.bptt(cell, x, states, slopes)
    norms = totals.norm(dim=2).flip(1)
    close(found, (norms / norms[:, :1]).log().mean(0).exp(), 1e-10)


@pytest.mark.parametrize(("radius", "size"), [(0.5, 0.1), (1.0, 0.3), (1.5, 0.1), (1.5, 1.0)])
def test_the_predicted_factor_is_that_of_another_quadrature(radius, size):
    z, weight = (torch.from_numpy(values) for values in hermegauss(150))
    weight = weight / weight.sum()
    variance = 1.0
    for _ in range(2000):
        states = torch.tanh(variance**0.5 * z)
        variance = radius**2 * (weight * states**2).sum().item() + size**2
    slopes = 1 - torch.tanh(variance**0.5 * z) ** 2
    expected = radius * (weight * slopes**2).sum().sqrt().item()
    assert rnn.predicted_factor(radius, size) == pytest.approx(expected, rel=3e-5)


def test_the_predicted_factor_is_the_radius_where_nothing_moves():
    assert rnn.predicted_factor(0.5, 0.0) == pytest.approx(0.5, rel=1e-6)


# ---- bits ----------------------------------------------------------------------------------------


def test_each_third_bit_is_the_exclusive_or_of_the_two_before_it():
    bits = rnn.xor_stream(200, 4)
    assert bits.shape == (200, 12)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    first, second, third = bits.view(200, 4, 3).unbind(2)
    assert ((first != second) == (third == 1)).all()
    for drawn in (first, second):
        assert abs(drawn.mean() - 0.5) < 0.06
        assert (drawn.diff(dim=1) != 0).any()


def test_the_loss_by_place_is_that_of_the_bit_that_follows():
    class Knows(nn.Module):
        """Sure of each third bit, undecided on the others."""

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            assert x.shape == (1000, 23, 1)
            y = torch.full_like(x, 0.5)
            before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
            y[:, 1::3] = (before != x).float()[:, 1::3]
            return y

    found = rnn.loss_by_place(Knows())
    assert found.shape == (23,)
    expected = torch.full((23,), math.log(2))
    expected[1::3] = 0
    close(found, expected)


def test_an_elman_network_learns_each_third_bit_from_new_streams():
    network = rnn.train_on_bits(rnn.ElmanNetwork(1, 8, 1), steps=250)
    loss = rnn.loss_by_place(network)
    assert loss[1::3].max() < 0.15
    assert loss[0::3].min() > 0.6


def test_training_on_bits_takes_adam_at_its_rate_on_streams_of_nine(monkeypatch):
    seen = []

    class Spy(torch.optim.Adam):
        def __init__(self, parameters, lr):
            seen.append(lr)
            super().__init__(parameters, lr=lr)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    network = rnn.ElmanNetwork(1, 2, 1)
    network.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape)))
    rnn.train_on_bits(network, steps=2)
    assert seen == [0.02, (32, 8, 1), (32, 8, 1)]


def test_the_gradient_of_one_step_back_ends_at_the_state():
    cell, full = rnn.OneStepBack(1, 4), rnn.ElmanCell(1, 4)
    full.load_state_dict(cell.state_dict())
    x = torch.randn(1, 5, 1, requires_grad=True)
    close(rnn.unroll(cell, x), rnn.unroll(full, x))
    (slopes,) = torch.autograd.grad(rnn.unroll(cell, x)[0, -1].sum(), x)
    assert (slopes[0, :, 0] != 0).tolist() == [False] * 4 + [True]


# ---- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "size"), [(0.1, 10), (3.0, 10), (1e3, 10), (math.inf, 10), (1e-6, 1e-7)]
)
def test_clipping_is_that_of_torch(limit, size):
    ours = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    ours.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    theirs = copy.deepcopy(ours)
    x = torch.randn(5, 4)
    for network in (ours, theirs):
        (size * network(x).square()).sum().backward()
    before = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None])
    found = rnn.clip_by_norm([*ours.parameters()], limit)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    close(found, expected)
    close(found, before.norm())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if b.grad is not None:
            close(a.grad, b.grad)


# ---- months --------------------------------------------------------------------------------------

DATES = [("June 7, 1994", "1994-06-07"), ("7 May 2001", "2001-05-07"), ("12/7/1994", "1994-12-07")]


def test_a_part_holds_padded_characters_lengths_and_months():
    characters = rnn.text.Vocabulary([read for read, _ in DATES])
    x, lengths, months = rnn.month_part(DATES, characters)
    assert [characters.decode(row) for row in x] == [read for read, _ in DATES]
    assert x.shape == (3, 12)
    assert lengths.tolist() == [12, 10, 9]
    assert months.tolist() == [5, 4, 11]


@pytest.mark.parametrize(
    ("read", "month", "expected"),
    [
        ("Saturday, March 5, 2011", 2, "Saturday, March"),
        ("Sat, 5 Mar 2011", 2, "Sat, 5 Mar"),
        ("3/5/2011", 2, "3"),
        ("10/5/2011", 9, "10"),
        ("2011 Sep 5", 8, "2011 Sep"),
        ("May 5 in the year 2011", 4, "May"),
    ],
)
def test_a_date_is_cut_behind_its_month(read, month, expected):
    assert rnn.through_month(read, month) == expected


def test_every_month_is_found_in_a_date():
    days = [date(2001, 1, 1) + timedelta(31 * k) for k in range(12)]
    dates = [(day.strftime("%A, %B %d, %Y"), day.isoformat()) for day in days]
    for (read, iso), day in zip(rnn.cut_dates(dates), days, strict=True):
        assert read == day.strftime("%A, %B")
        assert iso == day.isoformat()


def reader(radius=1.0, d_state=8):
    return rnn.MonthReader(20, radius=radius, d_state=d_state)


def batch(more=0):
    """Five sequences of unequal lengths, the last columns padding."""
    lengths = torch.tensor([7, 3, 5, 7, 1])
    x = torch.randint(3, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    x[torch.arange(7) >= lengths.unsqueeze(1)] = 0
    return F.pad(x, (0, more)), lengths


@R
def test_a_reader_starts_orthogonal_times_its_radius(radius):
    W = reader(radius).rnn.weight_hh_l0
    close(W @ W.mT, radius**2 * torch.eye(8), 1e-5)
    network = on_meta(rnn.MonthReader, 48, radius=radius)
    assert parameters_of(network) == 48 * 16 + 64 * (16 + 64 + 2) + 12 * (64 + 1)


def test_padding_changes_no_answer_no_loss_and_no_gradient():
    network = reader()
    results = []
    for more in (0, 4):
        network.zero_grad()
        x, lengths = batch(more)
        outputs = network(x, lengths)
        loss = F.cross_entropy(outputs, torch.arange(5))
        loss.backward()
        results.append([outputs, loss, *(p.grad.clone() for p in network.parameters())])
    for found, expected in zip(*results, strict=True):
        close(found, expected)


def test_a_batch_gives_what_each_sequence_gives_alone():
    network = reader()
    x, lengths = batch()
    alone = [network(row[None, :n], n[None])[0] for row, n in zip(x, lengths, strict=True)]
    close(network(x, lengths), torch.stack(alone))
    assert len({tuple(row) for row in network(x, lengths).argsort(1).tolist()}) > 1


def test_a_state_that_holds_is_the_last_one_of_a_packed_batch():
    network = reader()
    x, lengths = batch(more=3)
    cell = rnn.ElmanCell(16, 8)
    rnn.take_weights(cell, network.rnn)
    held = rnn.read_until(cell, network.embed(x), lengths)
    close(network.output(held), network(x, lengths))


def test_a_packed_batch_gives_the_states_of_each_sequence_and_zeros_behind_its_end():
    network = nn.RNN(16, 8, num_layers=3)
    _, lengths = batch()
    x = torch.randn(5, 7, 16)
    states, last = rnn.packed_states(network, x, lengths)
    for k, n in enumerate(lengths):
        expected, _ = network(x[k, :n])
        close(states[k, :n], expected)
        close(last[k], expected[-1])
        assert not states[k, n:].any()


def test_each_step_of_a_reader_forgets_the_gradient_of_the_last():
    x, lengths = batch()
    part = x, lengths, torch.arange(5)
    network = reader()
    again = copy.deepcopy(network)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    _, norms = rnn.train_reader(network, part, optimizer, steps=6)
    torch.manual_seed(0)
    for norm in norms:  # nothing has moved, so each batch can be asked alone
        chosen = torch.randint(5, (64,))
        again.zero_grad()
        F.cross_entropy(again(x[chosen], lengths[chosen]), part[2][chosen]).backward()
        expected = torch.cat([p.grad.flatten() for p in again.parameters()]).norm().item()
        assert norm == pytest.approx(expected, rel=1e-4)


def test_what_a_reader_is_trained_on_is_what_its_settings_say(monkeypatch):
    network = reader()
    x, lengths = batch()
    part = x, lengths, torch.arange(5) % 12
    seen = []
    network.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    rates = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    losses, norms = rnn.train_reader(network, part, optimizer, steps=10, limit=0.01)
    assert seen == [64] * 10
    assert len(losses) == len(norms) == 10
    networks.rises_and_falls(rates, peak=0.5, at=1)


def test_a_limit_bounds_the_step_and_no_limit_leaves_it():
    x, lengths = batch()
    part = x, lengths, torch.arange(5)
    moved = {}
    for limit in (1e-4, math.inf):
        torch.manual_seed(0)
        network = reader()
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        _, norms = rnn.train_reader(network, part, optimizer, steps=2, limit=limit)
        after = torch.cat([p.detach().flatten() for p in network.parameters()])
        moved[limit] = (after - before).norm().item()
        assert norms[0] > 0.01
    assert moved[1e-4] < 2.1e-4 < moved[math.inf]


def test_a_reader_fits_a_batch_and_is_judged_by_its_largest_output():
    network = reader(d_state=16)
    x, lengths = batch()
    part = x, lengths, torch.arange(5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses, _ = rnn.train_reader(network, part, optimizer, steps=60)
    assert losses[-1] < losses[0] / 10
    assert rnn.share_right(network, part) == 1
    wrong = (x, lengths, torch.tensor([0, 1, 3, 3, 5]))
    assert rnn.share_right(network, wrong) == pytest.approx(0.6)


def test_looking_back_is_the_gradient_by_each_character_from_the_last():
    network = reader()
    x, lengths = batch()
    months = torch.tensor([3, 1, 4, 1, 5])
    found = rnn.looks_back(network, (x, lengths, months), least=5)
    rows = []
    for k in (0, 2, 3):  # the sequences of at least five characters
        embedded = network.embed(x[k : k + 1, : lengths[k]]).detach().requires_grad_()
        outputs = network.output(network.rnn(embedded[0])[1])
        F.cross_entropy(outputs, months[k : k + 1]).backward()
        norms = embedded.grad[0].norm(dim=1).flip(0)[:5]
        rows.append((norms / norms[0]).log())
    close(found, torch.stack(rows).mean(0).exp(), 1e-4)
    longer = torch.randint(3, 20, (3, 22)), torch.tensor([20, 22, 19]), months[:3]
    close(rnn.looks_back(network, longer), rnn.looks_back(network, longer, least=20))
