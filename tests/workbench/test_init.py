"""What a run records, shows and keeps as it was."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from IPython.utils.capture import capture_output
from small import MODES, frozen

import workbench
from loader import NOTEBOOKS
from workbench import checks, counting, tracing, training


def test_an_unknown_profile_is_refused():
    command = [sys.executable, "-c", "import workbench"]
    result = subprocess.run(
        command, cwd=NOTEBOOKS, env={"PROFILE": "fast"}, capture_output=True, text=True
    )
    assert "PROFILE must be 'sample' or 'full', not 'fast'" in result.stderr


SWITCHES = {  # functions that need evaluation mode for a while
    "count_macs": counting.macs,
    "same_outputs": lambda model, x: checks.same_outputs(model, frozen(), x, math.inf),
    "same_outputs, second": lambda model, x: checks.same_outputs(frozen(), model, x, math.inf),
    "predict": training.predict,
    "evaluate": lambda model, x: training.evaluate(model, (x, torch.zeros(len(x)))),
    "trace": tracing.trace,
    "stages": tracing.stages,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_module_gets_its_own_mode_back_even_after_an_error(name):
    model, seen = frozen(), []
    model[4].register_forward_pre_hook(
        lambda *_: seen.append([m.training for m in model.modules()])
    )
    SWITCHES[name](model, torch.rand(2, 1, 28, 28))
    assert seen and not any(map(any, seen))
    assert [m.training for m in model.modules()] == MODES
    with pytest.raises(RuntimeError):
        SWITCHES[name](model, torch.rand(2, 5, 28, 28))
    assert [m.training for m in model.modules()] == MODES


def test_record_leaves_one_value_of_its_own_type_and_refuses_others():
    with capture_output() as captured:
        workbench.record("accuracy", torch.tensor(0.5))
    assert captured.outputs[0].data == {workbench.RESULT: {"name": "accuracy", "value": 0.5}}
    with pytest.raises(TypeError, match="a number or string is needed"):
        workbench.record("all", [1, 2])


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(-math.inf)])
def test_record_refuses_what_is_not_finite_and_names_it(value):
    with pytest.raises(
        ValueError, match=r"record\('loss'\): a finite number is needed, not -?(nan|inf)"
    ):
        workbench.record("loss", value)


def test_a_second_value_under_one_name_is_an_error_while_the_site_is_built(monkeypatch):
    monkeypatch.setattr(workbench, "recorded", set())
    with capture_output():
        workbench.record("a", 1)
        workbench.record("a", 2)  # by hand a cell may run again
        monkeypatch.setattr(workbench, "BUILDING", True)
        workbench.record("b", 1)
        with pytest.raises(ValueError, match=r"record\('b'\): this name has a value already"):
            workbench.record("b", 1)
        workbench.record("c.least", 1)
        with pytest.raises(ValueError, match=r"record\('c.least'\)"):
            workbench.record_spread("c", [1, 2])


TRUE = [True, np.bool_(True), torch.tensor(True), torch.tensor([[True]]), np.array([True])]


@pytest.mark.parametrize("condition", TRUE)
def test_a_true_claim_leaves_no_output_and_a_false_one_fails_a_build(monkeypatch, condition):
    monkeypatch.setattr(workbench, "BUILDING", True)
    with capture_output() as captured:
        workbench.claim(condition, "all is well")
    assert (captured.stdout, captured.outputs) == ("", [])
    wrong = not condition if isinstance(condition, bool) else ~condition
    with pytest.raises(AssertionError, match="^all is well$"):
        workbench.claim(wrong, "all is well")


@pytest.mark.parametrize(
    ("building", "profile", "device"),
    [(True, "full", "cpu"), (True, "sample", "cuda:0"), (False, "sample", "cpu")],
)
def test_elsewhere_a_false_claim_is_told_in_a_line(monkeypatch, building, profile, device):
    monkeypatch.setattr(workbench, "BUILDING", building)
    monkeypatch.setattr(workbench, "PROFILE", profile)
    monkeypatch.setattr(workbench, "device", torch.device(device))
    with capture_output() as captured:
        workbench.claim(True, "all is well")
        workbench.claim(False, "the deeper network loses")
    where = f"in this run (profile {profile}, {device})"
    assert captured.stdout == f"not shown {where}: the deeper network loses\n"


@pytest.mark.parametrize(
    "condition",
    [
        1,
        math.nan,
        "yes",
        None,
        [True],
        torch.tensor(1.0),
        torch.tensor(math.nan),
        torch.tensor([True, True]),
        np.zeros(0, dtype=bool),
    ],
    ids=repr,
)
def test_a_claim_of_anything_but_one_bool_is_refused_everywhere(monkeypatch, condition):
    for profile in ("sample", "full"):
        monkeypatch.setattr(workbench, "PROFILE", profile)
        with pytest.raises(TypeError, match=r"claim\('a is b'\): one bool is needed, not "):
            workbench.claim(condition, "a is b")


@pytest.mark.parametrize("words", ["", "  ", None, 3])
def test_a_claim_without_words_is_refused(words):
    with pytest.raises(ValueError, match="say in words what was shown"):
        workbench.claim(True, words)


def shown(rows, columns) -> dict[str, str]:
    with capture_output() as captured:
        workbench.table(rows, columns)
    return captured.outputs[0].data


def test_a_table_is_html_and_text():
    data = shown([("C1", 156), ("F6", 10164)], ("layer", "parameters"))
    assert "10,164" in data["text/html"] and "10,164" in data["text/plain"]
    assert data["text/html"].count("<tr>") == 3


def test_what_a_table_is_given_is_text_and_never_markup():
    data = shown([("a<b", "R&D"), ('"q"', "<script>")], ("<i>x</i>", "y"))
    cells = [cell.text for cell in BeautifulSoup(data["text/html"], "html.parser")(["th", "td"])]
    assert cells == ["<i>x</i>", "y", "a<b", "R&D", '"q"', "<script>"]
    assert "<script>" in data["text/plain"] and "a<b" in data["text/plain"]


def test_a_table_says_yes_and_no_and_writes_numbers_of_arrays_as_numbers():
    rows = [(True, torch.tensor(12345), np.int64(2000)), (np.bool_(False), 1, 0.5)]
    text = shown(rows, ("equal", "n", "m"))["text/plain"].split()
    assert text == ["equal", "n", "m", "yes", "12,345", "2,000", "no", "1", "0.5"]


def test_the_values_of_seeds_are_kept_and_written_with_their_ends(monkeypatch):
    kept = {}
    monkeypatch.setattr(workbench, "record", kept.__setitem__)
    workbench.record_spread("a", [0.5, 0.25, 0.75])
    assert kept == {"a": 0.5, "a.least": 0.25, "a.most": 0.75}
    assert workbench.spread([0.5, 0.25, 0.75], ".0%") == "50% (25% to 75%)"


@pytest.mark.parametrize("values", [[0.0, math.nan], [math.nan, 0.0], [math.inf]])
def test_values_of_seeds_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"record_spread\('a'\): a finite number is needed"):
        workbench.record_spread("a", values)
    with pytest.raises(ValueError, match="spread: a finite number is needed"):
        workbench.spread(values, ".0%")
    with pytest.raises(ValueError, match="finite: a finite number is needed"):
        max(workbench.finite(values))
