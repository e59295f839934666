"""One process, or several that torchrun has started, each with its device and its share of a batch."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


class NoDevice(Exception):
    """The device that was asked for is not there."""


@dataclass(frozen=True)
class Processes:
    """Which of how many this is, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """It alone writes files and lines."""
        return self.rank == 0

    def say(self, *words, **how) -> None:
        if self.first:
            print(*words, flush=True, **how)

    def total(self, t: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world > 1:
            dist.all_reduce(t)
        return t

    def same(self, value: int) -> bool:
        """Whether all processes have this whole number."""
        t = torch.tensor([value, -value], device=self.device)
        if self.world > 1:
            dist.all_reduce(t, op=dist.ReduceOp.MIN)
        return t[0].item() == -t[1].item()

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network as it is trained: its gradients are the mean over the processes."""
        if self.world == 1:
            return network
        index = None if self.device.type == "cpu" else [self.device.index]
        return nn.parallel.DistributedDataParallel(network, device_ids=index)

    def synchronised(self, network: nn.Module) -> nn.Module:
        """Batch norms that measure the whole batch; on GPUs only, where torch has them."""
        if self.world == 1 or self.device.type != "cuda":
            return network
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the running statistics of the first, which are those that are kept."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def join(*, gpu: bool, cpu: bool) -> Processes:
    """This process among those of torchrun; alone, where torchrun has not started it.

    gpu: fail without an accelerator. cpu: use none.
    """
    available = torch.accelerator.is_available() and not cpu
    if gpu and not available:
        raise NoDevice("torch finds no GPU here; without --gpu the CPU is used")
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if available:
        if local >= torch.accelerator.device_count():
            raise NoDevice(
                f"process {local} has no GPU of its own: torchrun --nproc-per-node "
                f"{torch.accelerator.device_count()}, or --cpu"
            )
        device = torch.device(torch.accelerator.current_accelerator().type, local)
        torch.accelerator.set_device_index(local)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes(0, 1, device)
    dist.init_process_group(device_id=device if available else None, **meeting_point())
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def meeting_point() -> dict:
    """Where the processes of this start meet; on one machine not where those of the last one did.

    Torchrun lends its workers a store in which the addresses of the dead remain, and those started
    again would call them (pytorch#135712). On several machines the counts of starts may differ: there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each start a new store.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or env["GROUP_WORLD_SIZE"] != "1":
        return {}
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(f"start {env['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": store, "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"])}


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
