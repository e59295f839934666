"""One epoch of training, and a measure of a network."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DistributedSampler

from reproduction import recipe
from reproduction.data import Data, augment, changes, generator
from reproduction.processes import Processes

CHECKED = 25  # steps after which the losses are looked at
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NotFinite(Exception):
    """A loss that is NaN or infinite, and where."""


@dataclass
class Run:
    """All that a step of training needs."""

    settings: recipe.Settings
    seed: int
    processes: Processes
    network: nn.Module  # what is measured and kept
    model: nn.Module  # the same, as it is trained: wrapped, compiled
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    data: Data  # training and validation part on the device of this process
    accumulate: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    def sampler(self) -> DistributedSampler:
        how = {"num_replicas": self.processes.world, "rank": self.processes.rank}
        images = range(len(self.data.train[1]))
        return DistributedSampler(images, seed=100_000 * self.seed, **how)

    def images(self, x: Tensor) -> Tensor:
        """Images 0..1, scaled by mean and deviation of the training part."""
        x = (x - self.data.mean.to(x.device)) / self.data.deviation.to(x.device)
        return x.contiguous(memory_format=self.memory_format)

    def batches(self, epoch: int) -> BatchSampler:
        """Which images this process takes, step by step: its share of each batch."""
        sampler = self.sampler()
        sampler.set_epoch(epoch)
        return BatchSampler(sampler, self.settings.batch // self.processes.world, drop_last=False)


def train_epoch(run: Run, epoch: int, tick=lambda: None) -> float:
    """Train for one epoch, counted from 0; the mean loss. All random numbers come from seed and epoch.

    tick: called after each step. NotFinite, on every process at once, when a loss is not finite.
    """
    x, y = run.data.train
    device, world = run.processes.device, run.processes.world
    how = changes(len(y), run.seed, epoch, device)
    batches = run.batches(epoch)
    losses = torch.zeros(len(batches), device=device)
    sizes = torch.zeros(len(batches), device=device)
    dropout = generator(run.seed, epoch, 2, run.processes.rank).initial_seed()
    torch.manual_seed(dropout)
    run.model.train()
    checked = 0
    for step, places in enumerate(batches):
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(run.settings, epoch * len(batches) + step, len(batches))
        chosen = torch.tensor(places, device=device)
        losses[step] = train_step(run, x, y, how, chosen)
        sizes[step] = len(places)
        if (step + 1) % CHECKED == 0 or step + 1 == len(batches):
            losses[checked : step + 1] = run.processes.total(losses[checked : step + 1] / world)
            refuse_not_finite(losses[checked : step + 1], epoch, checked)
            checked = step + 1
        tick()
    found, due = run.optimizer.param_groups[0]["lr"], recipe.rate_at_end(run.settings, epoch)
    if abs(found - due) > 1e-9 * due:
        raise RuntimeError(f"epoch {epoch + 1} ends with the rate {found:g}, not {due:g}")
    losses, sizes = losses.cpu().double(), sizes.cpu().double()
    return ((losses * sizes).sum() / sizes.sum()).item()


def train_step(run: Run, x: Tensor, y: Tensor, how, chosen: Tensor) -> Tensor:
    """One step on the images at the places `chosen`, in `accumulate` parts; the mean loss."""
    loss = torch.zeros((), device=x.device)
    parts = list(chosen.split(-(-len(chosen) // run.accumulate)))
    for part in parts:
        with unless_last(run, part is parts[-1]), autocast(run):
            images = run.images(augment(x[part].float().div(255), how, part))
            value = F.cross_entropy(run.model(images), y[part], reduction="sum") / len(chosen)
            run.scaler.scale(value).backward()
        loss += value.detach()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss


def unless_last(run: Run, last: bool):
    """Processes exchange gradients once for a batch, with the last of its parts."""
    no_sync = getattr(run.model, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def autocast(run: Run):
    kind = AUTOCAST.get(run.settings.precision)
    device = run.processes.device.type
    return torch.autocast(device, dtype=kind) if kind else nullcontext()


def refuse_not_finite(losses: Tensor, epoch: int, before: int) -> None:
    wrong = (~losses.isfinite()).nonzero()
    if len(wrong):
        raise NotFinite(
            f"the loss is not finite in epoch {epoch + 1}, step {before + wrong[0].item() + 1}"
        )


@torch.no_grad()
def evaluate(run: Run, part: tuple[Tensor, Tensor], *, batch: int = 500) -> dict[str, float]:
    """Loss and top-1 and top-5 error in per cent, each process on its share, in float32."""
    rank, world, device = run.processes.rank, run.processes.world, run.processes.device
    run.processes.share_buffers(run.network)
    run.network.eval()
    sums = torch.zeros(
        3, dtype=torch.double if device.type == "cpu" else torch.float, device=device
    )
    for x, y in shares(part, rank, world, batch):
        scores = run.network(run.images(x.to(device).float().div(255)))
        y = y.to(device)
        best = scores.topk(min(5, scores.shape[1])).indices == y[:, None]
        loss = F.cross_entropy(scores, y, reduction="sum")
        sums += torch.stack((loss, (~best[:, 0]).sum(), (~best.any(1)).sum()))
    loss, top1, top5 = (run.processes.total(sums) / len(part[1])).tolist()
    return {"loss": loss, "top1_error": 100 * top1, "top5_error": 100 * top5}


def shares(part: tuple[Tensor, Tensor], rank: int, world: int, batch: int) -> Iterator:
    x, y = (t[rank::world] for t in part)
    return zip(x.split(batch), y.split(batch))
