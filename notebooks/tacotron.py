# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tacotron
#
# From characters to sound: the spectrogram network with its CBHG, attention and
# reduction factor, and Griffin-Lim, which makes a sound of a spectrogram. The text to it
# is the [chapter](../chapters/tacotron.rst), the paper is
# [Wang et al. 2017](https://arxiv.org/abs/1703.10135).

# %%
import itertools
import math
import string
from dataclasses import dataclass

import librosa
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, evaluating, record, record_spread, seed, spread
from workbench import checks, counting, diagrams, plots, sound, table, text, training
from workbench.sound import RATE
from workbench.text import PAD

# %% [markdown]
# ## Sound and spectrogram
#
# Frames of 50 ms, one each 12.5 ms.


# %% tags=["stft"]
N_FFT = 2048  # points of each Fourier transform (section 4)
WINDOW = round(0.050 * RATE)  # samples of a frame
HOP = round(0.0125 * RATE)  # samples from one frame to the next


def stft(wave: Tensor) -> Tensor:
    """Short-time Fourier transform: samples (N,) -> complex (1025, T)."""
    hann = torch.hann_window(WINDOW, device=wave.device)
    how = {"window": hann, "pad_mode": "constant", "return_complex": True}
    return torch.stft(wave, N_FFT, HOP, WINDOW, **how)


def istft(spectrum: Tensor) -> Tensor:
    """The sound whose transform is nearest to `spectrum`, frames added up."""
    hann = torch.hann_window(WINDOW, device=spectrum.device)
    return torch.istft(spectrum, N_FFT, HOP, WINDOW, hann)


# %% tags=["emphasis"]
def emphasised(wave: Tensor, share: float = 0.97) -> Tensor:
    """y[n] = x[n] - share * x[n - 1], which raises high frequencies (section 4)."""
    return wave - share * F.pad(wave, (1, -1))


def restored(wave: Tensor, share: float = 0.97, reach: int = 1024) -> Tensor:
    """Its inverse, x[n] = sum of share^k y[n - k]; beyond `reach` nothing is left."""
    powers = share ** torch.arange(reach - 1, -1, -1, device=wave.device)
    return F.conv1d(F.pad(wave, (reach - 1, 0))[None], powers[None, None])[0]


# %% tags=["mel"]
def mel_filters(n_mels: int) -> Tensor:
    """Triangles equally wide in mel, each of area 1 over hertz: (n_mels, 1025).

    The area is that of librosa's filters; the paper has none (section 3.3).
    """
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    corners = torch.linspace(0, highest, n_mels + 2, dtype=torch.double)
    corners = 700 * (10 ** (corners / 2595) - 1)  # in hertz
    left = corners[:-2, None]
    middle = corners[1:-1, None]
    right = corners[2:, None]
    f = torch.linspace(0, RATE / 2, N_FFT // 2 + 1, dtype=torch.double)
    rising = (f - left) / (middle - left)
    falling = (right - f) / (right - middle)
    triangle = torch.minimum(rising, falling).clamp(min=0)
    return (2 * triangle / (right - left)).float()


# %% tags=["level"]
FLOOR = -80  # decibels below a magnitude of 1 that count as silence


def level(magnitude: Tensor) -> Tensor:
    """Decibels, scaled so that silence is 0 and a magnitude of 1 is 1.

    The paper says "log magnitude" only (section 4).
    """
    decibels = 20 * magnitude.clamp(min=10 ** (FLOOR / 20)).log10()
    return 1 - decibels / FLOOR


def magnitude_of(level: Tensor) -> Tensor:
    """The inverse of `level`."""
    return 10 ** ((1 - level) * FLOOR / 20)


# %% [markdown]
# ## Data
#
# A sentence for Griffin-Lim, and two spoken digits at a time to train on. The speaker is
# the synthesiser eSpeak NG.

# %% tags=["speech"]
SENTENCE = "A sound is taken apart and put together again."
DIGITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
HELD_OUT = 20
READINGS = 4

seed(0)
pairs = [f"{a} {b}" for a, b in itertools.product(DIGITS, DIGITS)]
order = torch.randperm(len(pairs)).tolist()
held_out = [pairs[i] for i in order[:HELD_OUT]]
trained = [pairs[i] for i in order[HELD_OUT:]]
utterances = sound.spoken([SENTENCE, *held_out, *trained * READINGS])
sentence = utterances[0].wave.to(device)
sentence = sentence[: len(sentence) // HOP * HOP]
record("sentence.seconds", len(sentence) / RATE)
record("utterances", len(trained) * READINGS)
record("held.out", HELD_OUT)

# %% tags=["tilt"]
found = {}
for name, wave in (("before", sentence), ("after", emphasised(sentence))):
    levels = level(stft(wave).abs())
    found[name] = -FLOOR * (levels[:512].mean() - levels[512:].mean()).item()
    record(f"tilt.{name}", found[name])
claim(found["before"] > found["after"] + 5 > 10, "pre-emphasis raises high frequencies")

# %% tags=["sentence-figure"] alt="Two pictures of the same sentence, one above the other, time from left to right: 1,025 bins of equal width in hertz, darkest in the lower half, and 80 mel bands, where the low frequencies take more of the height."
magnitude = stft(emphasised(sentence)).abs()
mel = mel_filters(80).to(device) @ magnitude
_, axes = plt.subplots(2, 1, figsize=(5, 4))
seconds = magnitude.shape[1] * HOP / RATE
for axis, values, unit in zip(axes, (magnitude, mel), ("bin", "mel band")):
    extent = (0, seconds, 0, len(values))
    picture = level(values).cpu()
    axis.imshow(picture, aspect="auto", origin="lower", extent=extent, cmap="gray_r")
    axis.set(ylabel=unit)
axes[1].set_xlabel("seconds")
axes[1].set_axisbelow(True)

# %% [markdown]
# ## Griffin-Lim
#
# Keep the magnitude, take the phase of the nearest sound, and again.


# %% tags=["griffin-lim"]
def griffin_lim(magnitude: Tensor, phase: Tensor, steps: int, momentum: float = 0.0):
    """A sound (N,) whose transform has about this magnitude (1025, T) (section 3.4).

    Griffin and Lim 1984; with momentum Perraudin et al. 2013. Also returns how far the
    magnitudes are off after each step, relative to their size.
    """
    before = torch.zeros_like(magnitude)
    errors = []
    for _ in range(steps):
        found = stft(istft(torch.polar(magnitude, phase)))
        errors.append(((found.abs() - magnitude).norm() / magnitude.norm()).item())
        phase = (found - momentum / (1 + momentum) * before).angle()
        before = found
    return istft(torch.polar(magnitude, phase)), errors


# %% tags=["phases"]
def random_phase(magnitude: Tensor, number: int) -> Tensor:
    """An angle for each bin and frame, drawn with a seed of its own."""
    draw = torch.Generator().manual_seed(number)
    angles = 2 * math.pi * torch.rand(magnitude.shape, generator=draw)
    return angles.to(magnitude.device)


# %% tags=["griffin-lim-run"]
SEEDS = (0, 1, 2)
errors = {}
sounds = {}
for momentum, number in itertools.product((0.0, 0.99), SEEDS):
    phase = random_phase(magnitude, number)
    wave, steps = griffin_lim(magnitude, phase, 50, momentum)
    errors[momentum, number] = steps

# %% tags=["griffin-lim-result"]
rows = []
plain = torch.tensor([errors[0.0, number] for number in SEEDS])  # (seeds, steps)
fast = torch.tensor([errors[0.99, number] for number in SEEDS])
for step in (1, 3, 10, 30, 50):
    record_spread(f"plain.{step}", plain[:, step - 1].tolist())
    record_spread(f"fast.{step}", fast[:, step - 1].tolist())
    found = [spread(runs[:, step - 1].tolist(), ".3f") for runs in (plain, fast)]
    rows.append((step, *found))
table(rows, ("iteration", "Griffin-Lim", "with momentum 0.99"))

# %% tags=["griffin-lim-claims"]
claim((plain.diff() <= 1e-6).all(), "without momentum the error never rises")
claim(fast[:, 29].max() < plain[:, 49].min(), "fast at 30 is below plain at 50")
last = 1 - plain[:, 49] / plain[:, 29]
record_spread("last", last.tolist())
claim(last.min() > 0.15, "the last 20 of 50 iterations still take a fifth")
claim(last.max() < 0.3, "and no more than that")

# %% tags=["griffin-lim-figure"] alt="Relative error of the magnitudes against the iteration, from 1 to 50. Both curves fall steeply in the first ten iterations. The curve without momentum flattens, the one with momentum 0.99 goes on falling and ends clearly lower. The bands of three random phases are too narrow to see."
_, axes = plt.subplots()
ends = {}
for place, (name, runs) in enumerate((("plain", plain), ("momentum", fast))):
    colour = plots.COLOURS[place]
    ends[name] = plots.seed_band(axes, range(1, 51), runs, colour)
axes.set(xlabel="iteration", ylabel="relative error", ylim=(0, None), xlim=(1, 69))
axes.set_xticks((1, 10, 30, 50))
plots.label_ends(axes, ends)

# %% tags=["griffin-lim-sounds"]
start = random_phase(magnitude, 0)
noise = istft(torch.polar(magnitude, start))
after_3, _ = griffin_lim(magnitude, start, 3)
after_50, _ = griffin_lim(magnitude, start, 50)
sound.play(
    {
        "the sentence, read by eSpeak NG": sentence,
        "its magnitudes with random phases": restored(noise),
        "after 3 iterations": restored(after_3),
        "after 50 iterations": restored(after_50),
    }
)

# %% [markdown]
# ## Equal to SciPy and librosa
#
# SciPy has transforms and filters, librosa the triangles. Griffin-Lim is written once more,
# on SciPy's transforms; that of librosa compiles for half a minute when it is first used,
# so the chapter's tests compare with it.


# %% tags=["scipy"]
def framing() -> dict:
    """Window, points and overlap, as SciPy wants them."""
    window = np.pad(signal.get_window("hann", WINDOW), (N_FFT - WINDOW) // 2)
    return {"window": window, "nperseg": N_FFT, "noverlap": N_FFT - HOP}


def scipy_stft(wave: np.ndarray) -> np.ndarray:
    """SciPy's transform, which divides by the sum of the window."""
    how = framing()
    return signal.stft(wave, padded=False, **how)[2] * how["window"].sum()


def scipy_istft(spectrum: np.ndarray) -> np.ndarray:
    """SciPy's inverse of it."""
    how = framing()
    return signal.istft(spectrum / how["window"].sum(), **how)[1]


def by_scipy(magnitude: Tensor, steps: int, momentum: float) -> Tensor:
    """Griffin-Lim from phases of 0, on SciPy's transforms."""
    M = magnitude.cpu().double().numpy()
    spectrum = M.astype(complex)
    before = 0
    for _ in range(steps):
        found = scipy_stft(scipy_istft(spectrum))
        moved = found + momentum * (found - before)
        spectrum = M * np.exp(1j * np.angle(moved))
        before = found
    return torch.from_numpy(scipy_istft(spectrum))


# %% tags=["scipy-equal"]
rows = []
wave = sentence.cpu()
samples = wave.double().numpy()
louder = signal.lfilter([1, -0.97], [1], samples)
filters = librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=80, htk=True)
for name, whose, ours, theirs in (
    ("transform", "SciPy", stft(wave), scipy_stft(samples)),
    ("80 mel filters", "librosa", mel_filters(80), filters),
    ("pre-emphasis", "SciPy", emphasised(wave), louder),
    ("its inverse", "SciPy", restored(wave), signal.lfilter([1], [1, -0.97], samples)),
):
    rows.append((name, whose, checks.deviation(ours, torch.from_numpy(theirs))))

# %% tags=["griffin-lim-equal"]
zero = torch.zeros_like(magnitude)
for momentum in (0.0, 0.99):
    ours, _ = griffin_lim(magnitude, zero, 5, momentum)
    off = checks.deviation(ours.cpu(), by_scipy(magnitude, 5, momentum))
    rows.append((f"5 iterations, momentum {momentum:g}", "SciPy's transforms", off))

# %% tags=["scipy-result"]
claim(max(off for *_, off in rows) < 1e-3, "the same as SciPy and librosa")
rows = [(name, whose, f"{off:.0e}") for name, whose, off in rows]
table(rows, ("function", "compared with", "difference"))

# %% [markdown]
# ## The network


# %% tags=["pre-net"]
class PreNet(nn.Module):
    """Two layers, half of what each gives is dropped (table 1)."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int):
        super().__init__()
        self.layer1 = nn.Linear(d_in, d_hidden)
        self.layer2 = nn.Linear(d_hidden, d_out)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, d_in) -> (B, T, d_out)
        x = self.dropout(torch.relu(self.layer1(x)))
        return self.dropout(torch.relu(self.layer2(x)))


# %% tags=["conv-norm"]
class ConvNorm(nn.Module):
    """A convolution over time that keeps the length, and batch norm: (B, C, T)."""

    def __init__(self, c_in: int, c_out: int, width: int):
        super().__init__()
        self.room = ((width - 1) // 2, width // 2)
        self.conv = nn.Conv1d(c_in, c_out, width, bias=False)
        self.norm = nn.BatchNorm1d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.pad(x, self.room)))


# %% tags=["highway"]
class Highway(nn.Module):
    """y = t * f(x) + (1 - t) * x, the gate t learnt (Srivastava et al. 2015)."""

    def __init__(self, d: int):
        super().__init__()
        self.change = nn.Linear(d, d)
        self.gate = nn.Linear(d, d)
        nn.init.constant_(self.gate.bias, -1)  # at first most of x goes through

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * torch.relu(self.change(x)) + (1 - t) * x


# %% tags=["cbhg"]
class CBHG(nn.Module):
    """Convolution bank, highway layers, GRU both ways (section 3.1, figure 2)."""

    def __init__(self, c_in: int, width: int, *, K: int, c_mid: int):
        super().__init__()
        self.bank = nn.ModuleList(ConvNorm(c_in, width, k) for k in range(1, K + 1))
        self.project1 = ConvNorm(K * width, c_mid, 3)
        self.project2 = ConvNorm(c_mid, c_in, 3)
        self.widen = nn.Identity() if c_in == width else nn.Linear(c_in, width)
        self.highway = nn.Sequential(*(Highway(width) for _ in range(4)))
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, c_in) -> (B, T, 2 * width)
        y = torch.cat([torch.relu(conv(x.mT)) for conv in self.bank], dim=1)
        y = F.max_pool1d(F.pad(y, (0, 1)), 2, stride=1)  # (B, K * width, T)
        y = self.project2(torch.relu(self.project1(y))).mT  # (B, T, c_in)
        y = self.highway(self.widen(x + y))  # (B, T, width)
        return self.gru(y)[0]


# %% tags=["cbhg-shape"]
CBHG(80, 128, K=8, c_mid=256)(torch.randn(2, 9, 80)).shape


# %% tags=["attention"]
class Attention(nn.Module):
    """Additive scores, as in the chapter on attention (section 3.3)."""

    def __init__(self, d_query: int, d_memory: int, d: int):
        super().__init__()
        self.of_query = nn.Linear(d_query, d, bias=False)
        self.of_memory = nn.Linear(d_memory, d, bias=False)
        self.score = nn.Linear(d, 1, bias=False)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor):
        # (B, N, d_query), (B, S, d_memory), (B, S) -> (B, N, d_memory), (B, N, S)
        both = self.of_query(query).unsqueeze(2) + self.of_memory(memory).unsqueeze(1)
        scores = self.score(torch.tanh(both)).squeeze(-1)  # (B, N, S)
        weights = scores.masked_fill(~mask.unsqueeze(1), -math.inf).softmax(dim=-1)
        return weights @ memory, weights


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """How wide the network is (table 1)."""

    d_embed: int = 256
    d_hidden: int = 256  # of a pre-net
    width: int = 128  # of a pre-net's output and of a CBHG
    K_text: int = 16
    K_post: int = 8
    c_post: int = 256
    d_rnn: int = 256
    M: int = 80  # mel bands


PAPER = Size()
SMALL = Size(
    d_embed=64,
    d_hidden=64,
    width=32,
    K_text=8,
    K_post=4,
    c_post=64,
    d_rnn=64,
    M=40,
)

# %% [markdown]
# ## The decoder
#
# r frames a step; only the last of them goes into the next step.


# %% tags=["given"]
def given_frames(mel: Tensor, r: int) -> Tensor:
    """What each step gets in training: zeros, then every r-th frame (section 3.3).

    (B, T, M) -> (B, T / r, M).
    """
    last = mel[:, r - 1 :: r]
    return F.pad(last[:, :-1], (0, 0, 1, 0))


# %% tags=["given-run"]
frames = torch.arange(1, 7).view(1, 6, 1)
for r in (1, 2, 3):
    print(f"r = {r}: given {given_frames(frames, r).flatten().tolist()}")


# %% tags=["decoder"]
class Decoder(nn.Module):
    """Pre-net, GRU that asks, attention, two GRUs with shortcuts (figure 1)."""

    def __init__(self, size: Size, r: int):
        super().__init__()
        D = size.d_rnn
        d_memory = 2 * size.width
        self.r = r
        self.prenet = PreNet(size.M, size.d_hidden, size.width)
        self.asking = nn.GRU(size.width, D, batch_first=True)
        self.attention = Attention(D, d_memory, D)
        self.join = nn.Linear(D + d_memory, D)
        self.rnn1 = nn.GRU(D, D, batch_first=True)
        self.rnn2 = nn.GRU(D, D, batch_first=True)
        self.frames = nn.Linear(D, r * size.M)

    def steps(self, given: Tensor, memory: Tensor, mask: Tensor, states=(None,) * 3):
        # given (B, N, M) -> mel (B, N * r, M), weights (B, N, S), new states
        query, state0 = self.asking(self.prenet(given), states[0])
        context, weights = self.attention(query, memory, mask)
        x = self.join(torch.cat((query, context), dim=-1))  # (B, N, D)
        y, state1 = self.rnn1(x, states[1])
        x = x + y
        y, state2 = self.rnn2(x, states[2])
        mel = self.frames(x + y).unflatten(-1, (self.r, -1)).flatten(1, 2)
        return mel, weights, (state0, state1, state2)

    def forward(self, memory: Tensor, mask: Tensor, mel: Tensor):
        # all steps at once, given the true frames: mel (B, T, M) -> the same, weights
        return self.steps(given_frames(mel, self.r), memory, mask)[:2]


# %% tags=["tacotron"]
class Tacotron(nn.Module):
    """Characters (B, S) to mel bands (B, T, M) and to bins (B, T, 1025) (figure 1)."""

    def __init__(self, V: int, size: Size = PAPER, *, r: int = 2):
        super().__init__()
        self.embed = nn.Embedding(V, size.d_embed)
        self.prenet = PreNet(size.d_embed, size.d_hidden, size.width)
        self.encoder = CBHG(size.width, size.width, K=size.K_text, c_mid=size.width)
        self.decoder = Decoder(size, r)
        self.post = CBHG(size.M, size.width, K=size.K_post, c_mid=size.c_post)
        self.bins = nn.Linear(2 * size.width, N_FFT // 2 + 1)

    def memory(self, numbers: Tensor) -> Tensor:
        return self.encoder(self.prenet(self.embed(numbers)))  # (B, S, 2 * width)

    def forward(self, numbers: Tensor, mel: Tensor):
        mel, weights = self.decoder(self.memory(numbers), numbers != PAD, mel)
        return mel, self.bins(self.post(mel)), weights


# %% tags=["generate"]
@torch.no_grad()
def generate(model: Tacotron, numbers: Tensor, steps: int):
    """Write `steps` times r frames, each step given the last one of the step before."""
    memory = model.memory(numbers)
    mask = numbers != PAD
    given = memory.new_zeros(len(numbers), 1, model.decoder.prenet.layer1.in_features)
    states = (None,) * 3
    frames = []
    rows = []
    for _ in range(steps):
        mel, weights, states = model.decoder.steps(given, memory, mask, states)
        given = mel[:, -1:]
        frames.append(mel)
        rows.append(weights)
    mel = torch.cat(frames, dim=1)  # (B, T, M)
    return mel, model.bins(model.post(mel)), torch.cat(rows, dim=1)


# %% tags=["network-figure"] alt="Three columns of boxes. Encoder: characters, embedding, pre-net, CBHG. Decoder: last frame, pre-net, GRU, attention, two GRUs, r mel frames. Behind it: mel frames, CBHG, 1,025 bins, Griffin-Lim, sound. An orange arrow leads from the encoder's CBHG to the attention, another from the r frames to the mel frames of the third column. A grey arrow leads from the r frames back to the last frame."
axes = diagrams.sheet(3.9)
columns = {
    "encoder": (0.8, ("characters", "embedding", "pre-net", "CBHG")),
    "decoder": (2.5, ("last frame", "pre-net", "GRU", "attention", "GRUs", "r frames")),
    "sound": (4.2, ("mel frames", "CBHG", "1,025 bins", "Griffin-Lim", "sound")),
}
nodes = {}
arrows = []
for title, (x, names) in columns.items():
    nodes[title] = diagrams.Node(x, 0.15, title, weight="bold")
    for row, name in enumerate(names):
        nodes[f"{title}{row}"] = diagrams.Node(x, 0.55 + 0.6 * row, name, width=1.2)
    arrows += [(f"{title}{i}", f"{title}{i + 1}") for i in range(len(names) - 1)]
arrows.append(("decoder5", (1.65, 3.55), (1.65, 0.55), "decoder0"))
across = [("encoder3", "decoder3"), ("decoder5", (3.35, 3.55), (3.35, 0.55), "sound0")]
diagrams.draw(axes, nodes, arrows, across)

# %% tags=["cbhg-figure"] alt="From left to right and down: x, a bank of convolutions of widths 1, 2, 3 up to K side by side, the larger of two neighbours, two convolutions of width 3, a plus, highway layers, a GRU both ways. An orange arrow leads from x past the convolutions to the plus."
axes = diagrams.sheet(3.6)
nodes = {"x": diagrams.Node(2.5, 0.15, "$x$")}
widths = ("1", "2", "3", "...", "K")
for row, name in enumerate(widths):
    nodes[name] = diagrams.Node(0.9 + 0.8 * row, 0.75, name, width=0.6)
rest = (
    "larger of 2 neighbours",
    "convolutions 3, 3",
    "+",
    "highway 4x",
    "GRU both ways",
)
for row, name in enumerate(rest):
    wide = 0 if name == "+" else 2.3
    nodes[name] = diagrams.Node(2.5, 1.4 + 0.5 * row, name, width=wide)
arrows = [("x", name) for name in widths] + [(name, rest[0]) for name in widths]
arrows += list(itertools.pairwise(rest))
around = ("x", (4.75, 0.15), (4.75, nodes["+"].y), "+")
diagrams.draw(axes, nodes, arrows, [around])

# %% [markdown]
# ## Count and compare

# %% tags=["count"]
ALPHABET = string.ascii_lowercase + " !'(),-.:;?"
vocabulary_size = len(text.Vocabulary(ALPHABET))
with torch.device("meta"):
    model = Tacotron(vocabulary_size)
parts = {
    "embedding": model.embed,
    "pre-net of the text": model.prenet,
    "CBHG of the text": model.encoder,
    "decoder": model.decoder,
    "CBHG of the frames": model.post,
    "bins": model.bins,
}
rows = [(name, counting.parameters(part)) for name, part in parts.items()]
total = counting.parameters(model)
claim(sum(found for _, found in rows) == total, "the parts are the whole")
record("vocabulary", vocabulary_size)
record("parameters", total)
table([*rows, ("all", total)], ("part", "parameters"))


# %% tags=["macs"]
class OnSilence(nn.Module):
    """The network on a text and silent frames, to count it by one input."""

    def __init__(self, model: Tacotron, T: int):
        super().__init__()
        self.model = model
        self.T = T

    def forward(self, numbers: Tensor) -> Tensor:
        M = self.model.decoder.prenet.layer1.in_features
        mel = torch.zeros(len(numbers), self.T, M, device=numbers.device)
        return self.model(numbers, mel)[1]


# %% tags=["macs-result"]
cost = {}
weights_of = {}
with torch.device("meta"):
    numbers = torch.ones(1, 20, dtype=torch.long)
    for r in (1, 2, 5):
        model = Tacotron(vocabulary_size, r=r)
        weights_of[r] = counting.parameters(model)
        if r > 1:
            cost[r] = counting.macs(OnSilence(model, 80), numbers)
record("macs", cost[2])
rows = [(r, weights_of[r], cost[r]) for r in cost]
claim(cost[5] < cost[2], "more frames a step cost fewer MACs")
claim(weights_of[5] > weights_of[2] > weights_of[1], "and need more parameters")
record("per.frame", weights_of[2] - weights_of[1])
table(rows, ("r", "parameters", "MACs"))


# %% tags=["one-convolution"]
class OneConvolution(nn.Module):
    """The bank written as one convolution of width K whose kernels are zero outside."""

    def __init__(self, bank: nn.ModuleList):
        super().__init__()
        K = len(bank)
        kernels = []
        for layer in bank:
            k = layer.conv.kernel_size[0]
            before = (K - 1) // 2 - (k - 1) // 2
            kernels.append(F.pad(layer.conv.weight, (before, K - k - before)))
        self.kernel = torch.cat(kernels)  # (K * width, c_in, K)
        self.room = ((K - 1) // 2, K // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, self.room), self.kernel)


# %% tags=["gru"]
def gru_by_formula(gru: nn.GRU, x: Tensor) -> Tensor:
    """States of a GRU of one direction, step by step (Cho et al. 2014): (B, T, D)."""
    W, U, b, c = gru.all_weights[0]
    h = x.new_zeros(len(x), U.shape[1])
    states = []
    for t in range(x.shape[1]):
        from_x = (x[:, t] @ W.T + b).chunk(3, dim=-1)
        from_h = (h @ U.T + c).chunk(3, dim=-1)
        reset = torch.sigmoid(from_x[0] + from_h[0])
        keep = torch.sigmoid(from_x[1] + from_h[1])
        new = torch.tanh(from_x[2] + reset * from_h[2])
        h = keep * h + (1 - keep) * new
        states.append(h)
    return torch.stack(states, dim=1)


# %% tags=["equal"]
seed(0)
small = Tacotron(20, SMALL, r=2).to(device).eval()
numbers = torch.randint(3, 20, (3, 9)).to(device)
frames = torch.rand(3, 12, SMALL.M).to(device)
x = torch.randn(3, 32, 9).to(device)
bank = torch.cat([layer.conv(F.pad(x, layer.room)) for layer in small.encoder.bank], 1)
query = torch.randn(3, 7, SMALL.width).to(device)
asked, _ = small.decoder.asking(query)
by_formula = gru_by_formula(small.decoder.asking, query)
written, bins, weights = generate(small, numbers, 6)
again, bins_again, weights_again = small(numbers, written)

# %% tags=["equal-result"]
found = {
    "bank, as one convolution": checks.deviation(
        OneConvolution(small.encoder.bank)(x), bank
    ),
    "GRU, step by step": checks.deviation(by_formula, asked),
    "frames, step by step and at once": checks.deviation(again, written),
    "bins of both": checks.deviation(bins_again, bins),
}
claim(max(found.values()) < 1e-5, "two ways to compute it, the same numbers")
table([(name, f"{value:.0e}") for name, value in found.items()], ("part", "difference"))

# %% [markdown]
# ## How soon the attention finds the way
#
# Two digits in a text; one network for each reduction factor and seed.


# %% tags=["data"]
vocabulary = text.Vocabulary([utterance.text for utterance in utterances])
numbers = vocabulary.padded([u.text for u in utterances[1:]]).to(device)  # (B, S)
filters = mel_filters(SMALL.M).to(device)
magnitudes = [stft(emphasised(u.wave.to(device))).abs() for u in utterances[1:]]
lengths = torch.tensor([m.shape[1] for m in magnitudes], device=device)
n_frames = math.ceil(max(lengths).item() / 10) * 10  # what 1, 2 and 5 divide


def padded(levels: list[Tensor], n_frames: int) -> Tensor:
    """Levels (M, T) in a row, silence behind them: (B, n_frames, M)."""
    return torch.stack([F.pad(x, (0, n_frames - x.shape[1])).T for x in levels])


mels = padded([level(filters @ m) for m in magnitudes], n_frames)
lasting = (lengths.sum() / (numbers != PAD).sum()).item()
record("frames.per.character", lasting)
record("frames", n_frames)
claim(lasting > 4, "a character lasts several frames")


# %% tags=["diagonal"]
def off_diagonal(weights: Tensor, steps: Tensor, places: Tensor):
    """How far each weight is from the diagonal, in shares of the whole: (B, N, S).

    weights (B, N, S), of which steps (B,) and places (B,) are no padding; also which
    steps are none, (B, N).
    """
    n = torch.arange(weights.shape[1], device=weights.device)
    s = torch.arange(weights.shape[2], device=weights.device)
    along = (n + 0.5) / steps[:, None]  # (B, N)
    across = (s + 0.5) / places[:, None]  # (B, S)
    return (along[:, :, None] - across[:, None]).abs(), along < 1


def guided_loss(weights: Tensor, steps: Tensor, places: Tensor) -> Tensor:
    """Mean over the steps of the weight away from the diagonal.

    Tachibana et al. 2017, whose mean is over the characters, too.
    """
    distance, spoken = off_diagonal(weights, steps, places)
    away = 1 - torch.exp(-(distance**2) / (2 * 0.2**2))
    return ((weights * away).sum(-1) * spoken).sum() / spoken.sum()


def near_diagonal(weights: Tensor, steps: Tensor, places: Tensor) -> Tensor:
    """Share of the weights that is within a fifth of the whole from the diagonal."""
    distance, spoken = off_diagonal(weights, steps, places)
    near = (weights * (distance < 0.2)).sum(-1)  # (B, N)
    return (near * spoken).sum() / spoken.sum()


# %% tags=["learn"]
def losses(model: Tacotron, numbers: Tensor, mel: Tensor, lengths: Tensor):
    """Mean absolute error of the frames, silence included; the guided loss."""
    memory = model.memory(numbers)
    found, weights = model.decoder(memory, numbers != PAD, mel)
    places = (numbers != PAD).sum(1)
    guided = guided_loss(weights, lengths / model.decoder.r, places)
    return F.l1_loss(found, mel), guided


def step(optimizer, loss: Tensor) -> None:
    """One update, the gradient no longer than 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


@torch.no_grad()
def aligned(model: Tacotron, numbers: Tensor, mel: Tensor, lengths: Tensor) -> float:
    """Share of the weights near the diagonal, given the true frames."""
    with evaluating(model):
        _, weights = model.decoder(model.memory(numbers), numbers != PAD, mel)
    places = (numbers != PAD).sum(1)
    return near_diagonal(weights, lengths / model.decoder.r, places).item()


# %% tags=["until"]
GUIDE = 0.1  # weight of the guided loss
ENOUGH = 0.6  # share of the weights that has to be near the diagonal
EVERY = 5  # updates from one measurement to the next


def until_aligned(model: Tacotron, part, held_out, *, most: int = 200) -> list[float]:
    """Train until enough of the weights are near the diagonal; the shares measured.

    part, held_out: numbers (B, S), frames (B, T, M), lengths (B,).
    """
    numbers, mel, lengths = part
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=20)
    shares = [aligned(model, *held_out)]
    while len(shares) <= most // EVERY and shares[-1] < ENOUGH:
        for _ in range(EVERY):
            i = torch.randint(len(numbers), (16,)).to(numbers.device)
            frames, guided = losses(model, numbers[i], mel[i], lengths[i])
            step(optimizer, frames + GUIDE * guided)
            warmup.step()
        shares.append(aligned(model, *held_out))
    return shares


# %% tags=["crossing"]
def crossing(shares: list[float]) -> float:
    """The update at which the share is ENOUGH, on a line between the last two."""
    before, after = shares[-2:]
    return EVERY * (len(shares) - 2 + (ENOUGH - before) / (after - before))


# %% tags=["headline-parts"]
held_out = numbers[:HELD_OUT], mels[:HELD_OUT], lengths[:HELD_OUT]
part = numbers[HELD_OUT:], mels[HELD_OUT:], lengths[HELD_OUT:]
models = {}
shares = {}


def align(r: int, number: int) -> None:
    """Train one network with one seed."""
    seed(number)
    model = Tacotron(len(vocabulary), SMALL, r=r).to(device)
    shares[r, number] = until_aligned(model, part, held_out)
    models[r, number] = model


# %% tags=["headline-run"]
for number in SEEDS:
    align(5, number)
    align(1, number)

# %% tags=["headline-result"]
rows = []
updates = {}
calls = {}
for r in (5, 1):
    updates[r] = [crossing(shares[r, number]) for number in SEEDS]
    calls[r] = [found * n_frames / r for found in updates[r]]
    record_spread(f"updates.{r}", updates[r])
    both = spread(updates[r], ".0f"), spread(calls[r], ",.0f")
    rows.append((r, n_frames // r, *both))
columns = ("r", "decoder steps a text", "updates until aligned", "decoder steps in all")
table(rows, columns)

# %% tags=["headline-claims"]
starts = [found[0] for found in shares.values()]
claim(min(found[-1] for found in shares.values()) >= ENOUGH, "all of them get there")
claim(max(starts) < 0.4, "before the first update the weights are spread evenly")
claim(max(updates[5]) + 8 < min(updates[1]), "r = 5 needs fewer updates than r = 1")
claim(4 * max(calls[5]) < min(calls[1]), "and far fewer steps of the decoder")
record("even", sum(starts) / len(starts))
record("cheaper", sum(calls[1]) / sum(calls[5]))

# %% tags=["headline-figure"] alt="Share of the attention near the diagonal against the update, three curves for r = 5 and three for r = 1. All stay at about 0.4 for a while and then rise to 0.6 and above: the three with r = 5 first, later the three with r = 1."
_, axes = plt.subplots()
ends = {}
for colour, r in zip(plots.COLOURS, (5, 1)):
    for number in SEEDS:
        found = shares[r, number]
        place = EVERY * (len(found) - 1)
        axes.plot(range(0, place + 1, EVERY), found, color=colour, linewidth=1.5)
        ends[f"r = {r}"] = max(ends.get(f"r = {r}", (0, 0)), (place, found[-1]))
axes.axhline(ENOUGH, color=plots.QUIET, linewidth=1, linestyle=":")
axes.set(
    xlabel="update", ylabel="share near the diagonal", ylim=(0.2, 1), xlim=(0, None)
)
axes.set_axisbelow(True)
plots.label_ends(axes, ends)

# %% [markdown]
# ## Speak
#
# The network with r = 5 and seed 0 is trained on, then the part behind its decoder.


# %% tags=["speaker"]
def train_on(model: Tacotron, part, steps: int) -> None:
    """Encoder and decoder once more, the rate rising and falling."""
    numbers, mel, lengths = part
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    schedule = training.one_cycle(optimizer, steps)
    for _ in training.progress(range(steps), "decoder"):
        i = torch.randint(len(numbers), (16,)).to(numbers.device)
        frames, guided = losses(model, numbers[i], mel[i], lengths[i])
        step(optimizer, frames + GUIDE * guided)
        schedule.step()


def train_behind(model: Tacotron, part, bins: Tensor, steps: int) -> None:
    """Then the part behind the decoder, on the frames that the decoder writes."""
    numbers, mel, _ = part
    with evaluating(model), torch.no_grad():
        frames, _ = model.decoder(model.memory(numbers), numbers != PAD, mel)
    behind = [*model.post.parameters(), *model.bins.parameters()]
    optimizer = torch.optim.Adam(behind, lr=0.01, fused=True)
    schedule = training.one_cycle(optimizer, steps)
    for _ in training.progress(range(steps), "bins"):
        i = torch.randint(len(bins), (8,)).to(bins.device)
        step(optimizer, F.l1_loss(model.bins(model.post(frames[i])), bins[i]))
        schedule.step()


# %% tags=["speaker-run"]
seed(0)
bins = padded([level(m) for m in magnitudes], n_frames)
speaker = models[5, 0]
train_on(speaker, part, 180)
train_behind(speaker, part, bins[HELD_OUT:], 70)

# %% tags=["speak"]
texts = held_out[0]
with evaluating(speaker), torch.no_grad():
    told, _, told_weights = speaker(texts, held_out[1])
    written, written_bins, written_weights = generate(speaker, texts, n_frames // 5)


# %% tags=["nearest"]
def nearest(written: Tensor, recorded: Tensor) -> Tensor:
    """For each spectrogram (B, T, M) the number of the nearest recorded one: (B,)."""
    return torch.cdist(written.flatten(1), recorded.flatten(1), p=1).argmin(dim=1)


# %% tags=["without-network"]
held = given_frames(held_out[1], 5).repeat_interleave(5, dim=1)
spoken = torch.arange(n_frames, device=device) < held_out[2][:, None]  # (B, T)
mean = part[1].mean(0) * spoken[..., None]

# %% tags=["speaker-result"]
places = (texts != PAD).sum(1)
own = torch.arange(HELD_OUT, device=device)
record("pairs", len(pairs))
rows = []
right = {}
off = {}
for name, short, mel, weights in (
    ("network, given the true frames", "true", told, told_weights),
    ("no network, the given frame held", "held", held, None),
    ("network, given its own frames", "own", written, written_weights),
    ("no network, mean of all readings", "mean", mean, None),
):
    off[short] = -FLOOR * F.l1_loss(mel, held_out[1]).item()
    right[short] = int((nearest(mel, mels[: len(pairs)]) == own).sum())
    near = "" if weights is None else near_diagonal(weights, held_out[2] / 5, places)
    claim(weights is None or near > 0.85, "the attention stays near the diagonal")
    record(f"right.{short}", right[short])
    rows.append((name, near and f"{near:.2f}", f"{off[short]:.1f} dB", right[short]))
table(rows, ("frames from", "near the diagonal", "off by", "nearest"))

# %% tags=["speaker-claims"]
claim(right["true"] > right["held"] + 4, "more than the given frame tells")
claim(right["own"] > right["mean"] + 3, "more than the length tells")
claim(off["true"] < off["held"] - 1, "and closer than the given frame")
claim(off["own"] < off["mean"] - 0.5, "and closer than the mean")

# %% tags=["alignment-figure"] alt="Weights of the attention while a held-out text is spoken, characters from bottom to top, decoder steps from left to right: a dark band climbs from the second character to the last, which it reaches at the orange line; behind the line the weights go back to earlier characters."
chosen = 0
letters = utterances[1 + chosen].text
_, axes = plt.subplots(figsize=(5, 2.8))
picture = written_weights[chosen, :, : len(letters)].T.cpu()
axes.imshow(picture, aspect="auto", origin="lower", cmap="gray_r")
axes.set_yticks(range(len(letters)), letters.replace(" ", "_"))
axes.set_xlabel("decoder step")
end = lengths[chosen].item() / 5  # of the recording
axes.axvline(end - 0.5, color=plots.COLOURS[1], linewidth=1.5)
axes.set_axisbelow(True)

# %% tags=["alignment-claims"]
before = picture[:, : int(end)]  # (characters, steps)
claim(before.topk(2, dim=0).values.sum(0).mean() > 0.85, "one or two characters a step")
claim(before[0].mean() < 0.2, "and hardly the first")

# %% tags=["spectrogram-figure"] alt="Two spectrograms of the same held-out text, one above the other, 1,025 bins over time. That of eSpeak NG has two words, each begun by noise in the upper bins; that of the network has the dark bands of both words, blurred into each other. Silence behind both."
_, axes = plt.subplots(2, 1, figsize=(5, 4), sharex=True)
for axis, picture, name in (
    (axes[0], bins[chosen], "eSpeak NG"),
    (axes[1], written_bins[chosen], "network"),
):
    axis.imshow(picture.T.cpu(), aspect="auto", origin="lower", cmap="gray_r", vmin=0)
    axis.set_ylabel(f"bin, {name}")
axes[1].set_xlabel("frame")
axes[1].set_axisbelow(True)


# %% tags=["vocode"]
def vocode(levels: Tensor, power: float = 1.2) -> Tensor:
    """Levels of bins (T, 1025) to a sound, magnitudes to a power (section 3.4)."""
    magnitude = magnitude_of(levels.T) ** power
    wave, _ = griffin_lim(magnitude, random_phase(magnitude, 0), 50)
    return restored(wave)


# %% tags=["speaker-sounds"]
sounds = {}
for place in (0, 1):
    words = utterances[1 + place].text
    sounds[f"{words}, read by eSpeak NG"] = utterances[1 + place].wave
    sounds[f"{words}, spoken by the network"] = vocode(written_bins[place])
sound.play(sounds)

# %% [markdown]
# ## What we saw
#
# - Griffin-Lim makes a sound of magnitudes alone, and the error falls at each step.
# - With 5 frames a step the attention finds the diagonal sooner than with 1.
# - A small network follows texts that it has not been trained on.
#
# ## Exercises

# %% tags=["solution-1"]
small_steps = {r: 400 // r for r in (1, 2, 5)}  # of the decoder, for 5 seconds
per_frame = PAPER.M * (PAPER.d_rnn + 1)  # weights and biases of one frame more

# %% tags=["solution-1-result"]
claim(per_frame == weights_of[2] - weights_of[1], "the output layer alone grows")
rows = [(r, n, weights_of[r]) for r, n in small_steps.items()]
table(rows, ("r", "decoder steps", "parameters"))

# %% tags=["solution-2"]
flat = torch.zeros_like(magnitude)
_, from_zero = griffin_lim(magnitude, flat, 30)
true_phase = stft(emphasised(sentence)).angle()
_, from_truth = griffin_lim(magnitude, true_phase, 1)

# %% tags=["solution-2-result"]
claim(from_truth[0] < 1e-4, "from the true phases nothing is left to do")
claim(from_zero[29] > plain[:, 29].max().item(), "phases of zero end higher here")
rows = [("all zero", f"{from_zero[29]:.3f}")]
rows += [("random, three seeds", spread(plain[:, 29].tolist(), ".3f"))]
rows += [("true, one iteration", f"{from_truth[0]:.0e}")]
table(rows, ("phases at the start", "relative error after 30 iterations"))

# %% tags=["solution-3"]
peak = 10 ** (-20 / 20)  # 20 decibels below 1
valley = 10 ** (-40 / 20)
ratio = peak**1.2 / valley**1.2
difference = 20 * math.log10(ratio)

# %% tags=["solution-3-result"]
claim(abs(difference - 24) < 1e-9, "20 dB become 24 dB")
table([("20 dB", f"{difference:.0f} dB")], ("difference before", "after"))

# %% tags=["solution-4"]
align(10, 0)
record("updates.10", crossing(shares[10, 0]))

# %% tags=["solution-4-result"]
claim(shares[10, 0][-1] >= ENOUGH, "r = 10 gets there")
claim(abs(crossing(shares[10, 0]) - sum(updates[5]) / 3) < 20, "about when r = 5 does")
rows = [(10, f"{crossing(shares[10, 0]):.0f}"), (5, spread(updates[5], ".0f"))]
table(rows, ("r", "updates until aligned"))
