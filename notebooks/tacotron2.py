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

from workbench import claim, device, evaluating, record, record_spread, seed, spread
from workbench import checks, counting, diagrams, plots, sound, table, text, training

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
    """The paper's numbers (section 2.2); r frames a step, which the paper has at 1."""

    V: int = 148  # symbols
    M: int = 80  # mel bins
    r: int = 1
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

    Krueger et al. 2016; in evaluation the mean of old and new, weighted alike.
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
    """One step: a frame and a state to features (B, d_rnn + d_encoder) and a state."""

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
    """Convolutions over the finished frames; what to add: (B, T, M) to (B, T, M)."""

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
    """The triangles that make M bins of the frequencies: (M, 513) (section 2.1)."""
    limits = {"fmin": 125, "fmax": 7600}
    return torch.from_numpy(
        librosa.filters.mel(sr=sound.RATE, n_fft=WINDOW, n_mels=M, **limits)
    )


def mel_of(wave: Tensor, filters: Tensor) -> Tensor:
    """Sound (N,) to frames (T, M): logarithms above the floor of 0.01, which is 0."""
    how = {"window": torch.hann_window(WINDOW), "return_complex": True}
    spectrum = torch.stft(wave, WINDOW, HOP, pad_mode="constant", **how).abs()
    return torch.log((filters @ spectrum).clamp(min=FLOOR) / FLOOR).mT


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
    """Squared error before and behind the post-net, over the live steps (B, T)."""
    r = mel.shape[1] // live.shape[1]
    error = (speech.before - mel) ** 2 + (speech.mel - mel) ** 2
    frames = live.repeat_interleave(r, 1).unsqueeze(-1)  # (B, T r, 1)
    return (error * frames).sum() / (frames.sum() * mel.shape[2])


def stop_loss(logits: Tensor, steps: Tensor, live: Tensor) -> Tensor:
    """Binary cross-entropy; the wanted answer is 1 from the last step on."""
    place = torch.arange(logits.shape[1], device=logits.device)
    ended = (place >= steps.unsqueeze(1) - 1).float()
    losses = F.binary_cross_entropy_with_logits(logits, ended, reduction="none")
    return (losses * live).sum() / live.sum()


def guided_loss(weights: Tensor, lengths: Tensor, steps: Tensor, live) -> Tensor:
    """Weight far from the diagonal, g = 0.2 (Tachibana et al. 2017)."""
    _, T, S = weights.shape
    time = torch.arange(T, device=weights.device) / steps.unsqueeze(1)
    place = torch.arange(S, device=weights.device) / lengths.unsqueeze(1)
    apart = time.unsqueeze(2) - place.unsqueeze(1)  # (B, T, S)
    far = 1 - torch.exp(-(apart**2) / (2 * 0.2**2))
    return (weights * far * live.unsqueeze(-1)).sum() / live.sum()


# %% tags=["train"]
STEPS = 100
BATCH = 16


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
    how = {"lr": 5e-3, "eps": 1e-6, "weight_decay": 1e-6, "fused": True}
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
def words_seen(weights: Tensor, said: str) -> list[int]:
    """The words, by number, in whose letters most weight lies, step by step (T, S).

    Spaces are skipped, and a word that stays is listed once.
    """
    word = 0
    words = []
    for character in said:
        word += character == " "
        words.append(-1 if character == " " else word)
    seen = []
    for place in weights.argmax(-1).tolist():
        if words[place] >= 0 and words[place] not in seen[-1:]:
            seen.append(words[place])
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
    """Whether the token fires before the last word is reached, behind, or never."""
    end = end_of(logits)
    if words_seen(weights[:end], said)[-1:] != [len(said.split()) - 1]:
        return "early"
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
    """Of the texts of a part: the share read completely, how each ends, the length."""

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
table(rows, ("weights", "a", "b", "second a", "second b"))

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
        "context": diagrams.Node(2.05, 2.4, "what is read"),
    }
    down = ("frame", "prenet", "first", "second", "frames", "postnet")
    arrows = [("text", "encoder"), ("encoder", "attention"), *zip(down, down[1:])]
    arrows += [((right - 0.75, 1.6), (left + 0.5, 1.6), (left + 0.5, 2.03))]
    arrows += [((left + 0.65, 2.2), (right - 0.4, 2.2), (right - 0.4, 2.63))]
    arrows += [((right - 0.4, 2.2), (right - 0.4, 1.77)), ("postnet", "mel")]
    back = ((right + 0.95, 3.45), (4.6, 3.45), (4.6, 0.3), (right + 0.6, 0.3))
    around = (
        ("attention", "past"),
        ((0.15, 2.95), (0.05, 2.95), (0.05, 2.2), (0.3, 2.2)),
    )
    diagrams.draw(axes, places, arrows, (back, *around))


ORANGE = plots.COLOURS[1]

# %% tags=["network-figure"] alt="Two columns of boxes. Left: characters, encoder, attention. Right: the frame before, pre-net, first LSTM, second LSTM, next frames and end, post-net. The first LSTM sends a query to the attention; what is read goes to both LSTMs. An orange arrow leads from the attention to its weights so far and back into it, another from the next frames up to the frame before. The post-net gives the spectrogram."
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

    It does not feed the first one, so that it may run behind the loop.
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
record("deviation", max(found.values()))
table([(k, f"{v:.0e}") for k, v in found.items()], ("compared", "largest difference"))

# %% [markdown]
# ## Training
#
# Texts of two to four digits, spoken by a synthesiser.

# %% tags=["data"]
wanted = {"train": digits(300, (2, 4), 0), "2 to 4": digits(30, (2, 4), 1)}
for n in LENGTHS:
    wanted[str(n)] = digits(20, (n, n), n)
wanted["one word, 3 times"] = [" ".join([word] * 3) for word in WORDS]
wanted["one word, 7 times"] = [" ".join([word] * 7) for word in WORDS]
utterances = iter(sound.spoken([said for texts in wanted.values() for said in texts]))

# %% tags=["parts"]
filters = mel_filters()
parts = {}
waves = {}
for name, texts in wanted.items():
    some = [next(utterances) for _ in texts]
    waves[name] = [trimmed(one.wave) for one in some]
    mels = [mel_of(wave, filters) for wave in waves[name]]
    parts[name] = [Said(one.text, mel) for one, mel in zip(some, mels)]

# %% tags=["data-result"]
everything = [said for part in parts.values() for said in part]
vocabulary = text.Vocabulary([said.text for said in everything])
SEEDS = (0, 1, 2)
KINDS = {"location": "location-sensitive", "content": "content alone"}
SMALL = {"r": 8, "d_encoder": 64, "d_prenet": 64, "d_rnn": 96, "d_attention": 32}
SMALL |= {"filters": 8, "kernel": 11, "c_post": 24, "n_post": 3, "dropout": 0.1}
small = Size(V=len(vocabulary), **SMALL)
record("texts", len(parts["train"]))
record("seconds", sum(len(wave) for wave in waves["train"]) / sound.RATE)

# %% tags=["headline"]
networks = {}
for number in SEEDS:
    seed(number)
    model = Tacotron2(small, LocationAttention, nn.LSTMCell).to(device)
    train(model, parts["train"], vocabulary)
    networks["location", number] = model

# %% tags=["headline-content"]
for number in SEEDS:
    seed(number)
    model = Tacotron2(small, ContentAttention, nn.LSTMCell).to(device)
    train(model, parts["train"], vocabulary)
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

# %% tags=["headline-result"]
rows = []
for name in NAMES:
    row = [name, len(parts[name])]
    for kind in KINDS:
        shares = [found[kind, name, number].read for number in SEEDS]
        record_spread(f"{kind}.{name.replace(', ', '.').replace(' ', '_')}", shares)
        row.append(spread(shares, ".2f"))
    rows.append(row)
record("small.parameters", counting.parameters(networks["location", 0]))
table(rows, ("words", "texts", "location-sensitive", "content alone"))

# %% tags=["headline-claims"]
reads = {key: answer.read for key, answer in found.items()}
least = {name: min(reads["location", name, n] for n in SEEDS) for name in NAMES}
most = {name: max(reads["content", name, n] for n in SEEDS) for name in NAMES}
for name in (*map(str, LENGTHS), "one word, 7 times"):
    words = f"location-sensitive attention reads more texts, seeds apart: {name}"
    claim(least[name] > most[name], words)
for name in NAMES:
    claim(least[name] > 0.7, f"location-sensitive attention reads most: {name}")
claim(most["10"] == 0, "no text of ten words is read by content alone")
claim(least["2 to 4"] <= most["2 to 4"], "at trained lengths the seeds touch")
claim(
    min(reads["content", "2 to 4", n] for n in SEEDS) > 0.5, "content reads short ones"
)
content_threes = min(reads["content", "one word, 3 times", n] for n in SEEDS)
claim(content_threes > 0.5, "and most of three times the same word")

# %% tags=["headline-figure"] alt="Share of texts read completely against the number of words, 2 to 4, 6, 8 and 10, three seeds. The line of location-sensitive attention stays near 1. That of content alone starts in a band just below it at 2 to 4 words and falls to 0 at eight and ten."
_, axes = plt.subplots()
drawn = {}
for place, kind in enumerate(KINDS):
    runs = [[reads[kind, name, number] for name in NAMES[:4]] for number in SEEDS]
    where = plots.COLOURS[place]
    drawn[kind] = plots.seed_band(axes, (3, 6, 8, 10), torch.tensor(runs), where)
axes.axvspan(2, 4, color=plots.GRID, alpha=0.5, linewidth=0)
axes.annotate("trained", (3, 0.04), ha="center", color=plots.QUIET)
axes.set(xlabel="words", ylabel="texts read", xlim=(1.8, 13.2), ylim=(0, 1.05))
axes.set_xticks((2, 4, 6, 8, 10))
plots.label_ends(axes, drawn)

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
record("seen.content", len(set(words_seen(looked["content"], said))))

# %% tags=["look-figure"] alt="Two grey pictures side by side, ten spoken words from top to bottom, the steps of the decoder from left to right; dark is a large weight. Left, location-sensitive: a dark staircase from the top left corner down to the last word. Right, content alone: dark in the first words, then a band in the last word, and faint stripes over those between."
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
table(rows, ("words", "early", "after the last word", "never", "length"))

# %% tags=["stop-claims"]
for name, some in answers.items():
    least_share = min(one.share("in time") for one in some)
    claim(least_share > 0.6, f"the token comes mostly behind the last word: {name}")
for name in NAMES[1:4]:
    for long, short in zip(answers[name], answers["2 to 4"]):
        claim(long.length > short.length, f"each network takes more time: {name}")

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
    rows.append((name, spread(blinded[name], ".2f")))
table(rows, ("taken away", "texts of ten words read"))

# %% tags=["blind-claims"]
claim(max(blinded["sum of all"]) == 0, "without the sum no text is read")
claim(min(blinded["last weights"]) > 0, "without the last weights some are")

# %% [markdown]
# ## A voice
#
# One of the networks is trained for longer, to be listened to.


# %% tags=["nearest"]
def nearest(mel: Tensor, part) -> int:
    """Which text of a part the frames (T, M) sound most like, by time warping."""
    costs = []
    for said in part:
        total, path = librosa.sequence.dtw(mel.cpu().mT.numpy(), said.mel.mT.numpy())
        costs.append(total[-1, -1] / len(path))
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
LONGER = 200
voice = copy.deepcopy(networks["location", 0])
seed(0)
history = train(voice, parts["train"], vocabulary, LONGER, guide=0.0)

# %% tags=["voice-error"]
errors = {}
batch = Batch.of(parts["2 to 4"], vocabulary, small.r)
live = live_steps(batch.steps, int(batch.steps.max()))
for name, model in (("100", networks["location", 0]), ("300", voice)):
    seed(0)
    with evaluating(model), torch.no_grad():
        speech = model(batch.numbers, batch.lengths, batch.mel)
    errors[name] = frame_loss(speech, batch.mel, live).item()
    record(f"error.{name}", errors[name])

# %% tags=["voice-result"]
fours = [said for said in parts["2 to 4"] if len(said.text.split()) == 4]
rows = []
shares = {}
for name, model in (("100", networks["location", 0]), ("300", voice)):
    seed(0)
    shares[name] = recognised(model, fours, vocabulary)
    read = judged(model, parts["10"], vocabulary).read
    row = (name, f"{errors[name]:.2f}", f"{read:.2f}", f"{shares[name]:.2f}")
    rows.append(row)
record("fours", len(fours))
table(rows, ("steps", "error of the frames", "ten words read", "recognised"))

# %% tags=["voice-claims"]
claim(errors["300"] < errors["100"], "the frames are nearer after 300 steps")
claim(shares["300"] > shares["100"] + 0.2, "more texts are recognised after 300 steps")
claim(read > 0.6, "most texts of ten words are still read")


# %% tags=["griffin-lim"]
def wave_of(mel: Tensor) -> Tensor:
    """Frames (T, M) to sound: pseudo-inverse, then phases by Griffin-Lim."""
    filters = mel_filters(mel.shape[1])
    bins = FLOOR * (mel.cpu().exp() - 1).clamp(min=0)  # silence is 0
    magnitudes = (torch.linalg.pinv(filters) @ bins.mT).clamp(min=0)  # (513, T)
    how = {"n_iter": 40, "hop_length": HOP, "random_state": 0}
    return torch.from_numpy(librosa.griffinlim(magnitudes.numpy(), **how))


# %% tags=["say-all"]
HEARD = 2  # one of the held-out texts of two to four words
seed(0)
one = Batch.of([parts["2 to 4"][HEARD]], vocabulary, small.r)
with evaluating(voice), torch.no_grad():
    taught = voice(one.numbers, one.lengths, one.mel)
free, _ = listen(voice, [parts["2 to 4"][HEARD]], vocabulary)
pictures = {
    "spoken": parts["2 to 4"][HEARD].mel,
    "teacher-forced": taught.mel[0],
    "free-running": free.mel[0, : end_of(free.stop[0]) * small.r],
}

# %% tags=["mel-figure"] alt="Three spectrograms one above the other, time from left to right, mel bins from low to high: spoken, teacher-forced, free-running. Dark patches stand for the sounds of the words, in the same order in all three; in the two of the network they are blurred."
_, axes = plt.subplots(3, 1, figsize=(5, 4.2), sharex=True)
axes[1].set(ylabel="mel bin")
axes[2].set(xlabel="frame")
for one, (name, mel) in zip(axes, pictures.items()):
    one.imshow(mel.cpu().mT, cmap="gray_r", vmin=0, origin="lower", aspect="auto")
    one.set_title(name, loc="left")
    one.set_yticks((0, 40, 80))

# %% tags=["sounds"]
words = parts["2 to 4"][HEARD].text
heard = {f"Synthesiser, {words}": waves["2 to 4"][HEARD]}
for name, mel in pictures.items():
    source = "Synthesiser, from its frames" if name == "spoken" else f"Network, {name}"
    heard[f"{source}, {words}"] = wave_of(mel)
for kind, model in (
    ("location-sensitive", voice),
    ("content alone", networks["content", 0]),
):
    seed(0)
    ten, _ = listen(model, [parts["10"][TEN]], vocabulary)
    until = end_of(ten.stop[0]) * small.r
    heard[f"Network, free-running, {kind}, {said}"] = wave_of(ten.mel[0, :until])
sound.play(heard)

# %% [markdown]
# ## What we saw
#
# - With weights of the past among its features the attention reads ten words in order
#   after training on two to four; by content alone no text of ten words is read.
# - Both need a loss that pulls the weights to the diagonal to learn it in 100 steps.
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

# %% tags=["solution-2-result"]
claim(abs(in_evaluation.item() - 2.8) < 1e-6, "evaluation: nine tenths new")
claim(
    bool(torch.isclose(in_training[:, None], torch.tensor([1.0, 3.0])).any(1).all()),
    "old or new",
)
claim(abs(in_training.mean().item() - 2.8) < 0.05, "and their mean")
rows = [(f"{in_evaluation.item():.2f}", f"{in_training.mean().item():.2f}")]
table(rows, ("evaluation", "training, mean of 10,000"))


# %% tags=["solution-4"]
class SurePrenet(Prenet):
    """Without dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))


def surely(model: Tacotron2) -> Tacotron2:
    """A copy that drops nothing in its pre-net."""
    changed = copy.deepcopy(model)
    changed.decoder.prenet.__class__ = SurePrenet
    return changed


# %% tags=["solution-4-result"]
shares = []
for number in SEEDS:
    seed(number)
    changed = surely(networks["location", number])
    shares.append(judged(changed, parts["10"], vocabulary).read)
claim(min(shares) >= 0.9, "nine of ten texts are read without dropout")
table([(spread(shares, ".2f"),)], ("texts of ten words read without dropout",))
