"""Which notebooks are looked at closely: those that changed."""

import subprocess
from pathlib import Path

import pytest

from loader import changed_stems


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, **notebooks: str) -> None:
    for stem, text in notebooks.items():
        (folder / "notebooks" / f"{stem}.py").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "--message", "next")


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with the notebooks a, b and c, committed at once."""
    (tmp_path / "notebooks" / "workbench").mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, a="1", b="1", c="1")
    return tmp_path


def test_on_a_branch_the_notebooks_that_it_has_changed_since_it_left_main(repository):
    git(repository, "checkout", "--quiet", "-b", "other")
    commit(repository, c="of main")
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(repository, "checkout", "--quiet", "main")
    commit(repository, a="2")
    commit(repository, b="2")
    assert changed_stems(repository) == {"a", "b"}


def test_on_main_the_notebooks_of_the_last_commit(repository):
    commit(repository, a="2")
    commit(repository, b="2")
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert changed_stems(repository) == {"b"}
    git(repository, "update-ref", "-d", "refs/remotes/origin/main")
    assert changed_stems(repository) == {"b"}


def test_what_is_not_committed_counts_and_only_notebooks_do(repository):
    assert changed_stems(repository) == set()  # there is one commit
    (repository / "notebooks" / "a.py").write_text("2")
    (repository / "notebooks" / "d.py").write_text("new")
    (repository / "notebooks" / "workbench" / "b.py").write_text("a part")
    (repository / "notebooks" / "c.ipynb").write_text("no source")
    assert changed_stems(repository) == {"a", "d"}


def test_without_git_nothing_has_changed(tmp_path, monkeypatch):
    assert changed_stems(tmp_path) == set()  # no repository, unless the folder lies in one
    monkeypatch.setenv("PATH", str(tmp_path))
    assert changed_stems(tmp_path) == set()
