"""A training loop, and what a trained network is asked."""

import pytest
import torch
from small import small
from torch import nn

import workbench
from workbench import images, training


def test_fit_is_repeatable_and_learns():
    x, y = images.digits().train
    histories = []
    for _ in range(2):
        workbench.seed(0)
        model = small().to(workbench.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        part = (x[:200], y[:200])
        histories.append(training.fit(model, part, 5, optimizer, validation=part))
    torch.testing.assert_close(histories[0]["loss"], histories[1]["loss"])
    assert histories[0]["loss"][-1] < histories[0]["loss"][0] / 2
    assert histories[0]["validation"][-1] == training.evaluate(model, part)


def test_the_rate_of_one_cycle_rises_for_a_fifth_of_the_steps_and_falls_to_about_nothing():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    schedule, rates = training.one_cycle(optimizer, 20), []
    for step in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if step < 19 else None
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == rates[3] == pytest.approx(0.1)
    assert rates[-1] < 1e-5
    assert optimizer.param_groups[0]["momentum"] == 0.9
    half = training.one_cycle(torch.optim.SGD([torch.zeros(1)], lr=0.1), 20, rising=0.5)
    assert half._schedule_phases[0]["end_step"] == 9


def test_evaluate_counts_right_answers():
    class Echo(nn.Module):
        """Says the class that is written into the first pixel."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return nn.functional.one_hot(x[:, 0, 0, 0].long(), 4) * self.scale

    x = torch.tensor([0.0, 1, 2, 3]).view(4, 1, 1, 1)
    assert training.evaluate(Echo().to(workbench.device), (x, torch.tensor([0, 1, 2, 0]))) == 0.75
