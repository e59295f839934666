"""Sound, network, losses and training of notebooks/tacotron.py."""

import copy
import math

import librosa
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import on_meta, parameters_of
from workbench import counting

t = definitions("tacotron")


def noise(*shape: int, number: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def fresh(r: int = 2):
    """A small network of 20 characters, no bias, scale or statistic of which is 0 or 1."""
    torch.manual_seed(0)
    model = t.Tacotron(20, t.SMALL, r=r)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return model.eval()


# ---- counts --------------------------------------------------------------------------------------


def gru_weights(d_in: int, d: int) -> int:
    return 3 * d * (d_in + d + 2)


def cbhg_weights(c_in: int, width: int, K: int, c_mid: int) -> int:
    bank = sum(k * c_in * width + 2 * width for k in range(1, K + 1))
    project = 3 * K * width * c_mid + 2 * c_mid + 3 * c_mid * c_in + 2 * c_in
    widen = 0 if c_in == width else (c_in + 1) * width
    return bank + project + widen + 4 * 2 * width * (width + 1) + 2 * gru_weights(width, width)


@pytest.mark.parametrize("r", [1, 2, 5])
def test_parameters_are_those_of_table_1(r):
    model = on_meta(t.Tacotron, 40, r=r)
    text = 40 * 256 + 257 * 256 + 257 * 128 + cbhg_weights(128, 128, 16, 128)
    decoder = 81 * 256 + 257 * 128 + gru_weights(128, 256) + 2 * 256 * 256 + 256
    decoder += 513 * 256 + 2 * gru_weights(256, 256) + 257 * 80 * r
    behind = cbhg_weights(80, 128, 8, 256) + 257 * 1025
    assert parameters_of(model) == text + decoder + behind
    assert parameters_of(model.decoder) == decoder
    if r == 2:
        assert parameters_of(model) == 6_774_209
        assert parameters_of(on_meta(t.Tacotron, 40)) == 6_774_209


def test_macs_are_those_of_matrix_products():
    model = on_meta(t.Tacotron, 20, t.SMALL, r=2)
    numbers = torch.ones(1, 9, dtype=torch.long, device="meta")
    found = counting.macs(t.OnSilence(model, 12), numbers)

    def cbhg(c_in, width, K, c_mid):
        bank = sum(range(1, K + 1)) * c_in * width
        widen = 0 if c_in == width else c_in * width
        gru = 2 * 3 * width * 2 * width
        return bank + 3 * K * width * c_mid + 3 * c_mid * c_in + widen + 8 * width**2 + gru

    text = 9 * (64 * 64 + 64 * 32 + cbhg(32, 32, 8, 32))
    D = 64  # of the decoder
    step = 40 * 64 + 64 * 32 + 3 * D * (32 + D) + D * D + (D + 64) * D + 2 * 3 * D * 2 * D
    steps = 6 * (step + D * 80) + 9 * 64 * D + 6 * 9 * (D + 64)
    behind = 12 * (cbhg(40, 32, 4, 64) + 64 * 1025)
    assert found == text + steps + behind


# ---- sound ---------------------------------------------------------------------------------------


def test_windows_are_50_ms_and_one_each_12_and_a_half():
    assert (t.N_FFT, t.WINDOW, t.HOP) == (2048, 1102, 276)


def test_transform_and_its_inverse_are_those_of_librosa():
    wave = noise(4_000)
    how = {"hop_length": t.HOP, "win_length": t.WINDOW}
    expected = librosa.stft(wave.numpy(), n_fft=t.N_FFT, **how)
    found = t.stft(wave)
    assert found.shape == (1025, 1 + 4_000 // t.HOP)
    assert np.abs(found.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    bent = found * torch.exp(1j * found.abs())  # what is no transform of any sound
    expected = librosa.istft(bent.numpy(), n_fft=t.N_FFT, **how)
    networks.close(t.istft(bent), torch.from_numpy(expected), 1e-4)
    networks.close(t.istft(found), wave[: len(t.istft(found))], 1e-4)


def test_pre_emphasis_is_a_filter_and_undone_by_its_inverse():
    wave = noise(3_000)
    for ours, theirs in (("emphasised", "preemphasis"), ("restored", "deemphasis")):
        reference = getattr(librosa.effects, theirs)(wave.numpy(), coef=0.97, zi=[0.0])
        networks.close(getattr(t, ours)(wave), torch.from_numpy(reference))
    networks.close(t.restored(t.emphasised(wave)), wave, 1e-5)
    assert t.emphasised(torch.tensor([2.0, 2.0]), 0.5).tolist() == [2, 1]
    assert t.restored(torch.tensor([2.0, 1.0, 0.0]), 0.5).tolist() == [2, 2, 1]


@pytest.mark.parametrize("n_mels", [40, 80])
def test_mel_filters_are_those_of_librosa(n_mels):
    expected = librosa.filters.mel(sr=22_050, n_fft=2048, n_mels=n_mels, htk=True)
    found = t.mel_filters(n_mels)
    assert found.dtype == torch.float32
    networks.close(found, torch.from_numpy(expected))


def test_silence_has_level_0_and_a_magnitude_of_1_has_1():
    found = t.level(torch.tensor([0.0, 1e-5, 1e-4, 0.01, 1.0, 10.0]))
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 0.5, 1, 1.25]))
    magnitude = torch.tensor([1e-3, 0.5, 7.0])
    torch.testing.assert_close(t.magnitude_of(t.level(magnitude)), magnitude)


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_griffin_lim_is_that_of_librosa(momentum):
    magnitude = t.stft(noise(22 * t.HOP)).abs()
    found, errors = t.griffin_lim(magnitude, torch.zeros_like(magnitude), 4, momentum)
    how = {"hop_length": t.HOP, "win_length": t.WINDOW, "momentum": momentum, "init": None}
    reference = librosa.griffinlim(magnitude.numpy(), n_iter=4, **how)
    networks.close(found, torch.from_numpy(reference), 1e-3)
    networks.close(t.by_scipy(magnitude, 4, momentum).float(), torch.from_numpy(reference), 1e-3)
    assert len(errors) == 4


def test_the_transforms_of_scipy_are_scaled_as_ours():
    wave = noise(22 * t.HOP)
    found = t.scipy_stft(wave.double().numpy())
    assert np.abs(found - t.stft(wave).numpy()).max() < 1e-5 * np.abs(found).max()
    bent = found * np.exp(1j * np.abs(found))
    ours = t.istft(torch.from_numpy(bent).to(torch.complex64))
    networks.close(torch.from_numpy(t.scipy_istft(bent)).float(), ours, 1e-4)


def test_the_error_of_griffin_lim_never_rises_and_is_0_at_the_true_phases():
    wave = noise(22 * t.HOP)
    magnitude = t.stft(wave).abs()
    _, errors = t.griffin_lim(magnitude, t.random_phase(magnitude, 3), 12)
    assert all(b <= a + 1e-6 for a, b in zip(errors, errors[1:]))
    assert errors[-1] < 0.7 * errors[0]
    first = t.stft(t.istft(torch.polar(magnitude, t.random_phase(magnitude, 3)))).abs()
    assert errors[0] == pytest.approx(((first - magnitude).norm() / magnitude.norm()).item())
    found, errors = t.griffin_lim(magnitude, t.stft(wave).angle(), 2)
    assert errors[-1] < 1e-5
    networks.close(found, wave[: len(found)], 1e-3)


def test_random_phases_fill_the_circle_and_follow_their_seed():
    found = t.random_phase(torch.ones(50, 60), 1)
    assert found.shape == (50, 60) and 0 <= found.min() < 0.01
    assert found.max() == pytest.approx(2 * math.pi, abs=0.01)
    assert torch.equal(found, t.random_phase(torch.ones(50, 60), 1))
    assert not torch.equal(found, t.random_phase(torch.ones(50, 60), 2))


def test_a_sound_is_made_of_levels_with_a_power():
    magnitude = t.stft(noise(4_000)).abs()
    levels = t.level(magnitude).T
    for power in (1.0, 1.2):
        raised = magnitude**power
        wave, _ = t.griffin_lim(raised, t.random_phase(raised, 0), 50)
        networks.close(t.vocode(levels, power), t.restored(wave), 1e-2)
    networks.close(t.vocode(levels), t.vocode(levels, 1.2), 0)


# ---- network -------------------------------------------------------------------------------------


def test_a_pre_net_drops_half_of_both_layers():
    torch.manual_seed(0)
    net = t.PreNet(6, 400, 300)
    x = noise(5, 6)
    hidden = (x @ net.layer1.weight.T + net.layer1.bias).clamp(min=0)
    expected = (hidden @ net.layer2.weight.T + net.layer2.bias).clamp(min=0)
    networks.close(net.eval()(x), expected)
    seen = {}
    net.layer2.register_forward_hook(lambda m, inputs, y: seen.update(x=inputs[0], y=y))
    found = net.train()(x)
    for before, after in ((hidden, seen["x"]), (seen["y"].clamp(min=0), found)):
        kept = after != 0
        networks.close(after[kept], 2 * before[kept])
        assert 0.45 < kept[before > 0].float().mean() < 0.55


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_convolution_keeps_the_length_and_looks_one_further_ahead_if_even(width):
    torch.manual_seed(0)
    layer = t.ConvNorm(3, 5, width).eval()
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 1.5)
    x = noise(2, 3, 9)
    networks.close(layer(x), layer.norm(by_hand(layer.conv, x)))


def by_hand(layer: nn.Conv1d, x):
    """Convolution by hand: place t reads t - (k - 1) // 2 and on."""
    k = layer.weight.shape[-1]
    y = torch.zeros(len(x), layer.weight.shape[0], x.shape[-1])
    for place in range(x.shape[-1]):
        for j in range(k):
            source = place - (k - 1) // 2 + j
            if 0 <= source < x.shape[-1]:
                y[..., place] += x[..., source] @ layer.weight[..., j].T
    return y


def test_a_highway_layer_mixes_its_input_and_a_relu_layer():
    torch.manual_seed(0)
    layer = t.Highway(6)
    x = noise(4, 6)
    gate = torch.sigmoid(layer.gate(x))
    networks.close(layer(x), gate * layer.change(x).relu() + (1 - gate) * x)
    assert layer.gate.bias.tolist() == [-1] * 6
    nn.init.constant_(layer.gate.bias, -100)
    networks.close(layer(x), x)
    nn.init.constant_(layer.gate.bias, 100)
    networks.close(layer(x), layer.change(x).relu())


@pytest.mark.parametrize(("c_in", "width"), [(6, 6), (5, 6)])
def test_a_cbhg_is_its_parts_in_the_order_of_figure_2(c_in, width):
    torch.manual_seed(0)
    net = t.CBHG(c_in, width, K=4, c_mid=7).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1)
    x = noise(2, 9, c_in)
    assert [layer.conv.kernel_size[0] for layer in net.bank] == [1, 2, 3, 4]
    bank = torch.cat([layer(x.mT).relu() for layer in net.bank], 1)
    pooled = bank.clone()
    pooled[..., :-1] = torch.maximum(bank[..., :-1], bank[..., 1:])
    y = x + net.project2(net.project1(pooled).relu()).mT
    y = y if c_in == width else net.widen(y)
    for layer in net.highway:
        y = layer(y)
    assert len(net.highway) == 4
    both = []
    for ends, turn in (("", False), ("_reverse", True)):
        one = nn.GRU(width, width, batch_first=True)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        one.load_state_dict({name: getattr(net.gru, name + ends) for name in names})
        states = t.gru_by_formula(one, y.flip(1) if turn else y)
        both.append(states.flip(1) if turn else states)
    networks.close(net(x), torch.cat(both, -1))


def test_the_bank_is_one_convolution_with_kernels_that_are_zero_outside():
    net = fresh().encoder
    x = noise(2, 32, 11)
    expected = torch.cat([layer.conv(F.pad(x, layer.room)) for layer in net.bank], 1)
    networks.close(t.OneConvolution(net.bank)(x), expected)


def test_a_gru_is_its_formula():
    torch.manual_seed(0)
    gru = nn.GRU(5, 7, batch_first=True)
    x = noise(3, 6, 5)
    networks.close(t.gru_by_formula(gru, x), gru(x)[0])


def test_attention_is_a_mean_by_additive_scores_that_leaves_padding_out():
    torch.manual_seed(0)
    attention = t.Attention(5, 6, 7)
    query, memory = noise(2, 3, 5), noise(2, 4, 6)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    context, weights = attention(query, memory, mask)
    for b, n in ((0, 2), (1, 0)):
        kept = memory[b][mask[b]]
        asked = attention.of_query.weight @ query[b, n]
        keys = kept @ attention.of_memory.weight.T
        scores = torch.tanh(asked + keys) @ attention.score.weight[0]
        expected = scores.softmax(0)
        networks.close(weights[b, n, : len(kept)], expected)
        networks.close(context[b, n], expected @ kept)
    assert not weights[1, :, 2:].any()


def test_a_step_is_told_the_last_frame_of_the_one_before():
    frames = torch.arange(1.0, 13).view(1, 6, 2)
    assert t.given_frames(frames, 1)[0].tolist() == [[0, 0], *frames[0, :5].tolist()]
    assert t.given_frames(frames, 2)[0].tolist() == [[0, 0], [3, 4], [7, 8]]
    assert t.given_frames(frames, 3)[0].tolist() == [[0, 0], [5, 6]]


@pytest.mark.parametrize("r", [1, 2, 5])
def test_the_decoder_is_its_parts_in_the_order_of_figure_1(r):
    decoder = fresh(r).decoder
    memory, mel = noise(2, 7, 64), noise(2, 20, 40)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    found, weights = decoder(memory, mask, mel)
    query = t.gru_by_formula(decoder.asking, decoder.prenet(t.given_frames(mel, r)))
    context, expected = decoder.attention(query, memory, mask)
    networks.close(weights, expected)
    x = torch.cat((query, context), -1) @ decoder.join.weight.T + decoder.join.bias
    x = x + t.gru_by_formula(decoder.rnn1, x)
    x = x + t.gru_by_formula(decoder.rnn2, x)
    flat = x @ decoder.frames.weight.T + decoder.frames.bias
    for step in range(20 // r):
        for frame in range(r):
            part = flat[:, step, 40 * frame : 40 * (frame + 1)]
            networks.close(found[:, step * r + frame], part)


@pytest.mark.parametrize("r", [1, 2, 5])
def test_frames_written_step_by_step_are_those_of_the_whole_pass(r):
    model = fresh(r)
    numbers = torch.randint(3, 20, (3, 9))
    numbers[1, 5:] = t.PAD
    mel, bins, weights = t.generate(model, numbers, 4)
    assert mel.shape == (3, 4 * r, 40) and bins.shape == (3, 4 * r, 1025)
    expected = model(numbers, mel)
    for found, wanted in zip((mel, bins, weights), expected, strict=True):
        networks.close(found, wanted)
    assert not weights[1, :, 5:].any()


def test_a_later_frame_changes_nothing_before_it_but_in_the_bins():
    model = fresh(2)
    numbers, mel = torch.randint(3, 20, (2, 6)), noise(2, 12, 40)
    other = mel.clone()
    other[:, 7] += 1
    found, changed = model(numbers, mel), model(numbers, other)
    networks.close(changed[0][:, :8], found[0][:, :8])
    assert not torch.allclose(changed[0][:, 8:], found[0][:, 8:], atol=1e-3)
    assert not torch.allclose(changed[1][:, :6], found[1][:, :6], atol=1e-4)


def test_the_network_is_encoder_decoder_and_what_stands_behind():
    model = fresh()
    numbers, mel = torch.randint(3, 20, (2, 6)), noise(2, 12, 40)
    memory = model.encoder(model.prenet(model.embed(numbers)))
    networks.close(model.memory(numbers), memory)
    frames, weights = model.decoder(memory, numbers != t.PAD, mel)
    found = model(numbers, mel)
    networks.close(found[0], frames)
    networks.close(found[1], model.bins(model.post(frames)))
    networks.close(found[2], weights)


def test_the_network_runs_forward_and_backward_on_the_meta_device():
    model = on_meta(t.Tacotron, 20, t.SMALL, r=5)
    with torch.device("meta"):
        numbers, mel = torch.ones(2, 9, dtype=torch.long), torch.zeros(2, 20, 40)
        lengths = torch.full((2,), 17)
    frames, guided = t.losses(model, numbers, mel, lengths)
    (frames + guided + model(numbers, mel)[1].sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- losses and training -------------------------------------------------------------------------


def test_weights_on_the_diagonal_cost_nothing_and_those_off_it_as_the_formula_says():
    eye = torch.eye(4)[None]
    four = torch.tensor([4])
    assert t.guided_loss(eye, four, four) == 0 and t.near_diagonal(eye, four, four) == 1
    distance, spoken = t.off_diagonal(eye, four, four)
    torch.testing.assert_close(distance[0, 0], torch.tensor([0, 0.25, 0.5, 0.75]))
    assert spoken.all()
    first = torch.zeros(1, 4, 4)
    first[..., 0] = 1  # stays at the first character
    expected = sum(1 - math.exp(-((n / 4) ** 2) / 0.08) for n in range(4)) / 4
    assert t.guided_loss(first, four, four).item() == pytest.approx(expected, rel=1e-5)
    assert t.near_diagonal(first, four, four) == 0.25


def test_silence_behind_the_end_is_neither_guided_nor_judged():
    weights = torch.zeros(1, 6, 5)
    weights[0, [0, 1, 2], [0, 1, 2]] = 1
    weights[0, 3:, 0] = 1
    steps, places = torch.tensor([3.0]), torch.tensor([3])
    assert t.guided_loss(weights, steps, places) == 0
    assert t.near_diagonal(weights, steps, places) == 1
    _, spoken = t.off_diagonal(weights, torch.tensor([2.4]), places)
    assert spoken.tolist() == [[True, True, False, False, False, False]]


def test_losses_are_mean_absolute_error_and_the_guide_in_steps():
    model = fresh(5)
    numbers = torch.randint(3, 20, (2, 6))
    numbers[1, 4:] = t.PAD
    mel, lengths = noise(2, 20, 40), torch.tensor([20, 13])
    frames, guided = t.losses(model, numbers, mel, lengths)
    expected, _, weights = model(numbers, mel)
    networks.close(frames, (expected - mel).abs().mean())
    steps, places = torch.tensor([4, 2.6]), torch.tensor([6, 4])
    networks.close(guided, t.guided_loss(weights, steps, places))
    share = t.near_diagonal(weights, steps, places).item()
    model.train()
    assert t.aligned(model, numbers, mel, lengths) == pytest.approx(share)
    assert model.training


def test_levels_are_padded_by_silence():
    found = t.padded([torch.ones(3, 2), torch.ones(3, 4)], 5)
    assert found.shape == (2, 5, 3)
    assert found[:, :, 0].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


def batch():
    torch.manual_seed(0)
    numbers = torch.randint(3, 20, (40, 6))
    mel = torch.rand(40, 10, 40)
    return numbers, mel, torch.full((40,), 10)


def test_a_step_follows_a_gradient_no_longer_than_1():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    t.step(optimizer, (weight * weight).sum() / 2 * 10)
    networks.close(weight.detach(), torch.tensor([2.4, 3.2]))
    t.step(optimizer, (0.1 * weight).sum())
    networks.close(weight.detach(), torch.tensor([2.3, 3.1]))


def test_training_ends_when_aligned_and_measures_each_five_updates(monkeypatch):
    rates, values = [], iter([0.3, 0.1, 0.59, 0.6, 0.9])

    def step(optimizer, loss):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    monkeypatch.setitem(t._namespace, "step", step)
    monkeypatch.setitem(t._namespace, "aligned", lambda *_: next(values))
    part = batch()
    assert t.until_aligned(fresh(5), part, part) == [0.3, 0.1, 0.59, 0.6]
    assert len(rates) == 15
    assert rates[0] == pytest.approx(0.0002) and rates[10] == pytest.approx(0.0051)
    values = iter([0.1] * 9)
    monkeypatch.setitem(t._namespace, "aligned", lambda *_: next(values))
    assert t.until_aligned(fresh(5), part, part, most=10) == [0.1] * 3


def test_training_follows_the_frames_and_a_tenth_of_the_guide(monkeypatch):
    seen = []
    values = iter([0.3, 0.9])

    def step(optimizer, loss):
        seen.append(loss.item())
        optimizer.step()

    parts = torch.tensor(2.0), torch.tensor(30.0)
    monkeypatch.setitem(t._namespace, "aligned", lambda *_: next(values))
    monkeypatch.setitem(t._namespace, "losses", lambda model, *x: (seen.append(x), parts)[1])
    monkeypatch.setitem(t._namespace, "step", step)
    numbers, mel, _ = batch()
    t.until_aligned(fresh(5), (numbers, mel, torch.arange(40)), ())
    assert len(seen) == 10 and seen[1::2] == [5.0] * 5
    for chosen, frames, i in seen[::2]:
        assert len(i) == 16 and torch.equal(chosen, numbers[i]) and torch.equal(frames, mel[i])


def test_the_crossing_lies_on_a_line_between_the_last_two_measurements():
    assert t.crossing([0.2, 1.0]) == pytest.approx(2.5)
    assert t.crossing([0.3, 0.35, 0.5, 0.9]) == pytest.approx(11.25)


def test_the_guide_brings_the_attention_to_the_diagonal():
    torch.manual_seed(2)
    part = [x[:10] for x in batch()]
    model = t.Tacotron(20, t.SMALL, r=5)
    before = t.aligned(model, *part)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(50):
        t.step(optimizer, t.losses(model, *part)[1])
    assert before < 0.6 and t.aligned(model, *part) > 0.95


def test_a_batch_is_learnt_with_both_errors():
    numbers, mel, lengths = (x[:8] for x in batch())
    mel = mel[:, :, :1].expand(8, 10, 40).contiguous()
    bins = mel[:, :, :1].expand(8, 10, 1025)
    torch.manual_seed(0)
    model = networks.without_dropout(t.Tacotron(20, t.SMALL, r=5))

    def off():
        found, fine, _ = model(numbers, mel)
        return F.l1_loss(found, mel).item(), F.l1_loss(fine, bins).item()

    before = off()
    t.train_on(model, (numbers, mel, lengths), 40)
    after = off()
    assert after[0] < before[0] / 2
    t.train_behind(model, (numbers, mel, lengths), bins, 30)
    assert off()[0] == after[0]
    after = off()
    assert after[1] < before[1] / 3


def test_training_on_follows_one_cycle_of_16_texts_and_8_for_the_bins(monkeypatch):
    model = fresh(5)
    numbers, mel, lengths = batch()
    rates, sizes, found = [], [], []

    def step(optimizer, loss):
        rates.append(optimizer.param_groups[0]["lr"])
        found.append(loss.item())
        optimizer.step()

    def losses(model, *x):
        sizes.append([len(part) for part in x])
        return torch.tensor(2.0), torch.tensor(30.0)

    monkeypatch.setitem(t._namespace, "step", step)
    monkeypatch.setitem(t._namespace, "losses", losses)
    t.train_on(model, (numbers, mel, lengths), 10)
    assert sizes == [[16] * 3] * 10 and found == [5.0] * 10
    expected = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = t.training.one_cycle(expected, 10)
    wanted = []
    for _ in range(10):
        wanted.append(expected.param_groups[0]["lr"])
        expected.step()
        schedule.step()
    assert rates == pytest.approx(wanted)

    rates.clear()
    found.clear()
    seen = []
    model.post.register_forward_hook(lambda m, inputs, y: seen.append((m.training, inputs[0], y)))
    bins = torch.rand(40, 10, 1025)
    first = copy.deepcopy(model.bins)
    torch.manual_seed(3)
    t.train_behind(model.train(), (numbers, mel, lengths), bins, 10)
    assert rates == pytest.approx(wanted)
    torch.manual_seed(3)
    i = torch.randint(40, (8,))
    training, frames, y = seen[0]
    assert training and not frames.requires_grad
    with torch.no_grad():
        networks.close(frames, model.eval()(numbers, mel)[0][i], 1e-4)
        networks.close(torch.tensor(found[0]), (first(y) - bins[i]).abs().mean(), 1e-3)


def test_the_nearest_recording_is_that_of_the_smallest_absolute_difference():
    recorded = torch.tensor([[[0.0, 0.0]], [[3.0, 3.0]], [[0.0, 5.0]]])
    written = torch.tensor([[[2.0, 2.0]], [[0.0, 3.5]], [[1.0, 0.0]]])
    assert t.nearest(written, recorded).tolist() == [1, 2, 0]
