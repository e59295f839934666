"""Speech to learn from, made on the spot or recorded, and players for what one can hear.

A sound is a tensor (N,) of numbers between -1 and 1, RATE of them a second.
"""

import base64
import ctypes
import html
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from IPython.display import display
from torch import Tensor

import workbench
from workbench import downloads

RATE = 22_050  # samples a second, of eSpeak NG and of LJ Speech
SYNCHRONOUS, PLAIN_UTF8 = 2, 1  # the numbers of eSpeak's header, speak_lib.h
LJSPEECH = "LJSpeech-1.1.tar.bz2"
LJSPEECH_HOST = "https://data.keithito.com/data/speech/"
LJSPEECH_SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"


class Utterance(NamedTuple):
    """What was said, and its sound."""

    text: str
    wave: Tensor


def spoken(texts: Iterable[str]) -> list[Utterance]:
    """Each text, read by a synthesiser; in the full profile as many sentences of LJ Speech."""
    texts = list(texts)
    if workbench.PROFILE == "full":
        return ljspeech(len(texts))
    workbench.sources.append("speech of the synthesiser eSpeak NG, made in this run")
    return [Utterance(text, wave) for text, wave in zip(texts, speak(texts))]


def speak(texts: Iterable[str], voice: str = "en") -> list[Tensor]:
    """What eSpeak NG says to each text, a formant synthesiser, no recorded voice.

    Its pitch flutters by a state that it keeps between texts. It is loaded anew for each call, so
    that the same list always gives the same sounds. Raises ModuleNotFoundError when the package
    with its library is not installed, and ValueError for a voice that it does not have or a text
    to which it says nothing.
    """
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        words = "the speech of this notebook is made by eSpeak NG: pip install espeakng-loader"
        raise ModuleNotFoundError(words) from error

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    heard: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    def keep(samples, count, events):
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    data = espeakng_loader.get_data_path().encode()
    try:
        library.espeak_Initialize(SYNCHRONOUS, 0, data, 0)
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}; English is 'en'")
        waves = []
        for text in texts:
            heard.clear()
            line = text.encode()
            library.espeak_Synth(line, len(line) + 1, 0, 1, 0, PLAIN_UTF8, None, None)
            if not any(part.any() for part in heard):
                raise ValueError(f"eSpeak NG says nothing to the text {text!r}")
            waves.append(torch.from_numpy(np.concatenate(heard)).float() / 2**15)
        return waves
    finally:
        library.espeak_Terminate()
        unload(library)


def unload(library: ctypes.CDLL) -> None:
    """Let go of a library, so that the next CDLL of it starts from its first state."""
    import _ctypes

    close = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # on Windows
    close(library._handle)


def ljspeech(count: int) -> list[Utterance]:
    """The first sentences of LJ Speech (K. Ito and L. Johnson, public domain), one reader.

    The archive of 2.7 GB is looked for in DATA_ROOT and fetched there. Raises RuntimeError, saying
    what to place where, when it cannot be had, and ValueError for more sentences than it has.
    """
    try:
        archive = downloads.place(LJSPEECH, [LJSPEECH_HOST + LJSPEECH], LJSPEECH_SHA256)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"LJ Speech could not be read or fetched: {error} Or run with PROFILE=sample."
        ) from error
    workbench.sources.append("LJ Speech, read by Linda Johnson")
    return read_ljspeech(archive, count)


def read_ljspeech(archive: Path, count: int) -> list[Utterance]:
    """The first sentences of the archive, in the order of their names, numbers written out."""
    import soundfile

    texts, waves = {}, {}
    with tarfile.open(archive) as members:
        for member in members:
            name = Path(member.name)
            if name.name == "metadata.csv":
                lines = members.extractfile(member).read().decode("utf-8").splitlines()
                texts = {line.split("|")[0]: line.split("|")[2] for line in lines}
            elif name.suffix == ".wav":
                waves[name.stem] = members.extractfile(member).read()
                if len(waves) > count:  # all of them together are 3.8 GB
                    del waves[max(waves)]
    if len(texts) < count:
        raise ValueError(f"LJ Speech has {len(texts)} sentences, not {count}")
    found = []
    for name in sorted(waves):
        samples, _ = soundfile.read(io.BytesIO(waves[name]), dtype="float32")
        found.append(Utterance(texts[name], torch.from_numpy(samples)))
    return found


def play(sounds: dict[str, Tensor], rate: int = RATE) -> None:
    """Show a player for each sound, with its name, which says what is heard.

    Louder than 1 is scaled down, all by the same factor, so that loudness can be compared.
    """
    waves = {name: wave.detach().cpu().float() for name, wave in sounds.items()}
    loudest = max(1.0, *(wave.abs().max().item() for wave in waves.values()))
    players, lines = [], []
    for name, wave in waves.items():
        words = f"{name}, {len(wave) / rate:.1f} s"
        data = base64.b64encode(mp3(wave / loudest, rate)).decode()
        shown = html.escape(words)
        player = f'<audio controls preload="none" aria-label="{shown}"'
        player += f' src="data:audio/mpeg;base64,{data}"></audio>'
        players.append(f'<p class="sound"><span>{shown}</span> {player}</p>')
        lines.append(f"(sound) {words}")
    display({"text/html": "\n".join(players), "text/plain": "\n".join(lines)}, raw=True)


def mp3(wave: Tensor, rate: int) -> bytes:
    """A sound (N,) as the bytes of an MP3 file, which every browser plays."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), rate, format="MP3")
    return file.getvalue()
