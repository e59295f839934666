"""Sounds of a notebook are files beside its pages, shared, with names where nothing can be played."""

import base64

from sites import CONF, build, page, write_site

NOTEBOOK = """# %% [markdown]
# # Sounds

# %% tags=["sounds"]
import base64
from IPython.display import display

data = base64.b64encode({first!r}).decode()
one = f'<p class="sound"><span>a bell</span> <audio controls aria-label="a bell &amp; more" src="data:audio/mpeg;base64,{{data}}"></audio></p>'
display({{"text/html": one, "text/plain": "(sound) a bell"}}, raw=True)
"""
CHAPTER = "Chapter\n=======\n\n.. cells:: sounds\n   :part: output\n"
INDEX = "Book\n====\n\n.. toctree::\n\n   chapters/sounds\n   notebooks/sounds\n"
SETTINGS = CONF + 'extensions += ["sounds"]\n'


def site(tmp_path, notebook: str):
    files = {"index.rst": INDEX, "chapters/sounds.rst": CHAPTER, "notebooks/sounds.py": notebook}
    return write_site(tmp_path, files, SETTINGS)


def sounds_of(folder) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "_build/html/_sounds").iterdir()]


def test_chapter_and_notebook_play_the_same_file_which_goes_with_its_cell(tmp_path):
    folder = site(tmp_path, NOTEBOOK.format(first=b"a sound"))
    assert build(folder).returncode == 0
    for name in ("chapters/sounds", "notebooks/sounds"):
        player = page(folder, name).select_one("audio")
        file = folder / "_build/html" / name / ".." / player["src"]
        assert player["src"].startswith("../_sounds/")
        assert file.resolve().read_bytes() == b"a sound"
        assert player["aria-label"] == "a bell & more"
    (folder / "notebooks/sounds.py").write_text(NOTEBOOK.format(first=b"another"))
    assert build(folder).returncode == 0
    assert sounds_of(folder) == [b"another"]


def test_a_page_that_is_not_written_again_keeps_its_sounds(tmp_path):
    folder = site(tmp_path, NOTEBOOK.format(first=b"a sound"))
    assert build(folder).returncode == 0
    (folder / "index.rst").write_text(INDEX + "\nA word.\n")
    assert build(folder).returncode == 0
    assert sounds_of(folder) == [b"a sound"]


def test_a_format_that_plays_nothing_shows_the_name(tmp_path):
    folder = site(tmp_path, NOTEBOOK.format(first=b"a sound"))
    apart = ("-d", str(folder / "doctrees"))
    result = build(
        folder, "-b", "epub", *apart, "-D", "version=1", "-D", "copyright=us", out="epub"
    )
    assert result.returncode == 0, result.stderr
    written = (folder / "_build/epub/chapters/sounds.xhtml").read_text()
    assert "a bell &amp; more" in written
    assert "<audio" not in written and base64.b64encode(b"a sound").decode() not in written


def test_a_player_without_a_name_is_a_fault(tmp_path):
    folder = site(tmp_path, NOTEBOOK.format(first=b"a").replace(" aria-label=", " title="))
    result = build(folder)
    assert result.returncode != 0
    assert "a player without a name" in result.stderr
