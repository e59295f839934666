"""The cells of notebooks/lstm.py, the adding task and the models of text."""

import math

import pytest
import torch
from torch import nn

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting, text

lstm = definitions("lstm")

# A cell, torch's layer, the number of its blocks, of which each has nm + n^2 weights.
CELLS = {
    "LSTM": ("LSTMCell", nn.LSTM, 4),
    "GRU": ("GRUCell", nn.GRU, 3),
}


def pair(kind: str, m: int, n: int):
    """Our cell over a sequence, and torch's layer, with the same random weights."""
    name, layer, _ = CELLS[kind]
    ours = lstm.Unrolled(getattr(lstm, name)(m, n))
    theirs = layer(m, n, batch_first=True)
    networks.share_weights(ours, theirs)
    return ours, theirs


def states_of(kind: str, *shape: int):
    return [torch.randn(shape) for _ in range(2 if kind == "LSTM" else 1)]


# ---- cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(("m", "n"), [(3, 7), (512, 512)])
def test_a_cell_has_two_products_a_block_and_one_bias_more_than_the_paper(kind, m, n):
    name, _, blocks = CELLS[kind]
    network = on_meta(lambda: lstm.Unrolled(getattr(lstm, name)(m, n)))
    assert parameters_of(network) == blocks * (n * m + n * n + 2 * n)
    x = torch.empty(2, 5, m, device="meta")
    assert counting.macs(network, x) == 10 * blocks * (n * m + n * n)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("start", ["zeros", "any"])
def test_outputs_states_and_gradients_are_those_of_torch(kind, start):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 5)
    x = torch.randn(4, 9, 3)
    first = states_of(kind, 4, 5)
    found = []
    for network, state in ((ours, first), (theirs, [s[None] for s in first])):
        inputs = [x.clone().requires_grad_()]
        if start == "zeros":
            outputs, last = network(*inputs)
        elif kind == "GRU" and network is theirs:
            outputs, last = network(*inputs, state[0])
        else:
            outputs, last = network(*inputs, tuple(state))
        last = (last,) if torch.is_tensor(last) else last
        total = outputs.square().sum() + sum((k + 2) * s.sum() for k, s in enumerate(last))
        total.backward()
        gradients = [inputs[0].grad, *(p.grad for p in network.parameters())]
        found.append([outputs, *(s.view(4, 5) for s in last), *gradients])
    for a, b in zip(*found, strict=True):
        networks.close(a, b, 1e-5)


def test_the_gru_of_the_paper_is_torchs_only_where_the_reset_gate_is_open():
    torch.manual_seed(0)
    usual, paper = lstm.GRUCell(3, 5), lstm.PaperGRUCell(3, 5)
    paper.load_state_dict(usual.state_dict())
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    (found,) = paper(x, (h,))
    r, z = torch.sigmoid(usual.from_input(x) + usual.from_state(h))[:, :10].split(5, 1)
    candidate = torch.tanh(usual.from_input(x)[:, 10:] + paper.from_state(r * h)[:, 10:])
    networks.close(found, z * h + (1 - z) * candidate)
    assert not torch.allclose(found, usual(x, (h,))[0], atol=1e-3)
    with torch.no_grad():
        for cell in (usual, paper):
            cell.bias_x[:5] = 50
    networks.close(paper(x, (h,))[0], usual(x, (h,))[0])


def test_peepholes_read_the_old_memory_at_two_gates_and_the_new_one_at_the_third():
    torch.manual_seed(0)
    plain, peeping = lstm.LSTMCell(3, 2), lstm.PeepholeCell(3, 2)
    assert parameters_of(peeping) == parameters_of(plain) + 3 * 2
    assert not peeping.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    x, state = torch.randn(4, 3), (torch.randn(4, 2), torch.randn(4, 2))
    for a, b in zip(peeping(x, state), plain(x, state), strict=True):
        networks.close(a, b)
    with torch.no_grad():
        peeping.peep_i.copy_(torch.tensor([0.5, -1.0]))
        peeping.peep_f.copy_(torch.tensor([2.0, 0.25]))
        peeping.peep_o.copy_(torch.tensor([-0.75, 1.5]))
    h, c = state
    i, f, g, o = (plain.from_input(x) + plain.from_state(h)).chunk(4, 1)
    i, f = torch.sigmoid(i + peeping.peep_i * c), torch.sigmoid(f + peeping.peep_f * c)
    new = f * c + i * torch.tanh(g)
    found = peeping(x, state)
    networks.close(found[1], new)
    networks.close(found[0], torch.sigmoid(o + peeping.peep_o * new) * torch.tanh(new))


@pytest.mark.parametrize("name", ["LSTMCell", "PeepholeCell", "GRUCell", "PaperGRUCell"])
def test_a_later_input_changes_nothing_before_it_and_a_cut_sequence_goes_on(name):
    torch.manual_seed(0)
    network = lstm.Unrolled(getattr(lstm, name)(3, 5))
    x = torch.randn(2, 8, 3)
    whole, last = network(x)
    other = x.clone()
    other[:, 5:] = 7  # padding is such an input
    changed, _ = network(other)
    networks.close(changed[:, :5], whole[:, :5], 0)
    assert not torch.allclose(changed[:, 5], whole[:, 5])
    first, state = network(x[:, :3])
    second, end = network(x[:, 3:], state)
    networks.close(torch.cat((first, second), 1), whole)
    for a, b in zip(end, last, strict=True):
        networks.close(a, b)
    networks.close(network(x.flip(0))[0], whole.flip(0))


@pytest.mark.parametrize("name", ["LSTMCell", "PeepholeCell", "GRUCell", "PaperGRUCell"])
def test_a_cell_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(lambda: lstm.Unrolled(getattr(lstm, name)(3, 5)))
    outputs, _ = networks.runs_on_meta(network, 2, 4, 3)
    assert outputs.shape == (2, 4, 5)


def test_weights_start_between_plus_and_minus_one_over_the_root_of_the_width():
    torch.manual_seed(0)
    for weight in lstm.LSTMCell(64, 256).parameters():
        networks.starts_with(weight, 1 / 16 / 3**0.5, 0.06)
        assert weight.abs().max() <= 1 / 16
        assert weight.abs().max() > 0.99 / 16


def test_a_cell_of_one_unit_gets_the_weights_that_are_set_and_no_others():
    cell = lstm.LSTMCell(2, 1)
    lstm.set_blocks(cell, [([1.0 * k, 2.0 * k], 3.0 * k) for k in range(1, 5)])
    k = torch.arange(1.0, 5)
    networks.close(cell.weight_x, torch.stack((k, 2 * k), 1))
    networks.close(cell.bias_x, 3 * k)
    assert not cell.weight_h.any() and not cell.bias_h.any()


# ---- the adding task -----------------------------------------------------------------------------


def test_a_sequence_of_the_adding_task_has_one_mark_in_each_half_and_their_mean():
    torch.manual_seed(0)
    x, y = lstm.adding_batch(4000, 7)
    values, marks = x.unbind(-1)
    assert x.shape == (4000, 7, 2)
    assert set(marks.unique().tolist()) == {0, 1}
    assert (marks[:, :3].sum(1) == 1).all() and (marks[:, 3:].sum(1) == 1).all()
    assert (marks.mean(0) > 0.2).all()  # each place comes up
    networks.close(y, values[marks.bool()].view(-1, 2).mean(1))
    assert values.min() < -0.99 and values.max() > 0.99
    assert values.mean().abs() < 0.02
    assert abs(y.square().mean() - 1 / 6) < 0.01


def test_the_error_of_gates_set_by_hand_is_that_of_h_over_a_fifth():
    cell = lstm.LSTMCell(2, 1)
    closed = ([0.0, 0.0], -50.0)
    lstm.set_blocks(cell, [closed] * 4)  # h stays 0
    assert lstm.adder_error(cell, 20) == pytest.approx(1 / 6, abs=0.02)
    keep = ([0.0, 0.0], 10.0)
    lstm.set_blocks(cell, [([0.0, 20.0], -10.0), keep, ([0.1, 0.0], 0.0), keep])
    assert lstm.adder_error(cell, 20) < 1e-4
    torch.manual_seed(0)
    x, y = lstm.adding_batch(500, 20)
    with torch.no_grad():
        h = lstm.Unrolled(cell)(x)[0][:, -1, 0]
    assert lstm.adder_error(cell, 20) == pytest.approx((5 * h - y).square().mean().item(), rel=1e-4)


def test_a_reader_takes_the_last_output_and_starts_with_an_open_forget_gate():
    torch.manual_seed(0)
    for build, kind in (
        (lstm.plain_rnn, nn.RNN),
        (lstm.lstm, nn.LSTM),
        (lstm.orthogonal_rnn, nn.RNN),
    ):
        network = build()
        assert type(network.layer) is kind and network.layer.hidden_size == 32
        x = torch.randn(3, 6, 2)
        outputs, _ = network.layer(x)
        networks.close(network(x), network.head(outputs[:, -1]).flatten())
        on = on_meta(build)
        assert networks.runs_on_meta(on, 3, 6, 2).shape == (3,)
    weight = lstm.orthogonal_rnn().layer.weight_hh_l0
    networks.close(weight @ weight.T, torch.eye(32), 1e-4)
    bias = lstm.lstm().layer
    networks.close((bias.bias_ih_l0 + bias.bias_hh_l0)[32:64], torch.ones(32), 0)


@pytest.mark.parametrize(("layer", "blocks"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_gates_bias_is_that_of_the_second_block_and_the_rest_stays(layer, blocks):
    torch.manual_seed(0)
    found = layer(3, 5)
    before = {name: p.clone() for name, p in found.named_parameters()}
    assert lstm.set_gate(found, 2.5) is found
    for name, p in found.named_parameters():
        expected = before[name].clone()
        if name.startswith("bias"):
            expected[5:10] = 2.5 if "_ih_" in name else 0
        networks.close(p, expected, 0)
    assert len(found.bias_ih_l0) == 5 * blocks


def test_an_open_update_gate_keeps_h_and_an_open_forget_gate_keeps_c():
    torch.manual_seed(0)
    h, x = torch.randn(1, 2, 5), torch.randn(2, 4, 3)
    _, last = lstm.set_gate(nn.GRU(3, 5, batch_first=True), 60)(x, h)
    networks.close(last, h)
    layer = lstm.set_gate(nn.LSTM(3, 5, batch_first=True), 60)
    with torch.no_grad():
        layer.bias_ih_l0[:5] = -60  # nothing is written
    _, (_, c) = layer(x, (torch.zeros(1, 2, 5), h))
    networks.close(c, h)


class Fading(nn.Module):
    """A layer whose output is the input, faded by a factor a step, from which all is known."""

    input_size = 4

    def forward(self, x):
        T = x.shape[1]
        fading = 0.5 ** torch.arange(T - 1, -1, -1.0)
        return (x * fading[:, None]).cumsum(1), None


def test_the_reach_of_a_fading_sum_halves_with_each_lag():
    torch.manual_seed(0)
    found = lstm.reach(Fading(), 12)
    networks.close(found, 0.5 ** torch.arange(12.0))


def test_learning_ends_at_the_goal_and_notes_the_error_every_twenty_steps():
    torch.manual_seed(0)
    errors = lstm.learn(lstm.lstm(), 5, 200)
    assert len(errors) < 11 and errors[-1] < lstm.GOAL < min(errors[:-1])
    assert errors[0] > 0.1
    torch.manual_seed(0)
    assert len(lstm.learn(lstm.lstm(), 5, 50)) == 3
    network = lstm.lstm()
    x, y = lstm.adding_batch(6, 5)
    assert lstm.error_on(network, x, y) == pytest.approx((network(x) - y).square().mean().item())


def test_training_takes_adam_at_its_rate_and_clips_the_gradient_at_one(monkeypatch):
    made, clipped, shapes = [], [], []
    adam, clip, batch = torch.optim.Adam, nn.utils.clip_grad_norm_, lstm.adding_batch
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr: made.append(adam(p, lr=lr)) or made[-1])
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most) or clip(p, most)
    )
    namespace = lstm._namespace
    monkeypatch.setitem(
        namespace, "adding_batch", lambda B, T: shapes.append((B, T)) or batch(B, T)
    )
    for rate in (0.01, 0.003):
        lstm.learn(lstm.plain_rnn(), 6, 2, rate=rate)
    lstm.learn(lstm.plain_rnn(), 6, 1)
    assert [o.param_groups[0]["lr"] for o in made] == [0.01, 0.003, 0.01]
    assert clipped == [1.0] * 5
    assert shapes == [(200, 6), (64, 6), (64, 6)] * 2 + [(200, 6), (64, 6)]


def test_a_walk_is_the_pass_of_the_cell_and_a_held_gate_keeps_its_value():
    torch.manual_seed(0)
    cell = lstm.LSTMCell(2, 3)
    x = torch.randn(4, 6, 2)
    outputs, (_, c) = lstm.Unrolled(cell)(x)
    steps = lstm.walk(cell, x)
    networks.close(steps["h"], outputs)
    networks.close(steps["c"][:, -1], c)
    h, c = steps["h"][:, 2], steps["c"][:, 2]
    blocks = (cell.from_input(x[:, 3]) + cell.from_state(h)).chunk(4, 1)
    for name, block, act in zip("ifgo", blocks, "sstsx", strict=False):
        value = torch.tanh(block) if act == "t" else torch.sigmoid(block)
        networks.close(steps[name][:, 3], value)
    kept = torch.tensor([0.25, 0.5, 1.0])
    held = lstm.walk(cell, x, {"f": kept})
    networks.close(held["f"], kept.expand(4, 6, 3), 0)
    new = kept * held["c"][:, 1] + held["i"][:, 2] * held["g"][:, 2]
    networks.close(held["c"][:, 2], new)
    networks.close(held["h"], held["o"] * torch.tanh(held["c"]))
    assert not torch.allclose(held["c"][:, -1], steps["c"][:, -1])


def test_growth_is_the_mean_size_of_the_memory_after_the_last_step():
    found = lstm.growth(7, {})
    torch.manual_seed(0)
    cell = lstm.LSTMCell(4, 16)
    _, (_, c) = lstm.Unrolled(cell)(torch.ones(1, 7, 4))
    assert found == pytest.approx(c.abs().mean().item())
    steady = lstm.growth(40, {"f": torch.ones(16), "i": torch.ones(16), "g": torch.ones(16)})
    assert steady == pytest.approx(40)


# ---- text ----------------------------------------------------------------------------------------


def test_every_third_paragraph_is_taken():
    assert lstm.every("a\nb\nc\nd\ne\nf\ng", 3) == "a\nd\ng"


def test_the_model_of_text_embeds_remembers_and_scores():
    torch.manual_seed(0)
    model = lstm.CharacterModel(7, d_embed=3, d_hidden=5)
    numbers = torch.randint(7, (2, 9))
    scores, state = model(numbers)
    h, _ = model.memory(model.embed(numbers))
    networks.close(scores, model.head(h))
    assert scores.shape == (2, 9, 7)
    first, middle = model(numbers[:, :4])
    second, end = model(numbers[:, 4:], middle)
    networks.close(torch.cat((first, second), 1), scores)
    networks.close(end[1], state[1])
    other = numbers.clone()
    other[:, 6] = (other[:, 6] + 1) % 7
    networks.close(model(other)[0][:, :6], scores[:, :6], 0)
    biases = model.memory.bias_ih_l0 + model.memory.bias_hh_l0
    networks.close(biases[5:10], torch.ones(5), 0)
    published = on_meta(lstm.CharacterModel, 66)
    assert parameters_of(published) == 66 * 32 + 4 * (128 * 32 + 128**2 + 2 * 128) + 129 * 66
    with torch.device("meta"):
        scores, _ = published(torch.zeros(2, 3, dtype=torch.long))
        scores.sum().backward()
    assert all(p.grad is not None for p in published.parameters())


def test_a_text_that_repeats_is_learnt():
    torch.manual_seed(0)
    numbers = torch.arange(5).repeat(60)
    model = lstm.CharacterModel(5, d_embed=4, d_hidden=16)
    before = lstm.bits(model, numbers)
    lstm.train_characters(model, numbers, 120)
    assert lstm.bits(model, numbers) < before / 10


def test_training_on_text_asks_for_the_next_character_of_random_pieces(monkeypatch):
    seen, rates = [], []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(400))

        def forward(self, numbers):
            seen.append(numbers)
            scores = self.scores.expand(*numbers.shape, 400).clone()
            scores.retain_grad()
            kept.append(scores)
            return scores, None

    kept, adam = [], torch.optim.Adam

    class Adam(adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    clipped = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most))
    torch.manual_seed(0)
    lstm.train_characters(Model(), torch.arange(400), 20)
    assert len(seen) == 20 and seen[0].shape == (8, 64)
    assert clipped == [1.0] * 20
    networks.rises_and_falls(rates, peak=0.01, at=3)
    for numbers, scores in zip(seen, kept, strict=True):
        assert (numbers.diff(dim=1) == 1).all()
        wanted = scores.grad.argmin(-1)  # only the score of what is wanted has to rise
        assert (wanted == numbers + 1).all()
    starts = torch.cat([numbers[:, 0] for numbers in seen])
    assert starts.min() < 20 and starts.max() > 315
    lstm.train_characters(Model(), torch.arange(65), 2)  # a text that has one piece
    assert (seen[-1][:, 0] == 0).all()


def test_bits_are_the_mean_surprise_of_each_character_but_the_first():
    torch.manual_seed(0)
    model = lstm.CharacterModel(6, d_embed=3, d_hidden=4)
    numbers = torch.randint(6, (12,))
    chances = model(numbers[None])[0][0].softmax(-1)
    surprise = [-math.log2(chances[t - 1, numbers[t]].item()) for t in range(1, 12)]
    assert lstm.bits(model, numbers) == pytest.approx(sum(surprise) / 11, rel=1e-5)
    places = torch.tensor([4, 7, 11])
    total = 0
    for place in places.tolist():
        chances = model(numbers[None, place - 3 : place])[0][0, -1].softmax(-1)
        total -= math.log2(chances[numbers[place]].item())
    assert lstm.bits_with(model, numbers, 3, places) == pytest.approx(total / 3, rel=1e-5)


def test_counts_are_mixed_over_lengths_as_by_hand():
    ngram = lstm.NGram("abacab", 2)
    # one character: a 3, b 2, c 1 of 6, three kinds; even chances count as often as there are kinds
    alone = {"a": (3 + 3 / 3) / 9, "b": (2 + 3 / 3) / 9, "c": (1 + 3 / 3) / 9}
    for character, expected in alone.items():
        assert ngram.probability("", character) == pytest.approx(expected)
    # behind a: b twice, c once; behind b: a once
    assert ngram.probability("a", "b") == pytest.approx((2 + 2 * alone["b"]) / 5)
    assert ngram.probability("xxa", "a") == pytest.approx(2 * alone["a"] / 5)
    assert ngram.probability("b", "a") == pytest.approx((1 + alone["a"]) / 2)
    assert ngram.probability("x", "a") == pytest.approx(alone["a"])  # not seen: the shorter one
    for context in ("", "a", "b", "c", "ab"):
        assert sum(ngram.probability(context, c) for c in "abc") == pytest.approx(1)
    longer = lstm.NGram("abacab", 3)
    expected = (1 + ngram.probability("b", "a")) / 2
    assert longer.probability("ab", "a") == pytest.approx(expected)
    assert longer.probability("ab", "a") != pytest.approx(ngram.probability("ab", "a"))
    assert len(ngram.times) == 3 + 4


def test_bits_of_counts_take_as_much_context_as_their_order():
    ngram = lstm.NGram("abacabadabacaba", 3)
    read = "cabad"
    contexts = ("c", "ca", "ab", "ba")
    total = 0
    for context, character in zip(contexts, read[1:], strict=True):
        total -= math.log2(ngram.probability(context, character))
    assert ngram.bits(read) == pytest.approx(total / 4)


class Alphabet(nn.Module):
    """Scores the next letter of the alphabet, and notes what it is given."""

    def __init__(self, V: int, height: float = 50.0):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))
        self.V = V
        self.given = []

    def forward(self, numbers, state=None):
        self.given.append((numbers.tolist(), state))
        following = nn.functional.one_hot((numbers - 3 + 1) % (self.V - 3) + 3, self.V)
        return self.height * following, len(self.given)


def test_writing_goes_on_from_a_start_one_drawn_character_at_a_time():
    vocabulary = text.Vocabulary(["abcdef"])
    model = Alphabet(len(vocabulary))
    found = lstm.write(model, vocabulary, "cd", temperature=1.0)
    assert found == ("cd" + "efabcd" * 27)[:162]
    assert model.given[0] == ([[5, 6]], None)
    assert model.given[1] == ([[7]], 1)
    torch.manual_seed(0)
    right = []
    for temperature in (0.5, 2.0):
        mild = Alphabet(len(vocabulary), 2.0)
        drawn = lstm.write(mild, vocabulary, "a", temperature=temperature)
        codes = [ord(c) - 97 for c in drawn]
        right.append(
            sum((b - a) % 6 == 1 for a, b in zip(codes, codes[1:], strict=False)) / len(codes)
        )
    assert right[0] > 0.8 > 0.4 > right[1]


def test_writing_by_counts_follows_what_was_counted():
    ngram = lstm.NGram("abcdef" * 400, 3)
    torch.manual_seed(0)
    found = lstm.write_counted(ngram, list("abcdef"), "cd")
    assert len(found) == 162 and found.startswith("cd")
    codes = [ord(c) - 97 for c in found]
    follow = sum((b - a) % 6 == 1 for a, b in zip(codes, codes[1:], strict=False))
    assert follow > 150
    asked = []

    class Asked(lstm.NGram):
        def probability(self, context, character):
            asked.append(context)
            return float(character == "b")

    assert lstm.write_counted(Asked("ab", 3), ["a", "b"], "abab") == "abab" + "b" * 160
    assert set(map(len, asked)) == {2}


def test_gradients_are_those_of_the_sum_of_squares_of_all_that_comes_out():
    torch.manual_seed(0)
    network = lstm.Unrolled(lstm.LSTMCell(3, 4))
    x, state = torch.randn(2, 5, 3), [torch.randn(2, 4), torch.randn(2, 4)]
    found = lstm.with_gradients(network, x, state)
    inputs = [t.clone().requires_grad_() for t in (x, *state)]
    outputs, last = network(inputs[0], tuple(inputs[1:]))
    (outputs.square().sum() + last[0].square().sum() + last[1].square().sum()).backward()
    wanted = [outputs, *last, *(t.grad for t in inputs), *(p.grad for p in network.parameters())]
    for a, b in zip(found, wanted, strict=True):
        networks.close(a, b)
    layer = lstm.TorchGRU(3, 4, batch_first=True)
    h, (end,) = layer(x)
    again, (other,) = layer(x, (state[0][None],))
    networks.close(end[0], h[:, -1], 0)
    assert not torch.allclose(again, h)
    networks.close(other[0], again[:, -1], 0)


def test_one_batch_is_fitted_to_a_hundredth_of_its_first_error():
    torch.manual_seed(0)
    network = lstm.lstm()
    x, y = lstm.adding_batch(16, 12)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    first = lstm.error_on(network, x, y)
    for _ in range(120):
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lstm.error_on(network, x, y) < first / 100
