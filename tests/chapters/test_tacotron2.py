"""Attention, encoder, decoder and post-net of notebooks/tacotron2.py, and what judges a text read."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from librosa import griffinlim
from librosa.feature import melspectrogram
from librosa.sequence import dtw
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, on_meta, parameters_of
from workbench import checks, text

t2 = definitions("tacotron2")


@pytest.fixture(autouse=True)
def loaded():
    assert t2.Size  # runs the definitions, which have names from then on


KINDS = ("ContentAttention", "LocationAttention")


def tiny(attention="LocationAttention", cell=nn.LSTMCell, seed: int = 0):
    """A small network in evaluation mode, the statistics of its batch norms random."""
    torch.manual_seed(seed)
    model = t2.Tacotron2(t2.TINY, getattr(t2, attention), cell).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def texts(*lengths: int):
    """Random numbers of characters, padded, and the lengths."""
    torch.manual_seed(3)
    numbers = torch.randint(3, t2.TINY.V, (len(lengths), max(lengths)))
    lengths = torch.tensor(lengths)
    numbers[torch.arange(numbers.shape[1]) >= lengths.unsqueeze(1)] = text.PAD
    return numbers, lengths


@torch.no_grad()
def same_dropout(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


# ---- counts --------------------------------------------------------------------------------------

PARTS = {"encoder": 5_589_504, "decoder": 18_255_505, "postnet": 4_348_144}
DECODER = {
    "prenet": 86_016,
    "first": 7_348_224,
    "attention": 202_816,
    "second": 10_493_952,
    "to_frames": 122_960,
    "to_stop": 1_537,
}


def test_the_papers_size_has_the_parameters_of_the_public_implementation_part_by_part():
    model = on_meta(t2.Tacotron2, t2.Size())
    assert parameters_of(model) == 28_193_153
    assert {name: parameters_of(part) for name, part in model.named_children()} == PARTS
    found = {name: parameters_of(part) for name, part in model.decoder.named_children()}
    assert found == DECODER
    assert type(model.decoder.attention) is t2.LocationAttention
    assert type(model.decoder.first) is type(model.decoder.second) is t2.ZoneoutCell
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_content_attention_lacks_the_filters_and_their_layer():
    kinds = [on_meta(t2.Tacotron2, t2.Size(), getattr(t2, kind)) for kind in KINDS]
    content, location = map(parameters_of, kinds)
    assert location - content == 2 * 31 * 32 + 32 * 128


def test_it_runs_forward_and_backward_on_the_meta_device(monkeypatch):
    names = ("pack_padded_sequence", "pad_packed_sequence")  # they need real lengths
    monkeypatch.setitem(t2._namespace, names[0], lambda x, *_, **__: x)
    monkeypatch.setitem(t2._namespace, names[1], lambda x, **_: (x, None))
    model = on_meta(t2.Tacotron2, t2.Size(r=2))
    with torch.device("meta"):
        numbers = torch.ones(3, 7, dtype=torch.long)
        mel = torch.empty(3, 10, 80)
    speech = model(numbers, torch.tensor([7, 7, 3]), mel)
    assert speech.mel.shape == speech.before.shape == (3, 10, 80)
    assert speech.stop.shape == (3, 5) and speech.weights.shape == (3, 5, 7)
    (speech.mel.sum() + speech.stop.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert networks.runs_on_meta(on_meta(t2.Postnet, t2.Size()), 2, 9, 80).shape == (2, 9, 80)
    assert t2.say(model, numbers, torch.tensor([7, 7, 3]), 4).mel.shape == (3, 8, 80)


# ---- attention -----------------------------------------------------------------------------------


def energies_by_pairs(layer, query, keys, past):
    """Each energy from its formula, character by character."""
    B, S, _ = keys.shape
    reach = t2.TINY.kernel // 2
    padded = F.pad(past, (reach, reach))
    found = torch.empty(B, S)
    for b in range(B):
        for j in range(S):
            hidden = layer.to_query.weight @ query[b] + keys[b, j]
            if isinstance(layer, t2.LocationAttention):
                window = padded[b, :, j : j + t2.TINY.kernel]  # (2, kernel)
                features = (layer.conv.weight * window).sum((1, 2))
                hidden = hidden + layer.to_place.weight @ features
            found[b, j] = layer.to_energy.weight[0] @ torch.tanh(hidden)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_softmax_of_the_energies_of_the_formula_and_zero_at_padding(kind):
    torch.manual_seed(0)
    layer = getattr(t2, kind)(t2.TINY)
    query, keys = torch.randn(2, t2.TINY.d_rnn), torch.randn(2, 9, t2.TINY.d_attention)
    past = torch.rand(2, 2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        weights = layer(query, keys, past, mask)
        energies = energies_by_pairs(layer, query, keys, past)
    close(weights[0], energies[0].softmax(0))
    close(weights[1, :6], energies[1, :6].softmax(0))
    assert not weights[1, 6:].any()


def test_equal_characters_get_equal_weights_by_content_and_the_second_more_by_place():
    content, place = t2.abab(t2.ContentAttention), t2.abab(t2.LocationAttention)
    close(content, torch.tensor([0.5, 0, 0.5, 0]), 1e-4)
    first, second = math.exp(10 * math.tanh(1)), math.exp(10 * math.tanh(3))
    close(place[[0, 2]], torch.tensor([first, second]) / (first + second), 1e-4)


def test_a_window_leaves_ten_characters_around_the_last_place():
    model = tiny("ContentAttention")
    layer = t2.windowed(model).decoder.attention
    assert type(model.decoder.attention) is t2.ContentAttention
    query, keys = torch.randn(2, t2.TINY.d_rnn), torch.randn(2, 30, t2.TINY.d_attention)
    past = torch.zeros(2, 2, 30)
    past[0, 0, 12] = past[1, 0, 27] = 0.6
    past[:, 1, 1] = 5.0  # the sum does not count
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 28:] = False
    weights = layer(query, keys, past, mask)
    assert torch.nonzero(weights[0]).flatten().tolist() == list(range(9, 19))
    assert torch.nonzero(weights[1]).flatten().tolist() == list(range(24, 28))
    full = model.decoder.attention(query, keys, past, mask)
    close(weights[0, 9:19], full[0, 9:19] / full[0, 9:19].sum())


def test_moving_past_and_keys_by_a_place_moves_the_weights():
    torch.manual_seed(0)
    layer = t2.LocationAttention(t2.TINY)
    n, room = 60, 20
    keys, past = torch.zeros(1, n, t2.TINY.d_attention), torch.zeros(1, 2, n)
    keys[:, room:-room] = torch.randn(1, n - 2 * room, t2.TINY.d_attention)
    past[..., room:-room] = torch.rand(1, 2, n - 2 * room)
    query, mask = torch.randn(1, t2.TINY.d_rnn), torch.ones(1, n, dtype=torch.bool)
    moved = layer(query, keys.roll(1, 1), past.roll(1, 2), mask)
    close(moved, layer(query, keys, past, mask).roll(1, 1))


# ---- encoder, pre-net, zoneout, post-net ---------------------------------------------------------


def test_the_memory_of_a_text_does_not_depend_on_padding_and_is_read_in_both_directions():
    model = tiny()
    numbers, lengths = texts(4, 9, 7)  # not sorted
    source = model.read(numbers, lengths)
    for row, n in enumerate(lengths):
        alone = model.read(numbers[row : row + 1, :n], lengths[row : row + 1])
        close(source.memory[row, :n], alone.memory[0])
        assert source.mask[row].sum() == n
    close(source.keys, model.decoder.attention.to_keys(source.memory))


def test_the_encoder_is_three_convolutions_and_an_lstm_in_both_directions():
    model = tiny()
    numbers, lengths = texts(6)
    encoder = model.encoder
    x = encoder.embed.weight[numbers].mT
    for conv, norm, *_ in encoder.convs:
        y = F.conv1d(x, conv.weight, conv.bias, padding=2)
        x = norm(y).relu()
    assert len(encoder.convs) == 3
    half = t2.TINY.d_encoder // 2
    for name, order in (("", 1), ("_reverse", -1)):
        lstm = nn.LSTM(t2.TINY.d_encoder, half, batch_first=True)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        lstm.load_state_dict({k: getattr(encoder.rnn, k + name) for k in names})
        states, _ = lstm(x.mT if order == 1 else x.mT.flip(1))
        states = states if order == 1 else states.flip(1)
        part = slice(0, half) if order == 1 else slice(half, None)
        close(model.read(numbers, lengths).memory[..., part], states)


def test_the_prenet_drops_half_in_evaluation_too():
    torch.manual_seed(0)
    prenet = t2.Prenet(t2.Size(M=5, d_prenet=400)).eval()
    x = torch.randn(3, 5)
    y = prenet(x)
    assert not torch.equal(y, prenet(x))
    inner = torch.relu(prenet.first(x))
    torch.manual_seed(1)
    found = prenet(x)
    torch.manual_seed(1)
    kept = F.dropout(inner, 0.5)
    expected = F.dropout(torch.relu(prenet.second(kept)), 0.5)
    close(found, expected)
    alive = (torch.relu(prenet.second(kept)) > 0).float().mean()
    assert abs((found > 0).float().mean() / alive - 0.5) < 0.1


def test_a_sure_prenet_drops_nothing():
    torch.manual_seed(0)
    prenet = t2.SurePrenet(t2.TINY)
    x = torch.randn(3, t2.TINY.M)
    close(prenet(x), prenet.second(prenet.first(x).relu()).relu(), 0)
    model = tiny()
    sure = t2.surely(model)
    close(sure.decoder.prenet(x), sure.decoder.prenet(x), 0)
    assert type(model.decoder.prenet) is t2.Prenet
    close(sure.decoder.prenet.first.weight, model.decoder.prenet.first.weight, 0)


def test_zoneout_keeps_old_numbers_at_its_rate_and_mixes_in_evaluation():
    torch.manual_seed(0)
    cell = t2.ZoneoutCell(3, 500)
    assert cell.rate == 0.1
    plain = nn.LSTMCell(3, 500)
    plain.load_state_dict(cell.state_dict())
    x, state = torch.randn(8, 3), (torch.randn(8, 500), torch.randn(8, 500))
    new = plain(x, state)
    for found, old, fresh in zip(cell.eval()(x, state), state, new):
        close(found, 0.1 * old + 0.9 * fresh)
    for found, old, fresh in zip(cell.train()(x, state), state, new):
        kept, taken = torch.isclose(found, old, atol=1e-5), torch.isclose(found, fresh, atol=1e-5)
        assert (kept | taken).all()
        assert 0.08 < kept.double().mean() < 0.12
    cell.rate = 0.0
    for found, fresh in zip(cell(x, state), new):
        close(found, fresh)


def test_the_postnet_is_that_of_speecht5():
    from transformers import SpeechT5Config
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpeechDecoderPostnet

    sizes = {"speech_decoder_postnet_units": 12, "num_mel_bins": 6, "hidden_size": 4}
    theirs = SpeechT5SpeechDecoderPostnet(SpeechT5Config(**sizes)).eval()
    ours = t2.Postnet(t2.Size(M=6, c_post=12)).eval()
    t2.share_postnet(ours, theirs)
    mel = torch.randn(2, 13, 6)
    close(mel + ours(mel), theirs.postnet(mel))
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert not a[0].bias.any()
        close(a[0].weight, b.conv.weight, 0)
        assert a[1].running_var.std() > 0.1
    assert len(t2.Postnet(t2.Size(n_post=3)).layers) == 3


# ---- decoder -------------------------------------------------------------------------------------


def by_hand(model, numbers, lengths, mel):
    """Teacher forcing from the formulas: plain cells, one text at a time, the post-net behind."""
    size, decoder = model.size, model.decoder
    source = model.read(numbers, lengths)
    B, r = len(numbers), size.r
    h1 = c1 = h2 = c2 = torch.zeros(B, size.d_rnn)
    context, weights = torch.zeros(B, size.d_encoder), torch.zeros(numbers.shape)
    total = torch.zeros(numbers.shape)
    cells = []
    for which, width in (("first", size.d_prenet), ("second", size.d_rnn)):
        cell = nn.LSTMCell(width + size.d_encoder, size.d_rnn)
        cell.load_state_dict(getattr(decoder, which).state_dict())
        cells.append(cell)
    torch.manual_seed(1)
    frames, stops, looked = [], [], []
    for step in range(mel.shape[1] // r):
        last = mel[:, step * r - 1] if step else torch.zeros(B, size.M)
        x = F.dropout(F.linear(last, decoder.prenet.first.weight).relu(), 0.5)
        x = F.dropout(F.linear(x, decoder.prenet.second.weight).relu(), 0.5)
        h1, c1 = cells[0](torch.cat((x, context), 1), (h1, c1))
        past = torch.stack((weights, total), 1)
        energies = energies_by_pairs(decoder.attention, h1, source.keys, past)
        weights = energies.masked_fill(numbers == text.PAD, -math.inf).softmax(1)
        total = total + weights
        context = torch.einsum("bs,bsd->bd", weights, source.memory)
        h2, c2 = cells[1](torch.cat((h1, context), 1), (h2, c2))
        features = torch.cat((h2, context), 1)
        frames.extend(decoder.to_frames(features).view(B, r, size.M).unbind(1))
        stops.append(decoder.to_stop(features)[:, 0])
        looked.append(weights)
    before = torch.stack(frames, 1)
    return before, before + model.postnet(before), torch.stack(stops, 1), torch.stack(looked, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_is_the_loop_of_the_formulas(kind):
    model = tiny(kind)
    numbers, lengths = texts(9, 5)
    mel = torch.randn(2, 8, t2.TINY.M)
    speech = same_dropout(model, numbers, lengths, mel)
    with torch.no_grad():
        expected = by_hand(model, numbers, lengths, mel)
    for name, wanted in zip(speech._fields, expected, strict=True):
        close(getattr(speech, name), wanted, name=name)


def test_the_second_cell_may_run_behind_the_loop():
    model = tiny()
    second = nn.LSTM(model.decoder.second.input_size, t2.TINY.d_rnn, batch_first=True)
    checks.transplant(model.decoder.second, second)
    numbers, lengths = texts(9, 5)
    mel = torch.randn(2, 8, t2.TINY.M)
    found = same_dropout(t2.one_pass, model, second, numbers, lengths, mel)
    close(found, same_dropout(model, numbers, lengths, mel).mel)


def test_free_running_is_teacher_forcing_by_its_own_frames():
    model = tiny()
    numbers, lengths = texts(9, 5)
    free = same_dropout(t2.say, model, numbers, lengths, 6)
    taught = same_dropout(model, numbers, lengths, free.before)
    for name, found, expected in zip(free._fields, free, taught):
        close(found, expected, name=name)


def test_later_frames_do_not_change_earlier_ones_and_only_the_last_of_a_step_is_read():
    model = tiny()
    numbers, lengths = texts(6)
    mel = torch.randn(1, 8, t2.TINY.M)
    before = same_dropout(model, numbers, lengths, mel).before
    changed = mel.clone()
    changed[:, 3] += 1  # read by the third step
    found = same_dropout(model, numbers, lengths, changed).before
    close(found[:, :4], before[:, :4], 0)
    assert (found[:, 4:] - before[:, 4:]).abs().max() > 1e-4
    changed = mel.clone()
    changed[:, 2] += 1  # the first of a pair is read by none
    changed[:, 7] += 1
    close(same_dropout(model, numbers, lengths, changed).before, before, 0)


def test_a_start_has_read_nothing():
    source = t2.Source(torch.ones(2, 5, 3), torch.ones(2, 5, 4), torch.ones(2, 5).bool())
    state = source.start(7)
    shapes = [tuple(t.shape) for t in (*state.first, *state.second)]
    assert shapes == [(2, 7)] * 4
    assert state.context.shape == (2, 3) and state.weights.shape == state.total.shape == (2, 5)
    assert not any(t.any() for t in (*state.first, *state.second, *state[2:]))


def test_what_counts_a_network_reads_twenty_characters():
    model = tiny()
    mel = torch.zeros(2, 4, t2.TINY.M)
    numbers = torch.ones(2, 20, dtype=torch.long)
    found = same_dropout(t2.Taught(model), mel)
    close(found, same_dropout(model, numbers, torch.tensor([20, 20]), mel).mel, 0)


# ---- data ----------------------------------------------------------------------------------------


def test_texts_are_digits_of_all_lengths_asked_for_and_the_same_each_time():
    found = t2.digits(200, (2, 4), 5)
    assert {len(one.split()) for one in found} == {2, 3, 4}
    assert {word for one in found for word in one.split()} == set(t2.WORDS)
    assert found == t2.digits(200, (2, 4), 5) != t2.digits(200, (2, 4), 6)
    assert len(t2.WORDS) == 10 and t2.WORDS[7] == "seven"


def test_frames_are_librosas_mel_magnitudes_as_logarithms_above_a_floor():
    torch.manual_seed(0)
    wave = torch.cat((torch.randn(6000) / 5, torch.zeros(6000)))
    found = t2.mel_of(wave, t2.mel_filters())
    how = {"n_fft": 1024, "hop_length": 256, "power": 1, "pad_mode": "constant"}
    limits = {"n_mels": 80, "fmin": 125, "fmax": 7600}
    expected = melspectrogram(y=wave.numpy(), sr=22_050, **how, **limits)
    expected = torch.from_numpy(expected).clamp(min=0.01).log() - math.log(0.01)
    close(found, expected.mT, 1e-4)
    assert not found[-10:].any()  # silence
    assert t2.mel_filters(20).shape == (20, 513)


def test_silence_at_both_ends_is_cut_but_for_a_moment():
    wave = torch.zeros(10_000)
    wave[4000:5000] = 0.5
    assert len(t2.trimmed(wave)) == 256 + 999 + 4 * 256
    assert t2.trimmed(wave)[256] == 0.5 and t2.trimmed(wave)[255] == 0
    wave[100] = -0.02
    wave[9990] = 0.009
    assert len(t2.trimmed(wave)) == 4999 + 4 * 256


def test_sound_comes_back_from_its_frames():
    time = torch.arange(11_025) / 22_050
    wave = 0.5 * torch.sin(2 * math.pi * 440 * time)
    mel = t2.mel_of(wave, t2.mel_filters())
    again = t2.wave_of(mel)
    assert abs(len(again) - len(wave)) <= 256
    close(t2.mel_of(again, t2.mel_filters())[5:35], mel[5:35], 0.2)
    middle = again[3000:8000]
    peak = torch.fft.rfft(middle * torch.hann_window(5000)).abs().argmax() * 22_050 / 5000
    assert abs(peak - 440) < 10
    assert t2.wave_of(torch.zeros(9, 80)).abs().max() == 0


def test_magnitudes_are_the_pseudo_inverse_of_the_bands_and_phases_begin_by_chance(monkeypatch):
    given = []
    keep = lambda *arguments: given.append(arguments)  # noqa: E731
    monkeypatch.setitem(t2._namespace, "griffin_lim", keep)
    torch.manual_seed(0)
    mel = torch.rand(9, 80)
    t2.wave_of(mel)
    t2.wave_of(mel)
    (magnitudes, phases), (_, again) = given
    bands = 0.01 * (mel.exp() - 1)
    close(magnitudes, (torch.linalg.pinv(t2.mel_filters()) @ bands.mT).clamp(min=0))
    close(phases, again, 0)
    assert 0 <= phases.min() < 0.1 and 2 * math.pi - 0.1 < phases.max() <= 2 * math.pi
    assert abs(phases.mean() - math.pi) < 0.1


def test_griffin_lim_is_librosas_with_momentum():
    torch.manual_seed(0)
    magnitudes = torch.rand(513, 20)
    found = t2.griffin_lim(magnitudes, torch.zeros_like(magnitudes), 7)
    how = {"n_iter": 7, "hop_length": 256, "init": None}
    close(found, torch.from_numpy(griffinlim(magnitudes.numpy(), **how)), 1e-4)
    other = t2.griffin_lim(magnitudes, torch.ones_like(magnitudes), 7)
    assert (other - found).abs().max() > 0.01
    again = t2.griffin_lim(magnitudes, torch.zeros_like(magnitudes))
    close(again, t2.griffin_lim(magnitudes, torch.zeros_like(magnitudes), 40), 0)


def batch_of_two():
    vocabulary = text.Vocabulary(["one two", "six"])
    first = t2.Said("one two", torch.rand(9, 6) + 1)
    second = t2.Said("six", torch.rand(4, 6) + 1)
    return t2.Batch.of([second, first], vocabulary, 4), (second, first), vocabulary


def test_a_batch_pads_texts_with_nothing_and_frames_with_silence_to_whole_steps():
    batch, utterances, vocabulary = batch_of_two()
    assert batch.steps.tolist() == [1, 3] and batch.lengths.tolist() == [3, 7]
    assert batch.mel.shape == (2, 12, 6) and batch.lengths.device.type == "cpu"
    for row, one in enumerate(utterances):
        close(batch.mel[row, : len(one.mel)], one.mel, 0)
        assert not batch.mel[row, len(one.mel) :].any()
        assert vocabulary.decode(batch.numbers[row].tolist()) == one.text


# ---- losses --------------------------------------------------------------------------------------


def speech_of(**how):
    return SimpleNamespace(**how)


def test_the_frame_loss_is_the_mean_square_of_both_over_the_live_steps():
    mel = torch.zeros(2, 4, 3)
    before, after = torch.full((2, 4, 3), 2.0), torch.full((2, 4, 3), 1.0)
    live = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    before[1, 2:] = 100.0  # not live
    loss = t2.frame_loss(speech_of(before=before, mel=after), mel, live)
    assert loss.item() == pytest.approx(4 + 1)
    after[0, 3] = 7.0
    loss = t2.frame_loss(speech_of(before=before, mel=after), mel, live)
    assert loss.item() == pytest.approx(4 + (5 + 49) / 6)


def test_the_stop_loss_wants_one_from_the_last_step_on():
    logits = torch.tensor([[-1.0, 2.0, 9.0], [0.5, -3.0, 1.0]])
    live = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    steps = torch.tensor([2, 3])
    p = logits.sigmoid()
    each = [1 - p[0, 0], p[0, 1], 1 - p[1, 0], 1 - p[1, 1], p[1, 2]]
    expected = -sum(math.log(value) for value in each) / 5
    assert t2.stop_loss(logits, steps, live).item() == pytest.approx(expected, rel=1e-4)


def test_the_guided_loss_is_the_weight_far_from_the_diagonal():
    weights = torch.zeros(1, 4, 8)
    weights[0, 0, 0] = 1  # on the diagonal
    weights[0, 1, 6] = 1  # 0.5 off
    weights[0, 2, 4] = 1
    weights[0, 3, 0] = 1  # not live
    live = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss = t2.guided_loss(weights, torch.tensor([8]), torch.tensor([4]), live)
    assert loss.item() == pytest.approx((1 - math.exp(-0.25 / 0.08)) / 3, rel=1e-4)
    loss = t2.guided_loss(weights, torch.tensor([4]), torch.tensor([2]), live)
    one, two = 1 - math.exp(-1 / 0.08), 1 - math.exp(-0 / 0.08)
    assert loss.item() == pytest.approx((one + two) / 3, rel=1e-4)


def test_live_steps_reach_one_behind_the_end():
    found = t2.live_steps(torch.tensor([1, 3]), 5)
    assert found.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


def test_the_loss_is_the_sum_of_the_three_the_guide_by_its_weight():
    batch, _, vocabulary = batch_of_two()
    size = t2.Size(V=len(vocabulary), M=6, r=4, d_encoder=8, d_prenet=7, d_rnn=10, d_attention=5)
    torch.manual_seed(0)
    model = t2.Tacotron2(size, cell=nn.LSTMCell).eval()
    speech = same_dropout(model, batch.numbers, batch.lengths, batch.mel)
    live = t2.live_steps(batch.steps, 3)
    expected = t2.frame_loss(speech, batch.mel, live) + t2.stop_loss(speech.stop, batch.steps, live)
    expected += 3 * t2.guided_loss(speech.weights, batch.lengths, batch.steps, live)
    close(same_dropout(t2.loss_of, model, batch, 3.0), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_fitted(kind):
    """The pre-net drops by chance, so to a fifth and not a tenth."""
    batch, _, vocabulary = batch_of_two()
    sizes = {"d_encoder": 16, "d_prenet": 32, "d_rnn": 32, "d_attention": 8, "c_post": 16}
    size = t2.Size(V=len(vocabulary), M=6, r=4, n_post=2, dropout=0.0, **sizes)
    torch.manual_seed(0)
    model = t2.Tacotron2(size, getattr(t2, kind), nn.LSTMCell)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        speech = model(batch.numbers, batch.lengths, batch.mel)
        live = t2.live_steps(batch.steps, speech.stop.shape[1])
        loss = t2.frame_loss(speech, batch.mel, live)
        loss = loss + t2.stop_loss(speech.stop, batch.steps, live)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 5


def test_training_takes_the_papers_adam_and_clips_gradients(monkeypatch):
    _, utterances, vocabulary = batch_of_two()
    sizes = {"d_encoder": 8, "d_prenet": 7, "d_rnn": 10, "d_attention": 5, "c_post": 8}
    torch.manual_seed(0)
    model = t2.Tacotron2(t2.Size(V=len(vocabulary), M=6, r=4, **sizes), cell=nn.LSTMCell)
    seen, rates, drawn = [], [], []
    step = torch.optim.Adam.step

    def watched(self, *arguments):
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        seen.append(gradients.norm().item())
        rates.append((self.defaults, self.param_groups[0]["lr"]))
        return step(self, *arguments)

    real = t2.Batch.of
    watch = lambda some, *rest: (drawn.append(len(some)), real(some, *rest))[1]  # noqa: E731
    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    monkeypatch.setattr(t2.Batch, "of", watch)
    before = copy.deepcopy(model.state_dict())
    guides, real_loss = [], t2.loss_of
    told = lambda m, b, guide: (guides.append(guide), real_loss(m, b, guide))[1]  # noqa: E731
    monkeypatch.setitem(t2._namespace, "loss_of", told)
    losses = t2.train(model, utterances, vocabulary, 10)
    assert len(losses) == len(seen) == 10 and drawn == [16] * 10 and guides == [5.0] * 10
    assert max(seen) < 1 + 1e-4
    settings = rates[0][0]
    assert (settings["eps"], settings["weight_decay"]) == (1e-6, 1e-6)
    assert settings["betas"] == (0.9, 0.999)
    networks.rises_and_falls([rate for _, rate in rates], peak=5e-3, at=1)
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


# ---- what was read -------------------------------------------------------------------------------


def looking(*places: int, S: int = 11):
    return F.one_hot(torch.tensor(places), S).float()


def test_words_are_listed_once_as_they_are_looked_at_and_spaces_skipped():
    said = "one six two"  # characters 0 to 2, 4 to 6, 8 to 10
    assert t2.words_seen(looking(0, 1, 2, 3, 4, 6, 7, 9), said) == [0, 1, 2]
    assert t2.words_seen(looking(0, 3, 1, 8, 5), said) == [0, 2, 1]
    assert t2.words_seen(looking(3, 7), said) == []


def test_the_words_of_all_steps_are_told_but_for_steps_at_a_space():
    assert t2.words_by_step(looking(0, 1, 3, 6, 8, 8), "one six two") == [0, 0, 1, 2, 2]


def test_a_text_is_complete_with_each_word_in_order_whatever_follows_the_last():
    said = "one six two"
    assert t2.complete(looking(0, 4, 8), said)
    assert t2.complete(looking(0, 4, 8, 4), said)
    assert not t2.complete(looking(0, 8), said)
    assert not t2.complete(looking(0, 4, 0, 8), said)
    assert not t2.complete(looking(0, 4), said)


def test_a_clock_goes_three_characters_in_two_steps_and_rests_at_the_last():
    found = t2.clock("one two", 7)
    assert found.argmax(1).tolist() == [0, 1, 3, 4, 6, 6, 6]
    close(found.sum(1), torch.ones(7), 0)


def test_a_clock_reads_a_text_where_half_more_than_the_steps_of_its_sound_suffice():
    part = [t2.Said("three six x", torch.zeros(n, 6)) for n in (16, 17, 40)]
    assert t2.clock_reads(part[:1], 4) == 0  # 6 steps; the eighth reaches the x
    assert t2.clock_reads(part, 4) == pytest.approx(2 / 3)


def test_steps_on_a_word_are_counted_but_for_the_last_of_a_text(monkeypatch):
    part = [t2.Said("one six two", None), t2.Said("six one", None)]
    weights = torch.stack((looking(0, 1, 2, 4, 8, 0), looking(0, 2, 3, 4, 0, 0)))
    listened = t2.Speech(None, None, None, weights), torch.tensor([5, 4])
    monkeypatch.setitem(t2._namespace, "listen", lambda *_: listened)
    monkeypatch.setitem(t2._namespace, "WORDS", ["one", "six"])
    assert t2.steps_on_words(None, part, None) == [3.0, 1.5]


def test_a_correlation_is_1_on_a_rising_line_and_0_without_relation():
    assert t2.correlation([1, 2, 4], [3, 5, 9]) == pytest.approx(1)
    assert t2.correlation([1, 2, 3], [2, 5, 2]) == pytest.approx(0, abs=1e-9)
    far = [1e9 + number for number in (1.0, 2.0, 4.0)]  # single precision loses the rest
    assert t2.correlation(far, far) == pytest.approx(1)


def test_the_end_is_the_first_step_above_one_half():
    assert t2.end_of(torch.tensor([-1.0, -0.1, 0.1, -2.0, 3.0])) == 3
    assert t2.end_of(torch.tensor([-1.0, -2.0])) == 2


def test_an_end_is_early_in_time_or_missing():
    said, weights = "one six two", looking(0, 4, 8, 8)
    assert t2.how_it_ends(torch.tensor([-1.0, 1, -1, -1]), weights, said) == "early"
    assert t2.how_it_ends(torch.tensor([-1.0, -1, 1, -1]), weights, said) == "in time"
    assert t2.how_it_ends(torch.tensor([-1.0, -1, -1, -1]), weights, said) == "never"


def test_texts_are_said_for_half_more_than_the_truth_and_judged_up_to_there(monkeypatch):
    _, utterances, vocabulary = batch_of_two()
    model = SimpleNamespace(size=SimpleNamespace(r=4))
    asked = []

    def say(model, numbers, lengths, steps):
        asked.append(steps)
        weights = torch.stack([looking(0, 0, 2, 2, 2, S=7), looking(0, 1, 5, 5, 6, S=7)])
        stop = torch.tensor([[-1.0, 1, 1, 1, 1], [-1.0, -1, -1, 1, 1]])
        return t2.Speech(None, None, stop, weights)

    monkeypatch.setitem(t2._namespace, "say", say)
    monkeypatch.setitem(t2._namespace, "evaluating", lambda model: torch.no_grad())
    speech, allowed = t2.listen(model, utterances, vocabulary)
    assert asked == [5] and allowed.tolist() == [2, 5]
    found = t2.judged(model, utterances, vocabulary)
    assert found.read == 1 and found.ends == ["in time", "in time"]
    assert found.length == pytest.approx((2 * 4 / 4 + 4 * 4 / 9) / 2)
    assert found.share("in time") == 1 and found.share("early") == 0


def test_a_network_says_texts_in_evaluation_mode():
    _, utterances, vocabulary = batch_of_two()
    sizes = {"d_encoder": 8, "d_prenet": 7, "d_rnn": 10, "d_attention": 5, "c_post": 8}
    torch.manual_seed(0)
    model = t2.Tacotron2(t2.Size(V=len(vocabulary), M=6, r=4, **sizes), cell=nn.LSTMCell).train()
    before = copy.deepcopy(model.state_dict())
    speech, allowed = t2.listen(model, utterances, vocabulary)
    assert speech.weights.shape == (2, 5, 7) and allowed.tolist() == [2, 5]
    for name, value in model.state_dict().items():
        close(value.double(), before[name].double(), 0)
    assert model.training


def test_a_blind_copy_does_not_see_one_row_of_the_past():
    model = tiny()
    for row in (0, 1):
        layer = t2.blind(model, row).decoder.attention
        torch.manual_seed(0)
        query, keys = torch.randn(1, t2.TINY.d_rnn), torch.randn(1, 9, t2.TINY.d_attention)
        past, mask = torch.rand(1, 2, 9), torch.ones(1, 9, dtype=torch.bool)
        other = past.clone()
        other[:, row] += torch.rand(9)
        close(layer(query, keys, other, mask), layer(query, keys, past, mask), 0)
        other[:, 1 - row] += torch.rand(9)
        assert (layer(query, keys, other, mask) - layer(query, keys, past, mask)).abs().max() > 1e-5
    assert model.decoder.attention.conv.weight.abs().min() > 0


def test_the_best_way_through_two_sequences_is_librosas():
    torch.manual_seed(0)
    for T, U in ((7, 11), (12, 5), (1, 4), (3, 1)):
        a, b = torch.rand(T, 6), torch.rand(U, 6)
        total, _ = dtw(a.mT.numpy(), b.mT.numpy())
        assert t2.warped(a, b) == pytest.approx(total[-1, -1], rel=1e-5)


def test_frames_are_nearest_to_the_text_that_they_say_faster_or_slower():
    torch.manual_seed(0)
    part = [t2.Said(f"text {i}", torch.rand(12, 6)) for i in range(4)]
    for i, one in enumerate(part):
        assert t2.nearest(one.mel.repeat_interleave(2, 0) + 0.05, part) == i
        assert t2.nearest(one.mel[::2], part) == i
    long = t2.Said("long", torch.cat((part[0].mel, part[0].mel + 0.9)))
    assert t2.nearest(part[0].mel, [long, part[0]]) == 1


def test_texts_are_recognised_by_their_frames_up_to_the_stop_token(monkeypatch):
    torch.manual_seed(0)
    part = [t2.Said(f"text {i}", torch.rand(8, 6)) for i in range(3)]
    mel = torch.stack([said.mel for said in part])
    mel[1] = part[2].mel
    mel = torch.cat((mel, torch.full((3, 4, 6), 50.0)), 1)  # behind the end
    stop = torch.tensor([[-1.0, 1, 1]] * 3)
    listened = t2.Speech(None, mel, stop, None), torch.tensor([3, 3, 3])
    monkeypatch.setitem(t2._namespace, "listen", lambda *_: listened)
    model = SimpleNamespace(size=SimpleNamespace(r=4))
    assert t2.recognised(model, part, None) == pytest.approx(2 / 3)
