"""Copied weights and compared outputs."""

import ast
import math

import pytest
import torch
from small import small
from torch import nn

import workbench
from loader import NOTEBOOKS, STEMS
from workbench import checks


def test_a_transplanted_model_gives_the_same_outputs_and_a_wrong_one_is_refused():
    workbench.seed(0)
    a, b, x = small(), small(), torch.rand(3, 1, 28, 28)
    nn.init.uniform_(a[1].running_mean)
    with pytest.raises(AssertionError, match="outputs differ by"):
        checks.same_outputs(a, b, x)
    checks.transplant(a, b)
    assert checks.same_outputs(a, b, x) == 0.0
    assert a.training and b.training


def test_a_transplant_that_does_not_fit_copies_nothing():
    target = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = target[0].weight.clone()
    with pytest.raises(ValueError, match=r"1.weight \(5, 4\) does not fit 1.weight \(2, 4\)"):
        checks.transplant(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), target)
    with pytest.raises(ValueError, match="the source has 2 tensors, the target 4"):
        checks.transplant(nn.Sequential(nn.Linear(3, 4)), target)
    torch.testing.assert_close(target[0].weight, before)


def test_random_norms_leave_no_value_of_a_fresh_one():
    norm = checks.randomise_norms(nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)))[1]
    fresh = nn.BatchNorm2d(8).state_dict()
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert (norm.state_dict()[name] != fresh[name]).all(), name
    assert norm.running_var.min() > 0


def test_a_deviation_is_relative_to_the_largest_expected_value():
    assert checks.deviation(torch.tensor([1.0, 5.0]), torch.tensor([2.0, -4.0])) == 2.25
    assert checks.deviation(torch.zeros(3), torch.zeros(3)) == 0.0


def test_a_deviation_that_is_no_number_is_refused():
    good = torch.tensor([1.0, 2.0])
    for bad in (torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 2.0])):
        for pair in ((bad, good), (good, bad), (bad, bad)):
            with pytest.raises(ValueError, match="deviation: a finite number is needed"):
                checks.deviation(*pair)
    with pytest.raises(ValueError, match="deviation: a finite number is needed, not inf"):
        checks.deviation(good, torch.zeros(2))
    with pytest.raises(AssertionError, match=r"\(2,\) against \(1,\)"):
        checks.deviation(good, good[:1])  # would broadcast


@pytest.mark.parametrize("stem", STEMS)
def test_no_notebook_takes_the_largest_difference_past_the_helper(stem):
    """max(a.abs().max(), b.abs().max()) passes over a NaN in b."""
    tree = ast.parse((NOTEBOOKS / f"{stem}.py").read_text(encoding="utf-8"))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("max", "min", "sorted"):
            assert ".abs()" not in ast.unparse(call), f"line {call.lineno}"


def test_outputs_that_are_no_numbers_are_not_the_same():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.bias, math.nan)
    with pytest.raises(ValueError, match="a finite number is needed, not nan"):
        checks.same_outputs(layer, layer, torch.rand(4, 3))
