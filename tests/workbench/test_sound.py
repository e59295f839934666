"""Speech made on the spot, LJ Speech as it is published, and players that a page can show."""

import base64
import hashlib
import io
import sys
import tarfile

import pytest
import soundfile
import torch
from bs4 import BeautifulSoup

import workbench
from workbench import sound


@pytest.fixture(autouse=True)
def no_sources(monkeypatch):
    monkeypatch.setattr(workbench, "sources", [])


def test_the_same_texts_give_the_same_sounds():
    first, again = (sound.speak(["one two", "three"]) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.dtype == torch.float32 and 0.1 < a.abs().max() <= 1
    seconds = [len(wave) / sound.RATE for wave in first]
    assert 0.3 < seconds[1] < seconds[0] < 1.5


def test_another_voice_says_the_same_words_otherwise():
    (english,), (german,) = sound.speak(["six"]), sound.speak(["six"], voice="de")
    assert english.shape != german.shape or not torch.equal(english, german)


def test_what_espeak_cannot_say_is_said():
    with pytest.raises(ValueError, match="no voice 'nonsense'; English is 'en'"):
        sound.speak(["one"], voice="nonsense")
    with pytest.raises(ValueError, match="says nothing to the text ''"):
        sound.speak(["one", ""])


def test_without_the_synthesiser_the_message_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        sound.speak(["one"])


def test_the_sample_profile_speaks_the_texts(monkeypatch):
    monkeypatch.setattr(workbench, "PROFILE", "sample")
    (found,) = sound.spoken(["four"])
    assert found.text == "four" and len(found.wave) > 4000
    assert workbench.sources == ["speech of the synthesiser eSpeak NG, made in this run"]


# ---- LJ Speech -----------------------------------------------------------------------------------


def wav(samples: list[float]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sound.RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Two sentences in the form of LJSpeech-1.1.tar.bz2: as written, and with numbers in words."""
    files = {
        "LJSpeech-1.1/wavs/LJ001-0002.wav": wav([0.25, 0.5]),
        "LJSpeech-1.1/wavs/LJ001-0001.wav": wav([0, 0.5, -0.5]),
        "LJSpeech-1.1/metadata.csv": "LJ001-0002|In 2 words|In two words\n"
        "LJ001-0001|Printing|Printing, in “quotes”\n".encode().decode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:bz2") as members:
        for name, data in files.items():
            data = data if isinstance(data, bytes) else data.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
    file = tmp_path / "speech.tar.bz2"
    file.write_bytes(packed.getvalue())
    return file


def test_sentences_come_in_the_order_of_their_names(archive):
    first, second = sound.read_ljspeech(archive, 2)
    assert (first.text, second.text) == ("Printing, in “quotes”", "In two words")
    torch.testing.assert_close(first.wave, torch.tensor([0, 0.5, -0.5]), rtol=0, atol=1e-4)
    assert sound.read_ljspeech(archive, 1)[0].text == first.text
    with pytest.raises(ValueError, match="has 2 sentences, not 3"):
        sound.read_ljspeech(archive, 3)


def test_the_full_profile_reads_the_archive_in_data_root(archive, monkeypatch, tmp_path):
    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setattr(sound, "LJSPEECH_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    archive.rename(tmp_path / sound.LJSPEECH)
    assert [found.text for found in sound.spoken(["a", "b"])][1] == "In two words"
    assert workbench.sources == ["LJ Speech, read by Linda Johnson"]


def test_without_the_archive_the_message_says_what_to_place_where(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    (tmp_path / sound.LJSPEECH).write_bytes(b"damaged")
    with pytest.raises(
        RuntimeError, match="LJSpeech-1.1.tar.bz2 is damaged .* delete it.* PROFILE=sample"
    ):
        sound.ljspeech(1)


# ---- players -------------------------------------------------------------------------------------


def test_a_player_has_a_name_and_plays_what_was_given(monkeypatch):
    shown = []
    monkeypatch.setattr(sound, "display", lambda bundle, raw: shown.append(bundle))
    wave = torch.sin(torch.arange(22_050) * 0.1)
    sound.play({"a tone & more": 2 * wave, "the half of it": wave})
    (bundle,) = shown
    assert bundle["text/plain"] == "(sound) a tone & more, 1.0 s\n(sound) the half of it, 1.0 s"
    loud, quiet = BeautifulSoup(bundle["text/html"], "html.parser").select("audio")
    assert loud["aria-label"] == "a tone & more, 1.0 s" and loud["preload"] == "none"
    peaks = []
    for player in (loud, quiet):
        data = base64.b64decode(player["src"].partition("base64,")[2])
        samples, rate = soundfile.read(io.BytesIO(data))
        assert rate == 22_050 and abs(len(samples) - 22_050) < 2500
        peaks.append(abs(samples[5000:15000]).max())
    assert peaks[0] == pytest.approx(1, abs=0.05) and peaks[1] == pytest.approx(0.5, abs=0.05)
