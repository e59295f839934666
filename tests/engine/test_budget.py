"""What the notebooks cost, from the entries of their last runs."""

import nbformat
import pytest

from engine.budget import far, main, pace, report
from engine.store import Store


def ran(store: Store, stem: str, *cells: tuple[str, float]) -> None:
    """Keep a run of cells with these tags and CPU seconds."""
    nb = nbformat.v4.new_notebook()
    for i, (tag, seconds) in enumerate(cells):
        metadata = {"cpu": seconds, "tags": [tag] if tag else []}
        cell = nbformat.v4.new_code_cell(f"x = {i}", metadata=metadata, execution_count=1)
        nb.cells.append(cell)
    nb.metadata["book"] = {
        "results": {},
        "versions": {},
        "seconds": 1.0,
        "cpu": sum(seconds for _, seconds in cells),
        "profile": "sample",
        "finished": 1.5,
    }
    assert store.save(f"key-{stem}", stem, nb)


def test_the_dearest_come_first_with_their_dearest_cells(tmp_path):
    store = Store(tmp_path)
    ran(store, "cheap", ("a", 2.0))
    ran(store, "dear", ("data", 1.0), ("train", 40.0), ("", 9.0), ("curve", 2.0))
    lines = report(["cheap", "dear", "fresh"], store).splitlines()
    assert lines == [
        "dear    52.0  train 40.0, code cell 3 9.0, curve 2.0",
        "cheap    2.0  a 2.0",
        "mean 27.0 CPU s of 2 notebooks, the aim is 25",
        "above its limit: dear",
        "not run yet (make html): fresh",
    ]


def test_what_may_cost_more_has_its_own_limit_and_no_part_in_the_mean(tmp_path):
    store = Store(tmp_path)
    ran(store, "squad", ("train", 80.0))
    assert report(["squad"], store).splitlines()[1:] == ["above its limit: none"]
    ran(store, "cheap", ("a", 2.0))
    assert "mean 2.0 CPU s of 1 notebooks, the aim is 25" in report(["squad", "cheap"], store)


def test_on_a_slow_machine_all_notebooks_may_take_longer():
    assert pace({}) == pace({"a": 20.0, "b": 10.0, "squad": 900.0}) == 1
    assert pace({"a": 60.0, "b": 40.0}) == 2
    assert far("a") == 70 and far("a", 2) == 140 and far("squad", 2) == 280


def test_a_book_that_never_ran_is_named_and_no_mean_is_made_up(tmp_path):
    assert report(["a"], Store(tmp_path)) == "not run yet (make html): a"


def test_the_command_wants_two_folders(capsys, tmp_path):
    with pytest.raises(SystemExit, match="usage"):
        main([])
    (tmp_path / "a.py").touch()
    main([str(tmp_path), str(tmp_path / "store")])
    assert capsys.readouterr().out == "not run yet (make html): a\n"
