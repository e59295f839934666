"""Train a network, and ask a trained one."""

import torch
from torch import Tensor
from torch.nn import functional as F

import workbench
from workbench import evaluating


def progress(steps, title: str):
    """Show a bar over `steps` while someone watches; nothing when the site is built."""
    if workbench.BUILDING:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=title, leave=False)


def fit(
    model,
    train,
    epochs,
    optimizer,
    loss=F.cross_entropy,
    batch=50,
    validation=None,
    schedule=None,
):
    """Train on (images, labels) and return the history, one number per epoch.

    model: already on its device. optimizer: over its parameters. schedule: stepped once per batch.
    Returns {"loss": mean training loss, "validation": accuracy if a validation part is given}.
    """
    where = next(model.parameters()).device
    x, y = (t.to(where) for t in train)
    history = {"loss": []} | ({"validation": []} if validation else {})
    model.train()
    for _ in progress(range(epochs), "epochs"):
        total = 0.0
        for chosen in torch.randperm(len(y)).to(where).split(batch):
            value = loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += value.detach() * len(chosen)
        history["loss"].append(float(total) / len(y))
        if validation:
            history["validation"].append(evaluate(model, validation))
    return history


def one_cycle(
    optimizer, steps: int, *, rising: float = 0.2
) -> torch.optim.lr_scheduler.OneCycleLR:
    """A schedule: up from a twenty-fifth of the optimiser's rate for a share `rising` of the steps.

    Then the rate falls along a cosine to about nothing. Step it once per batch.
    """
    rate = optimizer.param_groups[0]["lr"]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=rising, cycle_momentum=False
    )


@torch.no_grad()
def predict(model, x: Tensor, batch: int = 250) -> Tensor:
    """Outputs of the model in evaluation mode for images (N, C, H, W), on the CPU."""
    where = next(model.parameters()).device
    with evaluating(model):
        return torch.cat([model(part.to(where)).cpu() for part in x.split(batch)])


def evaluate(model, part: tuple[Tensor, Tensor]) -> float:
    """Fraction of images whose largest output is that of their label."""
    x, y = part
    return (predict(model, x).argmax(1) == y).double().mean().item()
