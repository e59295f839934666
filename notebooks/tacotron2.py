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
# # Tacotron 2
#
# From letters to a mel spectrogram, frame by frame, with an attention that knows where it
# has been: trained on spoken digits with that attention and with one that looks at content
# alone, and tried on texts longer than any that was heard.
# The text to it is the [chapter](../chapters/tacotron2.rst), the paper is
# [Shen et al. 2017](https://arxiv.org/abs/1712.05884).

# %%
import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import librosa
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from transformers import SpeechT5Config
from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpeechDecoderPostnet

from workbench import claim, device, evaluating, record, record_spread, seed, sources
from workbench import checks, counting, diagrams, plots, sound, spread, table, text
from workbench import training

# %% [markdown]
# ## Attention by content, and by place
#
# The energy of a character is a number; the softmax over the characters makes weights of
# them.


# %% tags=["content"]
class ContentAttention(nn.Module):
    """Additive attention (Bahdanau et al. 2014): v . tanh(W query + V memory)."""

    def __init__(self, size: "Size"):
        super().__init__()
        self.to_query = nn.Linear(size.d_rnn, size.d_attention, bias=False)
        self.to_keys = nn.Linear(size.d_encoder, size.d_attention, bias=False)
        self.to_energy = nn.Linear(size.d_attention, 1, bias=False)

    def before_tanh(self, query: Tensor, keys: Tensor, past: Tensor) -> Tensor:
        return self.to_query(query).unsqueeze(1) + keys  # (B, S, d_attention)

    def forward(self, query, keys, past, mask) -> Tensor:
        """query (B, d_rnn), past (B, 2, S), mask (B, S): weights (B, S)."""
        hidden = torch.tanh(self.before_tanh(query, keys, past))
        energies = self.to_energy(hidden).squeeze(-1)  # (B, S)
        return energies.masked_fill(~mask, -math.inf).softmax(-1)


# %% tags=["location"]
class LocationAttention(ContentAttention):
    """The same with features of past weights (Chorowski et al. 2015; section 2.2).

    past has two rows: the weights of the step before, and the sum of all so far.
    """

    def __init__(self, size: "Size"):
        super().__init__(size)
        how = {"padding": size.kernel // 2, "bias": False}
        self.conv = nn.Conv1d(2, size.filters, size.kernel, **how)
        self.to_place = nn.Linear(size.filters, size.d_attention, bias=False)

    def before_tanh(self, query: Tensor, keys: Tensor, past: Tensor) -> Tensor:
        places = self.conv(past).mT  # (B, S, filters)
        return super().before_tanh(query, keys, past) + self.to_place(places)


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """The paper's numbers (section 2.2); it does not give that of the symbols."""

    V: int = 148  # symbols, as NVIDIA's
    M: int = 80  # mel bins
    r: int = 1  # frames a step
    d_encoder: int = 512
    d_prenet: int = 256
    d_rnn: int = 1024
    d_attention: int = 128
    filters: int = 32
    kernel: int = 31
    c_post: int = 512
    n_post: int = 5
    dropout: float = 0.5  # of the convolutions


# %% [markdown]
# ## Encoder
#
# Three convolutions over five characters each and an LSTM in both directions.


# %% tags=["conv-norm"]
def conv_norm(c_in: int, c_out: int, activation: nn.Module, dropout: float):
    """Convolution over 5 places, batch norm, activation, dropout: (B, C, T) again."""
    conv = nn.Conv1d(c_in, c_out, 5, padding=2)
    layers = (conv, nn.BatchNorm1d(c_out), activation, nn.Dropout(dropout))
    return nn.Sequential(*layers)


# %% tags=["encoder"]
class Encoder(nn.Module):
    """Characters (B, S) to the memory (B, S, d_encoder) (section 2.2)."""

    def __init__(self, size: Size):
        super().__init__()
        d = size.d_encoder
        self.embed = nn.Embedding(size.V, d)
        layers = [conv_norm(d, d, nn.ReLU(), size.dropout) for _ in range(3)]
        self.convs = nn.ModuleList(layers)
        self.rnn = nn.LSTM(d, d // 2, bidirectional=True)

    def forward(self, numbers: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        x = self.embed(numbers).mT  # (B, d, S)
        for conv in self.convs:
            x = conv(x * mask.unsqueeze(1))  # padding is read as zeros
        how = {"batch_first": True, "enforce_sorted": False}
        packed = pack_padded_sequence(x.mT, lengths, **how)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return states  # (B, S, d)


# %% [markdown]
# ## Decoder
#
# A step reads the last frame and writes the next r. Two LSTM cells: the state of the first
# asks the attention, the second reads the answer.


# %% tags=["prenet"]
class Prenet(nn.Module):
    """Two layers with a dropout that is never switched off (section 2.2)."""

    def __init__(self, size: Size):
        super().__init__()
        self.first = nn.Linear(size.M, size.d_prenet, bias=False)
        self.second = nn.Linear(size.d_prenet, size.d_prenet, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(torch.relu(self.first(x)), 0.5)
        return F.dropout(torch.relu(self.second(x)), 0.5)


# %% tags=["zoneout"]
class ZoneoutCell(nn.LSTMCell):
    """An LSTM cell, of whose numbers each keeps its old value with probability rate.

    Krueger et al. 2016; in evaluation the mean of old and new, weighted 0.1 and 0.9.
    """

    rate = 0.1

    def forward(self, x: Tensor, state: tuple) -> tuple[Tensor, Tensor]:
        h, c = super().forward(x, state)
        return self.mixed(state[0], h), self.mixed(state[1], c)

    def mixed(self, old: Tensor, new: Tensor) -> Tensor:
        change = F.dropout(new - old, self.rate, self.training)  # kept: / (1 - rate)
        return old + (1 - self.rate) * change


# %% tags=["state"]
class State(NamedTuple):
    """What the decoder carries from step to step."""

    first: tuple[Tensor, Tensor]  # h and c, each (B, d_rnn)
    second: tuple[Tensor, Tensor]
    context: Tensor  # (B, d_encoder), what was read last
    weights: Tensor  # (B, S), and where
    total: Tensor  # (B, S), the sum of all weights so far


class Source(NamedTuple):
    """What the decoder reads."""

    memory: Tensor  # (B, S, d_encoder)
    keys: Tensor  # (B, S, d_attention), computed once
    mask: Tensor  # (B, S), true at characters

    def start(self, d_rnn: int) -> State:
        """Zeros, and nothing read."""
        B, S, d = self.memory.shape
        h = self.memory.new_zeros(B, d_rnn)
        place = self.memory.new_zeros(B, S)
        return State((h, h), (h, h), self.memory.new_zeros(B, d), place, place)


# %% tags=["decoder"]
class Decoder(nn.Module):
    """One step: a frame and a state to features (B, d_rnn + d_encoder) and a state.

    Section 2.2; which LSTM asks the attention is as in NVIDIA's code.
    """

    def __init__(self, size: Size, attention, cell):
        super().__init__()
        self.prenet = Prenet(size)
        self.first = cell(size.d_prenet + size.d_encoder, size.d_rnn)
        self.attention = attention(size)
        self.second = cell(size.d_rnn + size.d_encoder, size.d_rnn)
        self.to_frames = nn.Linear(size.d_rnn + size.d_encoder, size.r * size.M)
        self.to_stop = nn.Linear(size.d_rnn + size.d_encoder, 1)

    def step(self, frame: Tensor, state: State, source: Source):
        x = self.prenet(frame)  # (B, d_prenet)
        first = self.first(torch.cat((x, state.context), -1), state.first)
        past = torch.stack((state.weights, state.total), 1)  # (B, 2, S)
        weights = self.attention(first[0], source.keys, past, source.mask)
        context = (weights.unsqueeze(1) @ source.memory).squeeze(1)  # (B, d_encoder)
        second = self.second(torch.cat((first[0], context), -1), state.second)
        total = state.total + weights
        features = torch.cat((second[0], context), -1)
        return features, State(first, second, context, weights, total)


# %% tags=["postnet"]
class Postnet(nn.Module):
    """What to add to the finished frames: (B, T, M) to (B, T, M) (section 2.2)."""

    def __init__(self, size: Size):
        super().__init__()
        widths = [size.M, *[size.c_post] * (size.n_post - 1), size.M]
        layers = []
        for c_in, c_out in zip(widths, widths[1:]):
            layers.append(conv_norm(c_in, c_out, nn.Tanh(), size.dropout))
        layers[-1][2] = nn.Identity()  # no tanh behind the last
        self.layers = nn.Sequential(*layers)

    def forward(self, mel: Tensor) -> Tensor:
        return self.layers(mel.mT).mT


# %% tags=["speech"]
class Speech(NamedTuple):
    """What a network says, and where it has looked."""

    before: Tensor  # (B, T r, M), without the post-net
    mel: Tensor  # (B, T r, M), with it
    stop: Tensor  # (B, T), the logit of having ended
    weights: Tensor  # (B, T, S)


# %% tags=["tacotron2"]
class Tacotron2(nn.Module):
    """From characters to a mel spectrogram (section 2.2, figure 1)."""

    def __init__(self, size: Size, attention=LocationAttention, cell=ZoneoutCell):
        super().__init__()
        self.size = size
        self.encoder = Encoder(size)
        self.decoder = Decoder(size, attention, cell)
        self.postnet = Postnet(size)

    def read(self, numbers: Tensor, lengths: Tensor) -> Source:
        mask = numbers != text.PAD
        memory = self.encoder(numbers, mask, lengths)
        return Source(memory, self.decoder.attention.to_keys(memory), mask)

    def forward(self, numbers: Tensor, lengths: Tensor, mel: Tensor) -> Speech:
        """Teacher forcing: each step reads the true last frame. lengths on the CPU."""
        source = self.read(numbers, lengths)
        r = self.size.r
        shifted = F.pad(mel, (0, 0, r, 0))  # r frames of silence in front
        frames = shifted[:, r - 1 : -1 : r]  # (B, T, M), before each step
        state = source.start(self.size.d_rnn)
        all_weights = []
        all_features = []
        for frame in frames.unbind(1):
            features, state = self.decoder.step(frame, state, source)
            all_features.append(features)
            all_weights.append(state.weights)
        return self.speech(torch.stack(all_features, 1), torch.stack(all_weights, 1))

    def speech(self, features: Tensor, weights: Tensor) -> Speech:
        """features (B, T, d_rnn + d_encoder), weights (B, T, S)."""
        frames = self.decoder.to_frames(features)  # (B, T, r M)
        before = frames.unflatten(2, (self.size.r, self.size.M)).flatten(1, 2)
        stop = self.decoder.to_stop(features).squeeze(-1)
        return Speech(before, before + self.postnet(before), stop, weights)


# %% tags=["say"]
@torch.no_grad()
def say(model: Tacotron2, numbers: Tensor, lengths: Tensor, steps: int) -> Speech:
    """Free-running: each step reads the frame that the last one wrote."""
    source = model.read(numbers, lengths)
    state = source.start(model.size.d_rnn)
    frame = source.memory.new_zeros(len(numbers), model.size.M)  # silence
    all_weights = []
    all_features = []
    for _ in range(steps):
        features, state = model.decoder.step(frame, state, source)
        frame = model.decoder.to_frames(features)[:, -model.size.M :]  # the last of r
        all_features.append(features)
        all_weights.append(state.weights)
    return model.speech(torch.stack(all_features, 1), torch.stack(all_weights, 1))


# %% [markdown]
# ## Spoken digits

# %% tags=["texts"]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LENGTHS = (6, 8, 10)  # words, beyond the trained two to four


def digits(count: int, words: tuple[int, int], number: int) -> list[str]:
    """Texts of as many digits as the range says, both ends included."""
    draw = torch.Generator().manual_seed(number)
    texts = []
    for _ in range(count):
        n = int(torch.randint(words[0], words[1] + 1, (1,), generator=draw))
        chosen = torch.randint(10, (n,), generator=draw).tolist()
        texts.append(" ".join(WORDS[i] for i in chosen))
    return texts


# %% tags=["mel"]
HOP = 256  # samples from one frame to the next
WINDOW = 1024
FLOOR = 0.01  # magnitudes below it are silence


def mel_filters(M: int = 80) -> Tensor:
    """The triangles that make M bins of the frequencies: (M, 513) (section 2.2)."""
    limits = {"fmin": 125, "fmax": 7600}
    return torch.from_numpy(
        librosa.filters.mel(sr=sound.RATE, n_fft=WINDOW, n_mels=M, **limits)
    )


def stft(wave: Tensor) -> Tensor:
    """Sound (N,) to its transform, complex numbers (513, T)."""
    how = {"window": torch.hann_window(WINDOW), "return_complex": True}
    return torch.stft(wave, WINDOW, HOP, pad_mode="constant", **how)


def mel_of(wave: Tensor, filters: Tensor) -> Tensor:
    """Sound (N,) to frames (T, M): logarithms above the floor of 0.01, which is 0."""
    bands = filters @ stft(wave).abs()  # (M, T)
    return torch.log(bands.clamp(min=FLOOR) / FLOOR).mT


# %% tags=["trimmed"]
def trimmed(wave: Tensor, quiet: float = 0.01) -> Tensor:
    """Without the silence at both ends, but for a moment."""
    (loud,) = torch.nonzero(wave.abs() > quiet, as_tuple=True)
    return wave[max(0, int(loud[0]) - HOP) : int(loud[-1]) + 4 * HOP]


# %% tags=["batch"]
class Batch(NamedTuple):
    """Some utterances; lengths stay on the CPU, where the packing wants them."""

    numbers: Tensor  # (B, S)
    lengths: Tensor  # (B,)
    mel: Tensor  # (B, T r, M), silence behind the shorter
    steps: Tensor  # (B,), of the decoder

    @classmethod
    def of(cls, utterances, vocabulary, r: int) -> "Batch":
        numbers = vocabulary.padded([said.text for said in utterances])
        lengths = (numbers != text.PAD).sum(1)
        steps = torch.tensor([math.ceil(len(said.mel) / r) for said in utterances])
        mel = pad_sequence([said.mel for said in utterances], batch_first=True)
        mel = F.pad(mel, (0, 0, 0, r * int(steps.max()) - mel.shape[1]))
        return cls(numbers.to(device), lengths, mel.to(device), steps.to(device))


class Said(NamedTuple):
    """A text and its mel spectrogram (T, M)."""

    text: str
    mel: Tensor


# %% [markdown]
# ## Losses


# %% tags=["losses"]
def frame_loss(speech: Speech, mel: Tensor, live: Tensor) -> Tensor:
    """Squared error before plus behind the post-net (section 2.2); live (B, T)."""
    r = mel.shape[1] // live.shape[1]
    error = (speech.before - mel) ** 2 + (speech.mel - mel) ** 2
    frames = live.repeat_interleave(r, 1).unsqueeze(-1)  # (B, T r, 1)
    return (error * frames).sum() / (frames.sum() * mel.shape[2])


def stop_loss(logits: Tensor, steps: Tensor, live: Tensor) -> Tensor:
    """Binary cross-entropy; wanted is 1 from the last step on (section 2.2)."""
    place = torch.arange(logits.shape[1], device=logits.device)
    ended = (place >= steps.unsqueeze(1) - 1).float()
    losses = F.binary_cross_entropy_with_logits(logits, ended, reduction="none")
    return (losses * live).sum() / live.sum()


def guided_loss(weights: Tensor, lengths: Tensor, steps: Tensor, live) -> Tensor:
    """Weight far from the diagonal, g = 0.2 (Tachibana et al. 2017).

    Their mean is over steps and characters, ours over steps: a sum over characters.
    """
    _, T, S = weights.shape
    time = torch.arange(T, device=weights.device) / steps.unsqueeze(1)
    place = torch.arange(S, device=weights.device) / lengths.unsqueeze(1)
    apart = time.unsqueeze(2) - place.unsqueeze(1)  # (B, T, S)
    far = 1 - torch.exp(-(apart**2) / (2 * 0.2**2))
    return (weights * far * live.unsqueeze(-1)).sum() / live.sum()


# %% tags=["train"]
STEPS = 90
BATCH = 16
RATE = 5e-3


def live_steps(steps: Tensor, T: int) -> Tensor:
    """1 up to one step behind the end of each utterance: (B, T)."""
    return (torch.arange(T, device=steps.device) <= steps.unsqueeze(1)).float()


def loss_of(model: Tacotron2, batch: Batch, guide: float) -> Tensor:
    speech = model(batch.numbers, batch.lengths, batch.mel)
    live = live_steps(batch.steps, speech.stop.shape[1])
    lengths = batch.lengths.to(live.device)
    near = guided_loss(speech.weights, lengths, batch.steps, live)
    stopped = stop_loss(speech.stop, batch.steps, live)
    return frame_loss(speech, batch.mel, live) + stopped + guide * near


def train(model, utterances, vocabulary, steps=STEPS, *, guide=5.0) -> list:
    """Adam as in the paper, but for a rate that rises and falls; the losses."""
    how = {"lr": RATE, "eps": 1e-6, "weight_decay": 1e-6, "fused": True}
    optimizer = torch.optim.Adam(model.parameters(), **how)
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    for _ in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(utterances), (BATCH,)).tolist()
        some = [utterances[i] for i in chosen]
        loss = loss_of(model, Batch.of(some, vocabulary, model.size.r), guide)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% tags=["complete"]
def words_by_step(weights: Tensor, said: str) -> list[int]:
    """The word, by number, in which the largest weight of each step lies (T, S).

    Steps that look at a space are left out.
    """
    word = 0
    words = []  # of each character
    for character in said:
        word += character == " "
        words.append(-1 if character == " " else word)
    looked = [words[place] for place in weights.argmax(-1).tolist()]
    return [word for word in looked if word >= 0]


def words_seen(weights: Tensor, said: str) -> list[int]:
    """The same, a word that stays listed once."""
    seen = []
    for word in words_by_step(weights, said):
        if word not in seen[-1:]:
            seen.append(word)
    return seen


def complete(weights: Tensor, said: str) -> bool:
    """Whether each word is looked at once, in order, until the last is reached."""
    n = len(said.split())
    return words_seen(weights, said)[:n] == list(range(n))


# %% tags=["stop"]
def end_of(logits: Tensor) -> int:
    """Steps up to the first whose probability exceeds one half, or all: (T,)."""
    over = torch.nonzero(logits > 0).flatten().tolist()
    return over[0] + 1 if over else len(logits)


def how_it_ends(logits: Tensor, weights: Tensor, said: str) -> str:
    """Early if another word is looked at when the token fires or all is over."""
    end = end_of(logits)
    if words_seen(weights[:end], said)[-1:] != [len(said.split()) - 1]:
        return "early"  # without a token, too
    return "in time" if bool((logits > 0).any()) else "never"


# %% tags=["listen"]
def listen(model: Tacotron2, part, vocabulary) -> tuple[Speech, Tensor]:
    """Texts said without a teacher, and the steps allowed: half more than true."""
    batch = Batch.of(part, vocabulary, model.size.r)
    allowed = (1.5 * batch.steps).ceil().int()
    with evaluating(model):
        speech = say(model, batch.numbers, batch.lengths, int(allowed.max()))
    return speech, allowed


class Judgement(NamedTuple):
    """Of the texts of a part: the share read, how each ends, the length."""

    read: float
    ends: list[str]
    length: float  # up to the stop token, divided by the true one, mean

    def share(self, end: str) -> float:
        return self.ends.count(end) / len(self.ends)


def judged(model: Tacotron2, part, vocabulary) -> Judgement:
    """What a network makes of each text without a teacher."""
    speech, allowed = listen(model, part, vocabulary)
    right = 0
    ends = []
    lengths = []
    for i, (said, mel) in enumerate(part):
        stop = speech.stop[i, : allowed[i]]
        weights = speech.weights[i, : allowed[i]]
        right += complete(weights, said)
        ends.append(how_it_ends(stop, weights, said))
        lengths.append(end_of(stop) * model.size.r / len(mel))
    return Judgement(right / len(part), ends, sum(lengths) / len(part))


# %% tags=["pace"]
def clock(said: str, steps: int) -> Tensor:
    """Weights without a network: 3 characters in 2 steps, then the last: (T, S)."""
    places = (1.5 * torch.arange(steps)).long().clamp(max=len(said) - 1)
    return F.one_hot(places, len(said)).float()


def clock_reads(part, r: int) -> float:
    """Share of the texts that the clock reads in the steps that a network gets."""
    right = 0
    for said, mel in part:
        allowed = math.ceil(1.5 * math.ceil(len(mel) / r))
        right += complete(clock(said, allowed), said)
    return right / len(part)


def steps_on_words(model: Tacotron2, part, vocabulary) -> list[float]:
    """Mean steps on each of WORDS; the last of a text, where it rests, is left out."""
    speech, allowed = listen(model, part, vocabulary)
    found = {word: [] for word in WORDS}
    for i, (said, _) in enumerate(part):
        looked = words_by_step(speech.weights[i, : allowed[i]], said)
        for place, word in enumerate(said.split()[:-1]):
            found[word].append(looked.count(place))
    return [sum(some) / len(some) for some in found.values()]


def correlation(a: list[float], b: list[float]) -> float:
    return torch.corrcoef(torch.tensor((a, b), dtype=torch.double))[0, 1].item()


# %% [markdown]
# ## Two letters, twice
#
# The memory of "abab" holds the same for both a. We ask for an a after the first b.

# %% tags=["by-hand"]
ONE = Size(d_rnn=1, d_encoder=1, d_attention=1, filters=1, kernel=3)
QUERY = torch.zeros(1, 1)
KEYS = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]])  # a, b, a, b
PAST = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])  # b was read last


@torch.no_grad()
def abab(attention) -> Tensor:
    """Weights of four letters: energy 10 tanh(key + 2 f), f the weight to the left."""
    layer = attention(ONE)
    layer.to_energy.weight.fill_(10)
    if attention is LocationAttention:
        layer.conv.weight.copy_(torch.tensor([[[1.0, 0, 0], [0, 0, 0]]]))
        layer.to_place.weight.fill_(2)
    return layer(QUERY, KEYS, PAST, torch.ones(1, 4, dtype=torch.bool))[0]


# %% tags=["by-hand-result"]
by_content = abab(ContentAttention)
by_place = abab(LocationAttention)
claim(abs(by_content[0] - by_content[2]) < 1e-6, "content cannot tell the two a apart")
claim(by_place[2] > 0.9, "with the place the second a has nearly all weight")
rows = [("read last", *("0.00", "1.00", "0.00", "0.00"))]
for name, weights in (("by content", by_content), ("with the place", by_place)):
    rows.append((name, *(f"{weight:.2f}" for weight in weights.tolist())))
table(rows, ("weights", "first a", "first b", "second a", "second b"))

# %% [markdown]
# ## The paper's size


# %% tags=["drawing"]
def draw_network(axes) -> None:
    """The text at the left, one step of the decoder at the right."""
    left = 0.95
    right = 3.3
    places = {
        "text": diagrams.Node(left, 0.3, "characters"),
        "encoder": diagrams.Node(left, 0.95, "encoder", width=1.3),
        "attention": diagrams.Node(left, 2.2, "attention", width=1.3),
        "past": diagrams.Node(left, 2.95, "its weights so far", colour=ORANGE),
        "frame": diagrams.Node(right, 0.3, "frame before"),
        "prenet": diagrams.Node(right, 0.95, "pre-net", width=1.5),
        "first": diagrams.Node(right, 1.6, "first LSTM", width=1.5),
        "second": diagrams.Node(right, 2.8, "second LSTM", width=1.5),
        "frames": diagrams.Node(right, 3.45, "next frames, end?", width=1.9),
        "postnet": diagrams.Node(right, 4.1, "post-net", width=1.5),
        "mel": diagrams.Node(left, 4.1, "spectrogram"),
        "query": diagrams.Node(2.1, 1.45, "query"),
        "context": diagrams.Node(2.3, 2.05, "context"),
    }
    down = ("frame", "prenet", "first", "second", "frames", "postnet")
    arrows = [("text", "encoder"), ("encoder", "attention"), *zip(down, down[1:])]
    arrows += [((right - 0.75, 1.6), (left + 0.5, 1.6), (left + 0.5, 2.03))]
    arrows += [((left + 0.65, 2.2), (right - 0.4, 2.2), (right - 0.4, 2.63))]
    arrows += [((2.0, 2.2), (2.0, 3.45), (right - 0.95, 3.45)), ("postnet", "mel")]
    back = ((right + 0.95, 3.45), (4.6, 3.45), (4.6, 0.3), (right + 0.6, 0.3))
    around = ((0.15, 2.95), (0.05, 2.95), (0.05, 2.2), (0.3, 2.2))
    context = ((right - 0.4, 2.2), (right - 0.4, 1.77))
    kept = (back, ("attention", "past"), around, context)
    diagrams.draw(axes, places, arrows, kept)


ORANGE = plots.COLOURS[1]

# %% tags=["network-figure"] alt="Two columns of boxes. Left: characters, encoder, attention. Right: the frame before, pre-net, first LSTM, second LSTM, next frames and end, post-net. The first LSTM sends a query to the attention, whose context goes to the second LSTM and to the next frames. Orange arrows lead from the context to the first LSTM, from the attention to its weights so far and back into it, and from the next frames up to the frame before. The post-net gives the spectrogram."
draw_network(diagrams.sheet(4.4))


# %% tags=["count"]
def parts_of(model: Tacotron2) -> dict[str, nn.Module]:
    """Its parts, in the order of the table."""
    decoder = model.decoder
    ends = nn.ModuleList((decoder.to_frames, decoder.to_stop))
    parts = {"encoder": model.encoder, "pre-net": decoder.prenet}
    parts |= {"first LSTM": decoder.first, "attention": decoder.attention}
    parts |= {"second LSTM": decoder.second, "frames and stop": ends}
    return parts | {"post-net": model.postnet}


# %% tags=["count-result"]
with torch.device("meta"):
    published = Tacotron2(Size())
named = parts_of(published).items()
rows = [(name, counting.parameters(part)) for name, part in named]
total = counting.parameters(published)
claim(sum(row[1] for row in rows) == total, "the parts are all of it")
claim(total == 28_193_153, "as many as NVIDIA's implementation has")
lstms = sum(number for name, number in rows if name.endswith("LSTM"))
claim(lstms > total / 2, "most of them belong to the two LSTMs of the decoder")
record("parameters", total)
table([*rows, ("together", total)], ("part", "parameters"))


# %% tags=["taught"]
class Taught(nn.Module):
    """Teacher forcing on silence, for what counts a network: frames (B, T, M)."""

    def __init__(self, model: Tacotron2):
        super().__init__()
        self.model = model

    def forward(self, mel: Tensor) -> Tensor:
        numbers = torch.ones(len(mel), 20, dtype=torch.long, device=mel.device)
        return self.model(numbers, torch.full((len(mel),), 20), mel).mel


# %% tags=["macs"]
seed(0)
macs = counting.macs(Taught(Tacotron2(Size())), torch.zeros(1, 80, 80))
record("macs", macs)

# %% [markdown]
# ## Equalities

# %% tags=["tiny"]
TINY = Size(V=30, M=6, r=2, d_encoder=8, d_prenet=7, d_rnn=10, d_attention=5)


@torch.no_grad()
def one_pass(model: Tacotron2, second, numbers, lengths, mel) -> Tensor:
    """Teacher forcing once more: the second LSTM is torch's, over all steps at once.

    With a teacher it does not feed the first one, so it may run behind the loop.
    """
    source = model.read(numbers, lengths)
    state = source.start(model.size.d_rnn)
    read = []
    for t in range(mel.shape[1] // model.size.r):
        frame = mel[:, t * model.size.r - 1] if t else torch.zeros_like(mel[:, 0])
        _, state = model.decoder.step(frame, state, source)
        read.append(torch.cat((state.first[0], state.context), -1))
    states, _ = second(torch.stack(read, 1))
    features = torch.cat((states, torch.stack(read, 1)[..., model.size.d_rnn :]), -1)
    return model.speech(features, features).mel


def with_same_dropout(function, *arguments):
    """The pre-net drops by chance in evaluation, too: from one seed in each way."""
    torch.manual_seed(1)
    with torch.no_grad():
        return function(*arguments)


@torch.no_grad()
def share_postnet(ours: Postnet, theirs: SpeechT5SpeechDecoderPostnet) -> None:
    """Random statistics and no biases for ours, since theirs has none; then copies."""
    for layer, other in zip(ours.layers, theirs.layers):
        conv, norm, *_ = layer
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.zeros_(conv.bias)
        other.conv.weight.copy_(conv.weight)
        other.batch_norm.load_state_dict(norm.state_dict())


# %% tags=["equal"]
seed(0)
tiny = Tacotron2(TINY, cell=nn.LSTMCell).eval()
numbers = torch.randint(3, 30, (3, 9))
lengths = torch.tensor([9, 7, 4])
numbers[torch.arange(9) >= lengths.unsqueeze(1)] = text.PAD
mel = torch.randn(3, 12, 6)
found = {}


# %% tags=["equal-decoder"]
taught = with_same_dropout(tiny, numbers, lengths, mel)
second = nn.LSTM(tiny.decoder.second.input_size, TINY.d_rnn, batch_first=True)
checks.transplant(tiny.decoder.second, second)
again = with_same_dropout(one_pass, tiny, second, numbers, lengths, mel)
found["second LSTM by torch.nn.LSTM"] = checks.deviation(again, taught.mel)
free = with_same_dropout(say, tiny, numbers, lengths, 6)
own = with_same_dropout(tiny, numbers, lengths, free.before)
found["free-running and taught by its own frames"] = checks.deviation(own.mel, free.mel)
alone = with_same_dropout(tiny.read, numbers[2:, :4], lengths[2:])
together = with_same_dropout(tiny.read, numbers, lengths)
words = "a text alone and padded in a batch"
found[words] = checks.deviation(together.memory[2:, :4], alone.memory)

# %% tags=["equal-postnet"]
sizes = {"speech_decoder_postnet_units": 512, "num_mel_bins": 80, "hidden_size": 4}
theirs = SpeechT5SpeechDecoderPostnet(SpeechT5Config(**sizes)).eval()
ours = Postnet(Size()).eval()
share_postnet(ours, theirs)
mel = torch.randn(2, 30, 80)
with torch.no_grad():
    expected = theirs.postnet(mel)
    found["post-net of transformers' SpeechT5"] = checks.deviation(
        mel + ours(mel), expected
    )

# %% tags=["equal-result"]
for words, difference in found.items():
    claim(difference < 1e-5, f"equal: {words}")
table([(k, f"{v:.0e}") for k, v in found.items()], ("compared", "largest difference"))

# %% [markdown]
# ## Training
#
# Texts of two to four digits, spoken by a synthesiser.

# %% tags=["data"]
wanted = {"train": digits(300, (2, 4), 0), "2 to 4": digits(42, (2, 4), 1)}
for n in LENGTHS:
    wanted[str(n)] = digits(20, (n, n), n)
for n in (3, 7):
    wanted[f"one word, {n} times"] = [" ".join([word] * n) for word in WORDS]
heard = set(wanted["train"])
for name in set(wanted) - {"train"}:
    wanted[name] = [said for said in wanted[name] if said not in heard]
sources.append("speech of the synthesiser eSpeak NG, made in this run")
spoken = iter(sound.speak([said for texts in wanted.values() for said in texts]))

# %% tags=["parts"]
filters = mel_filters()
parts = {}
waves = {}
for name, texts in wanted.items():
    waves[name] = [trimmed(next(spoken)) for _ in texts]
    mels = [mel_of(wave, filters) for wave in waves[name]]
    parts[name] = [Said(said, mel) for said, mel in zip(texts, mels)]

# %% tags=["data-result"]
tests = [said for name, texts in wanted.items() if name != "train" for said in texts]
claim(not heard & set(tests), "no text that is tested was trained")
vocabulary = text.Vocabulary(wanted["train"])
SEEDS = (0, 1, 2)
KINDS = {"location": "location-sensitive", "content": "content alone"}
SMALL = {"r": 8, "d_encoder": 64, "d_prenet": 64, "d_rnn": 96, "d_attention": 32}
SMALL |= {"filters": 8, "kernel": 11, "c_post": 24, "n_post": 3, "dropout": 0.1}
small = Size(V=len(vocabulary), **SMALL)

# %% tags=["sizes"]
for name, value in SMALL.items():
    record(f"small.{name}", value)
record("texts", len(parts["train"]))
record("example", next(said for said in wanted["train"] if said.count(" ") == 3))
record("seconds", sum(len(wave) for wave in waves["train"]) / sound.RATE)
record("steps", STEPS)
record("batch", BATCH)
record("rate", RATE)

# %% tags=["headline"]
networks = {}
losses = {}
for number in SEEDS:
    seed(number)
    model = Tacotron2(small, LocationAttention, nn.LSTMCell).to(device)
    losses["location", number] = train(model, parts["train"], vocabulary)
    networks["location", number] = model

# %% tags=["headline-content"]
for number in SEEDS:
    seed(number)
    model = Tacotron2(small, ContentAttention, nn.LSTMCell).to(device)
    losses["content", number] = train(model, parts["train"], vocabulary)
    networks["content", number] = model

# %% tags=["headline-run"]
NAMES = ("2 to 4", *map(str, LENGTHS), "one word, 3 times", "one word, 7 times")
found = {}
for kind in KINDS:
    for number in SEEDS:
        for name in NAMES:
            seed(number)
            model = networks[kind, number]
            found[kind, name, number] = judged(model, parts[name], vocabulary)

# %% tags=["curve"] alt="Loss against the step of the training, for both kinds of attention; bands from the smallest to the largest of three seeds. Both fall."
_, axes = plt.subplots()
drawn = {}
for place, (kind, title) in enumerate(KINDS.items()):
    runs = torch.tensor([losses[kind, number] for number in SEEDS])
    claim(
        bool((runs[:, -10:].mean(1) < runs[:, :10].mean(1) / 2).all()), f"falls: {kind}"
    )
    drawn[title] = plots.seed_band(axes, range(STEPS), runs, plots.COLOURS[place])
axes.set(xlabel="step", ylabel="loss", xlim=(0, 1.5 * STEPS), ylim=(0, None))
plots.label_ends(axes, drawn)

# %% tags=["headline-result"]
rows = []
for name in NAMES:
    row = [name, len(parts[name])]
    for kind in KINDS:
        shares = [found[kind, name, number].read for number in SEEDS]
        record_spread(f"{kind}.{name.replace(', ', '.').replace(' ', '_')}", shares)
        row.append(spread(shares, ".2f"))
    by_clock = clock_reads(parts[name], small.r)
    claim(by_clock == 1, f"a clock reads all: {name}")
    rows.append((*row, f"{by_clock:.2f}"))
record("small.parameters", counting.parameters(networks["location", 0]))
table(rows, ("words", "texts", *KINDS.values(), "a clock"))

# %% tags=["headline-claims"]
reads = {key: answer.read for key, answer in found.items()}
least = {name: min(reads["location", name, n] for n in SEEDS) for name in NAMES}
most = {name: max(reads["content", name, n] for n in SEEDS) for name in NAMES}
for name in (*map(str, LENGTHS), "one word, 7 times"):
    words = f"the worst of location-sensitive attention reads more: {name}"
    claim(least[name] > most[name] + 0.2, words)
for name in NAMES:
    claim(least[name] > 0.7, f"location-sensitive attention reads most: {name}")
claim(max(most["8"], most["10"]) <= 0.1, "content alone reads almost none of 8 and 10")
for name in ("2 to 4", "one word, 3 times"):
    worst = min(reads["content", name, n] for n in SEEDS)
    claim(worst > 0.5, f"content alone reads most: {name}")

# %% tags=["headline-figure"] alt="Share of texts read completely against the number of words, 2 to 4, 6, 8 and 10, three seeds. The line of location-sensitive attention stays above 0.7. That of content alone starts above one half at 2 to 4 words and is almost 0 at eight and ten."
_, axes = plt.subplots()
drawn = {}
for place, (kind, title) in enumerate(KINDS.items()):
    runs = [[reads[kind, name, number] for name in NAMES[:4]] for number in SEEDS]
    where = plots.COLOURS[place]
    drawn[title] = plots.seed_band(axes, (3, 6, 8, 10), torch.tensor(runs), where)
axes.axvspan(2, 4, color=plots.GRID, alpha=0.5, linewidth=0)
axes.annotate("trained", (3, 0.04), ha="center", color=plots.QUIET)
axes.set(xlabel="words", ylabel="texts read", xlim=(1.8, 14.5), ylim=(0, 1.05))
axes.set_xticks((2, 4, 6, 8, 10))
plots.label_ends(axes, drawn)

# %% [markdown]
# ## At which pace
#
# What sets the time on a word: its letters, or how long it sounds?

# %% tags=["pace-result"]
lengths = [len(word) for word in WORDS]
word_waves = [trimmed(wave) for wave in sound.speak(WORDS)]
seconds = [len(wave) / sound.RATE for wave in word_waves]
by_letters = []
by_sound = []
for number in SEEDS:
    seed(number)
    stays = steps_on_words(networks["location", number], parts["10"], vocabulary)
    by_letters.append(correlation(stays, lengths))
    by_sound.append(correlation(stays, seconds))
record_spread("pace.letters", by_letters)
record_spread("pace.sound", by_sound)

# %% tags=["pace-claims"]
claim(min(by_letters) > 0.8, "the time on a word goes with the number of its letters")
claim(max(by_sound) < min(by_letters) - 0.3, "less so with the length of its sound")

# %% [markdown]
# ## Where the attention looks

# %% tags=["look"]
TEN = 3  # one of the texts of ten words
said = parts["10"][TEN].text
looked = {}
for kind in KINDS:
    seed(0)
    speech, _ = listen(networks[kind, 0], [parts["10"][TEN]], vocabulary)
    looked[kind] = speech.weights[0].cpu()

# %% tags=["look-claims"]
n = list(range(10))
claim(words_seen(looked["location"], said)[:10] == n, "drawn: all words in order")
claim(words_seen(looked["content"], said)[:10] != n, "drawn: not so by content alone")
late = looked["content"].argmax(-1)[len(looked["content"]) // 2 :]
claim(bool((late >= said.rindex(" ")).float().mean() > 0.5), "then at the last word")
first = looked["content"].argmax(-1)[:4]
claim(bool((first < said.index(" ", 12)).all()), "content begins in the first words")

# %% tags=["look-figure"] alt="Two grey pictures side by side, ten spoken words from top to bottom, the steps of the decoder from left to right; dark is a large weight. Left, location-sensitive: a dark staircase from the top left corner down to the last word. Right, content alone: dark in the first words, later for the most part in the last word."
_, axes = plt.subplots(1, 2, figsize=(5, 3.2), sharey=True)
starts = [0, *(i + 1 for i, character in enumerate(said) if character == " ")]
for one, (kind, weights) in zip(axes, looked.items()):
    one.imshow(weights.mT, cmap="gray_r", vmin=0, aspect="auto")
    one.set(xlabel="step of the decoder", title=KINDS[kind])
    one.set_yticks(starts, said.split())

# %% [markdown]
# ## When to stop

# %% tags=["stop-result"]
rows = []
answers = {}
for name in NAMES[:4]:
    answers[name] = [found["location", name, number] for number in SEEDS]
    row = [name]
    for end in ("early", "in time", "never"):
        row.append(spread([one.share(end) for one in answers[name]], ".2f"))
    rows.append((*row, spread([one.length for one in answers[name]], ".2f")))
table(rows, ("words", "early", "at the last word", "never", "length"))

# %% tags=["stop-claims"]
mean_lengths = {}
for name, some in answers.items():
    least_share = min(one.share("in time") for one in some)
    claim(least_share > 0.6, f"the token comes mostly at the last word: {name}")
    mean_lengths[name] = sum(one.length for one in some) / len(some)
    record(f"length.{name.replace(' ', '_')}", mean_lengths[name])
claim(mean_lengths["10"] > mean_lengths["2 to 4"] + 0.02, "ten words: more time, mean")

# %% [markdown]
# ## Without one row of the past


# %% tags=["blind"]
@torch.no_grad()
def blind(model: Tacotron2, row: int) -> Tacotron2:
    """A copy that does not see one row of the past: 0 the last weights, 1 their sum."""
    changed = copy.deepcopy(model)
    changed.decoder.attention.conv.weight[:, row] = 0
    return changed


# %% tags=["blind-result"]
rows = [("nothing", spread([reads["location", "10", n] for n in SEEDS], ".2f"))]
blinded = {}
for row, name in enumerate(("last weights", "sum of all")):
    blinded[name] = []
    for number in SEEDS:
        seed(number)
        changed = blind(networks["location", number], row)
        blinded[name].append(judged(changed, parts["10"], vocabulary).read)
    record_spread(f"blind.{row}", blinded[name])
    rows.append((name, spread(blinded[name], ".2f")))
table(rows, ("taken away", "texts of ten words read"))

# %% tags=["blind-claims"]
claim(max(blinded["sum of all"]) <= 0.1, "without the sum almost no text is read")
mean_read = sum(blinded["last weights"]) / len(SEEDS)
claim(mean_read > 0.3, "without the last weights more are, in the mean")

# %% [markdown]
# ## A voice
#
# One of the networks is trained for longer, to be listened to.


# %% tags=["nearest"]
def warped(a: Tensor, b: Tensor) -> float:
    """Distance of frames (T, M) and (U, M), summed up on the best way through both.

    A step of the way goes on by one frame in the one, in the other, or in both. librosa
    has it, too (`sequence.dtw`), and compiles for some 20 seconds at its first use.
    """
    distances = torch.cdist(a.double(), b.double())  # (T, U)
    best = distances[0].cumsum(0)  # of ways to each frame of b, for the first of a
    for row in distances[1:]:
        entry = torch.minimum(best, F.pad(best[:-1], (1, 0), value=math.inf))
        along = row.cumsum(0)
        best = along + (entry + row - along).cummin(0).values  # enter, then go along b
    return best[-1].item()


def nearest(mel: Tensor, part) -> int:
    """Which text of a part the frames (T, M) sound most like, by time warping."""
    costs = []
    for said in part:
        frames = len(mel) + len(said.mel)
        costs.append(warped(mel.cpu(), said.mel) / frames)
    return costs.index(min(costs))


def recognised(model: Tacotron2, part, vocabulary) -> float:
    """Share of texts whose free-running frames are nearest to their own."""
    speech, allowed = listen(model, part, vocabulary)
    right = 0
    for i, steps in enumerate(allowed):
        frames = end_of(speech.stop[i, :steps]) * model.size.r
        right += nearest(speech.mel[i, :frames], part) == i
    return right / len(part)


# %% tags=["voice"]
LONGER = 150
record("longer", STEPS + LONGER)
voice = copy.deepcopy(networks["location", 0])
seed(0)
losses["voice", 0] = train(voice, parts["train"], vocabulary, LONGER, guide=0.0)
# %% tags=["voice-error"]
voices = {STEPS: networks["location", 0], STEPS + LONGER: voice}
batch = Batch.of(parts["2 to 4"], vocabulary, small.r)
live = live_steps(batch.steps, int(batch.steps.max()))
errors = []
for model in voices.values():
    seed(0)
    with evaluating(model), torch.no_grad():
        speech = model(batch.numbers, batch.lengths, batch.mel)
    errors.append(frame_loss(speech, batch.mel, live).item())

# %% tags=["voice-result"]
fours = [said for said in parts["2 to 4"] if len(said.text.split()) == 4]
rows = []
shares = []
for (steps, model), error in zip(voices.items(), errors):
    seed(0)
    shares.append(recognised(model, fours, vocabulary))
    read = judged(model, parts["10"], vocabulary).read
    rows.append((steps, f"{error:.2f}", f"{read:.2f}", f"{shares[-1]:.2f}"))
record("fours", len(fours))
record("recognised.first", round(shares[0] * len(fours)))
record("recognised.longer", round(shares[1] * len(fours)))
table(rows, ("steps", "error of the frames", "ten words read", "recognised"))

# %% tags=["voice-claims"]
claim(errors[1] < 0.8 * errors[0], "the frames are nearer after more steps")
claim(shares[1] > shares[0] + 0.2, "more texts are recognised after more steps")
claim(read > 0.6, "most texts of ten words are still read")


# %% tags=["phases"]
def istft(magnitudes: Tensor, phases: Tensor) -> Tensor:
    """The sound whose transform is nearest to these magnitudes and phases (513, T)."""
    spectrum = torch.polar(magnitudes, phases)
    return torch.istft(spectrum, WINDOW, HOP, window=torch.hann_window(WINDOW))


def griffin_lim(magnitudes: Tensor, phases: Tensor, steps: int = 40) -> Tensor:
    """Sound of about these magnitudes (513, T), as in the chapter on Tacotron.

    Griffin and Lim 1984; the fast variant, with momentum (Perraudin et al. 2013).
    """
    before = torch.zeros_like(magnitudes)
    for _ in range(steps):
        found = stft(istft(magnitudes, phases))
        phases = (found + 0.99 * (found - before)).angle()
        before = found
    return istft(magnitudes, phases)


# %% tags=["griffin-lim"]
def wave_of(mel: Tensor) -> Tensor:
    """Frames (T, M) to sound: pseudo-inverse of the filters, phases by Griffin-Lim."""
    filters = mel_filters(mel.shape[1])
    bins = FLOOR * (mel.cpu().exp() - 1).clamp(min=0)  # silence is 0
    magnitudes = (torch.linalg.pinv(filters) @ bins.mT).clamp(min=0)  # (513, T)
    draw = torch.Generator().manual_seed(0)
    phases = 2 * math.pi * torch.rand(magnitudes.shape, generator=draw)
    return griffin_lim(magnitudes, phases)


# %% tags=["say-all"]
place = parts["2 to 4"].index(fours[0])
seed(0)
one = Batch.of(fours[:1], vocabulary, small.r)
with evaluating(voice), torch.no_grad():
    taught = voice(one.numbers, one.lengths, one.mel)
free, _ = listen(voice, fours[:1], vocabulary)
pictures = {
    "spoken": fours[0].mel,
    "teacher-forced": taught.mel[0].cpu(),
    "free-running": free.mel[0, : end_of(free.stop[0]) * small.r].cpu(),
}
between = {name: mel.diff(dim=1).abs().mean().item() for name, mel in pictures.items()}
record("between.spoken", between["spoken"])
record("between.taught", between["teacher-forced"])
claim(between["teacher-forced"] < 0.9 * between["spoken"], "neighbours differ less")
claim(between["free-running"] < 0.9 * between["spoken"], "free-running, too")

# %% tags=["mel-figure"] alt="Three spectrograms one above the other, time from left to right, mel bins from low to high: spoken, teacher-forced, free-running. Dark patches stand for the sounds of the words; in the two of the network neighbouring bins differ less."
_, axes = plt.subplots(3, 1, figsize=(5, 4.2), sharex=True)
axes[1].set(ylabel="mel bin")
axes[2].set(xlabel="frame")
for one, (name, mel) in zip(axes, pictures.items()):
    one.imshow(mel.mT, cmap="gray_r", vmin=0, origin="lower", aspect="auto")
    one.set_title(name, loc="left")
    one.set_yticks((0, 40, 80))

# %% tags=["sounds"]
played = {f"Synthesiser: {fours[0].text}": waves["2 to 4"][place]}
for name, mel in pictures.items():
    source = f"Network, {STEPS + LONGER} steps, {name}"
    source = "Synthesiser, from its frames" if name == "spoken" else source
    played[f"{source}: {fours[0].text}"] = wave_of(mel)
for kind, title in KINDS.items():
    seed(0)
    ten, _ = listen(networks[kind, 0], [parts["10"][TEN]], vocabulary)
    frames = end_of(ten.stop[0]) * small.r
    record(f"ten.{kind}", frames / len(parts["10"][TEN].mel))
    played[f"{title}, {STEPS} steps: {said}"] = wave_of(ten.mel[0, :frames])
sound.play(played)

# %% [markdown]
# ## What we saw
#
# - With weights of the past among its features the attention reads ten words in order
#   after training on two to four; by content alone no text of ten words is read.
# - What it has learnt is a pace: the time on a word goes with its letters. A clock would
#   read all texts, too.
# - The count is that of the public implementation; free-running and teacher-forced are
#   the same step.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
with torch.device("meta"):
    pairs = Tacotron2(Size(r=2))
more = counting.parameters(pairs) - total

# %% tags=["solution-1-result"]
claim(more == 80 * (1024 + 512 + 1), "only the linear layer of the frames grows")
table([(total, more)], ("one frame a step", "more for two"))

# %% tags=["solution-2"]
cell = ZoneoutCell(1, 1)
old = torch.tensor([1.0])
new = torch.tensor([3.0])
in_evaluation = cell.eval().mixed(old, new)
in_training = cell.train().mixed(old.expand(10_000), new.expand(10_000))
near = torch.isclose(in_training[:, None], torch.tensor([1.0, 3.0]))  # old, new

# %% tags=["solution-2-result"]
claim(abs(in_evaluation.item() - 2.8) < 1e-6, "evaluation: nine tenths new")
claim(bool(near.any(1).all()), "training: old or new")
kept, taken = near.double().mean(0).tolist()
claim(abs(kept - 0.1) < 0.02, "old in a tenth of the draws")
rows = [(f"{kept:.2f}", f"{taken:.2f}", f"{in_evaluation.item():.2f}")]
table(rows, ("training: old", "training: new", "evaluation"))


# %% tags=["solution-3"]
class SurePrenet(Prenet):
    """Without dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))


def surely(model: Tacotron2) -> Tacotron2:
    """A copy that drops nothing in its pre-net."""
    changed = copy.deepcopy(model)
    changed.decoder.prenet.__class__ = SurePrenet
    return changed


# %% tags=["solution-3-result"]
shares = []
for number in SEEDS:
    seed(number)
    changed = surely(networks["location", number])
    shares.append(judged(changed, parts["10"], vocabulary).read)
claim(min(shares) > 0.7, "most texts are read without dropout")
table([(spread(shares, ".2f"),)], ("texts of ten words read without dropout",))


# %% tags=["solution-4"]
class Windowed(ContentAttention):
    """May look from 3 characters before the last place to 6 behind it."""

    def forward(self, query, keys, past, mask) -> Tensor:
        last = past[:, 0].argmax(-1, keepdim=True)  # (B, 1)
        place = torch.arange(mask.shape[1], device=mask.device)
        near = (place >= last - 3) & (place <= last + 6)  # (B, S)
        return super().forward(query, keys, past, mask & near)


def windowed(model: Tacotron2) -> Tacotron2:
    """A copy whose attention by content has a window."""
    changed = copy.deepcopy(model)
    changed.decoder.attention.__class__ = Windowed
    return changed


# %% tags=["solution-4-result"]
rows = []
for name in ("6", "10"):
    shares = []
    for number in SEEDS:
        seed(number)
        changed = windowed(networks["content", number])
        shares.append(judged(changed, parts[name], vocabulary).read)
    before = [reads["content", name, number] for number in SEEDS]
    rows.append((name, spread(before, ".2f"), spread(shares, ".2f")))
claim(max(shares) <= 0.3, "few texts of ten words are read with a window")
table(rows, ("words", "content alone", "with a window"))
