# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BLOOM and how it was trained
#
# A small BLOOM trained in parallel forms by processes that stand for devices: the same
# losses, and bytes on a device as the formulas say; then the budget of 176 billion
# parameters. The text to it is the [chapter](../chapters/bloom.rst), the paper is
# [Le Scao et al. 2022](https://arxiv.org/abs/2211.05100).

# %%
import copy
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta

import cloudpickle
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode
from transformers import BloomConfig, BloomForCausalLM

from workbench import checks, claim, counting, plots, record, seed, table, text

# %% [markdown]
# ## The model
#
# A decoder: attention whose scores fall with the distance, ALiBi, and an MLP, each
# behind a norm; one more norm behind the embedding; the head is the embedding's matrix.


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """What a BLOOM is made of (table 3)."""

    vocabulary: int
    depth: int
    d_model: int
    n_heads: int


BLOOM_176B = Size(250_880, 70, 14_336, 112)
SMALL = Size(128, 4, 64, 4)


# %% tags=["alibi"]
def alibi_slopes(n_heads: int) -> Tensor:
    """How fast the scores of each head fall with the distance (Press et al. 2021).

    A power of two: 2^(-8 / n), 2^(-16 / n) and so on. Other numbers of heads take the
    largest power below, and the rest from every second slope of the next one.
    """
    n = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    between = [2 ** (-4 * i / n) for i in range(1, 2 * n, 2)]
    return torch.tensor(slopes + between[: n_heads - n])


# %% tags=["attention"]
class Attention(nn.Module):
    """Causal attention, the score reduced by slope times distance: (B, T, D) to itself.

    One matrix makes queries, keys and values, head after head. A device that has some
    heads needs their part of the matrix and their slopes.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.d_head = d_model // n_heads
        self.to_qkv = nn.Linear(d_model, 3 * d_model)
        self.to_out = nn.Linear(d_model, d_model)
        self.register_buffer("slopes", alibi_slopes(n_heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).unflatten(-1, (-1, 3, self.d_head))  # (B, T, h, 3, d)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each (B, h, T, d)
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[:, None] - place  # (T, T), negative for what comes later
        bias = -self.slopes[:, None, None] * distance  # (h, T, T)
        scores = q @ k.mT / math.sqrt(self.d_head) + bias.to(q.dtype)
        weights = scores.masked_fill(distance < 0, -math.inf).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


# %% tags=["block"]
class MLP(nn.Module):
    """Each token alone, four times as wide inside: (B, T, D) -> (B, T, D)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added: (B, T, D) -> (B, T, D)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% tags=["bloom"]
class Bloom(nn.Module):
    """Embedding and its norm, blocks, norm, scores (figure 5): (B, T) -> (B, T, V)."""

    def __init__(self, size: Size):
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.d_model)
        self.embedding_norm = nn.LayerNorm(size.d_model)
        blocks = [Block(size.d_model, size.n_heads) for _ in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(size.d_model)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # matrices, as in the project's notes
                nn.init.normal_(parameter, std=(3 * size.d_model) ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding_norm(self.embedding(tokens))  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)  # (B, T, V)


# %% tags=["bloom-shape"]
seed(0)
Bloom(SMALL)(torch.randint(128, (2, 10))).shape


# %% tags=["reference"]
def reference(size: Size) -> BloomForCausalLM:
    """The model of transformers at this size."""
    config = BloomConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.d_model,
        n_layer=size.depth,
        n_head=size.n_heads,
        use_cache=False,
    )
    return BloomForCausalLM(config)


class Scores(nn.Module):
    """What a model of transformers returns under the name logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


# %% tags=["count"]
rows = []
for name, size in (("BLOOM", BLOOM_176B), ("this page", SMALL)):
    with torch.device("meta"):
        ours = counting.parameters(Bloom(size))
        theirs = counting.parameters(reference(size))
    claim(ours == theirs, "as many parameters as transformers counts")
    rows.append((name, size.depth, size.d_model, size.n_heads, ours, theirs))
full = rows[0][4]
small = rows[1][4]
columns = ("model", "blocks", "width", "heads", "parameters here", "transformers")
table(rows, columns)

# %% tags=["count-record"]
with torch.device("meta"):
    full_macs = counting.macs(Bloom(BLOOM_176B), torch.empty(1, 2048, dtype=torch.long))
record("parameters", full)
record("macs", full_macs)
claim(full == 176_247_271_424, "the count of the model card")
block = 12 * 14_336**2 + 13 * 14_336
embedding = 250_880 * 14_336
claim(full == 70 * block + embedding + 4 * 14_336, "the sum by hand")
record("block.billions", block / 1e9)
record("embedding.billions", embedding / 1e9)

# %% tags=["equal"]
seed(0)
odd = Size(50, 2, 96, 6)
theirs = reference(odd)
for parameter in theirs.parameters():
    nn.init.normal_(parameter, std=0.3)
ours = Bloom(odd)
checks.transplant(theirs.transformer, ours)
tokens = torch.randint(50, (3, 20))
library_deviation = checks.same_outputs(ours, Scores(theirs), tokens)
record("library.deviation", library_deviation)
table([("scores", 6, f"{library_deviation:.1e}")], ("what", "heads", "difference"))

# %% [markdown]
# ## Processes that stand for devices
#
# Each has its own memory and reaches the others by messages only, through gloo. A fresh
# Python is started once: a notebook that has used a GPU cannot fork processes that train.
# For each piece of work it forks as many as devices are asked for, collects what they
# return, and ends them; an exception in one of them ends all and comes back here.

# %% tags=["member"]
LIMIT = 120  # seconds for one piece of work


def member(rank: int, n: int, folder: str, results, work, arguments) -> None:
    """One device: join the others, do the work, put what it returns into `results`."""
    try:
        torch.set_num_threads(1)
        here = {"rank": rank, "world_size": n, "timeout": timedelta(seconds=LIMIT)}
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **here)
        results.put((rank, work(*arguments), None))
        dist.barrier()  # nobody leaves before all have arrived
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def gather(n: int, work, arguments, limit: float = LIMIT) -> list:
    """Fork n devices; what each returns, by rank. The first exception ends all."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        same = (n, folder, results, work, arguments)
        group = [
            context.Process(target=member, args=(rank, *same)) for rank in range(n)
        ]
        try:
            for process in group:
                process.start()
            until = time.monotonic() + limit
            while len(found) < n:
                left = max(until - time.monotonic(), 0.01)
                rank, value, error = results.get(timeout=left)
                if error:
                    raise RuntimeError(f"on device {rank}: {error}")
                found[rank] = value
            for process in group:
                process.join(5)
        finally:
            for process in group:
                process.kill()
                process.join()
    return [found[rank] for rank in range(n)]


def serve() -> None:
    """Of the fresh Python: read pieces of work from the input until it is closed."""
    import torch._dynamo  # noqa: F401 - optimisers ask for it: once, not in each device

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not stand among the answers
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (gather(*pickle.loads(job)), None)
        except Exception as error:
            answer = (None, f"{type(error).__name__} {error}")
        pickle.dump(answer, answers)
        answers.flush()


# %% tags=["devices"]
class Devices:
    """Start once, `run` work on n devices as often as wanted, `close` in the end."""

    def __init__(self):
        start = "import pickle, sys; pickle.loads(pickle.load(sys.stdin.buffer))()"
        alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | alone,
        )
        self.send(serve)

    def send(self, what) -> None:
        self.server.stdin.write(pickle.dumps(cloudpickle.dumps(what)))
        self.server.stdin.flush()

    def run(self, n: int, work, *arguments, limit: float = LIMIT) -> list:
        """What work(*arguments) returns on each of n; RuntimeError if one fails."""
        self.send((n, work, arguments, limit))
        values, error = pickle.load(self.server.stdout)
        if error:
            raise RuntimeError(error)
        return values

    def close(self) -> int:
        self.server.stdin.close()
        code = self.server.wait(LIMIT)
        self.server.stdout.close()
        return code


# %% tags=["hello"]
def hello() -> tuple:
    """Who I am, and the sum of all ranks, which comes by messages."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), total.item(), os.getpid()


# %% tags=["hello-run"]
devices = Devices()
met = devices.run(4, hello)
table([answer[:2] for answer in met], ("rank", "sum of the ranks of all"))

# %% [markdown]
# ## Four ways to cut
#
# What each of two devices holds of a model of four blocks, and takes of a batch.


# %% tags=["holdings"]
def holdings(form: str, device_number: int) -> tuple[set, set]:
    """The cells (row, column) of 4 by 4 that one of two devices holds; its texts."""
    cells = {(row, column) for row in range(4) for column in range(4)}
    texts = {0, 1, 2, 3}
    left = {cell for cell in cells if cell[1] < 2}
    upper = {cell for cell in cells if cell[0] < 2}
    half = {0, 1} if device_number == 0 else {2, 3}
    if form == "data":
        return cells, half
    if form == "tensor":
        return left if device_number == 0 else cells - left, texts
    if form == "pipeline":
        return upper if device_number == 0 else cells - upper, texts
    odd = {cell for cell in cells if (cell[0] + (cell[1] > 1)) % 2 == 0}
    return odd if device_number == 0 else cells - odd, half


# %% tags=["cuts-figure"] alt="Four columns, data, tensor, pipeline and ZeRO, and two rows, device 1 and device 2. Each field is a square of four rows, the blocks, with four dots above it, the texts; grey ones are another device's. Data: both devices have the whole square and half of the texts. Tensor: device 1 has the left half of each row, device 2 the right half, both have all texts. Pipeline: device 1 has the upper two rows, device 2 the lower two, both have all texts. ZeRO: of each row one device has one half and the other the other, and each has half of the texts."
fields = ("data", "tensor", "pipeline", "ZeRO")
_, axes = plt.subplots(2, 4, figsize=(5, 3.1))
for row, colour in enumerate(plots.COLOURS[:2]):
    for panel, form in zip(axes[row], fields):
        cells, texts = holdings(form, row)
        for y in range(4):
            for x in range(4):
                face = colour if (y, x) in cells else "none"
                box = {"facecolor": face, "edgecolor": plots.QUIET, "linewidth": 0.8}
                panel.add_patch(plt.Rectangle((x, y), 1, 1, **box))
            panel.plot(y + 0.5, -0.8, "o", color=colour if y in texts else plots.GRID)
        panel.set(
            xlim=(-0.2, 4.2), ylim=(4.2, -1.4), xticks=[], yticks=[], aspect="equal"
        )
        panel.spines[:].set_visible(False)
        panel.set_title(form if row == 0 else "")
    axes[row, 0].set_ylabel(f"device {row + 1}", color=colour)
plt.show()

# %% [markdown]
# ## One device
#
# Five steps of AdamW on five batches: what all forms must repeat. A batch is eight
# pieces of text.


# %% tags=["data"]
STEPS = 5
BATCH = 8
LENGTH = 32


def batches(number: int, steps: int = STEPS) -> Tensor:
    """Pieces of the King James Bible, one character a token: (steps, B, T + 1)."""
    letters = text.english().train.encode("ascii", "replace")
    take = torch.Generator().manual_seed(number)
    starts = torch.randint(len(letters) - LENGTH - 1, (steps, BATCH), generator=take)
    pieces = [list(letters[i : i + LENGTH + 1]) for i in starts.flatten()]
    return torch.tensor(pieces).view(steps, BATCH, LENGTH + 1)


# %% tags=["loss"]
def next_token(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of scores (B, T, V) and the tokens that come next (B, T)."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))


def step(model: nn.Module, optimizer, batch: Tensor) -> float:
    """Forward, backward, one step of the optimiser; the loss before it."""
    loss = next_token(model(batch[:, :-1]), batch[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %% tags=["held"]
def local(t: Tensor) -> Tensor:
    """The part of a tensor that this device holds."""
    return t.to_local() if hasattr(t, "to_local") else t


def size_of(tensors) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


def held(parameters, optimizer) -> dict[str, int]:
    """Bytes on this device after a step: weights, gradients, state of the optimiser."""
    parameters = list(parameters)
    states = [t for state in optimizer.state.values() for t in state.values()]
    return {
        "weights": size_of(parameters),
        "gradients": size_of(p.grad for p in parameters if p.grad is not None),
        "states": size_of(t for t in states if t.ndim),  # not the count of steps
    }


# %% tags=["alone"]
def alone(data: Tensor, number: int) -> tuple:
    """One process with the whole model and the whole batch: losses and bytes."""
    torch.manual_seed(number)
    model = Bloom(SMALL)
    optimizer = optimizer_of(model)
    losses = [step(model, optimizer, batch) for batch in data]
    return losses, held(model.parameters(), optimizer)


# %% [markdown]
# ## Data parallel
#
# Each device has the whole model and a share of the batch. Behind the backward pass the
# gradients are averaged.


# %% tags=["data-parallel"]
def mine(batch: Tensor) -> Tensor:
    """The share of a batch that this device takes."""
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def averaged(losses: list[float]) -> list[float]:
    """The mean over the devices of each loss."""
    mean = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(mean)
    return (mean / dist.get_world_size()).tolist()


def data_parallel(data: Tensor, number: int) -> tuple:
    torch.manual_seed(number)
    model = DistributedDataParallel(Bloom(SMALL))
    optimizer = optimizer_of(model)
    losses = [step(model, optimizer, mine(batch)) for batch in data]
    return averaged(losses), held(model.parameters(), optimizer)


# %% tags=["zero"]
def zero_one(data: Tensor, number: int) -> tuple:
    """Stage 1: each device keeps the state of some parameters, and sends these on."""
    torch.manual_seed(number)
    model = DistributedDataParallel(Bloom(SMALL))
    how = {"lr": 1e-2, "betas": (0.9, 0.95)}
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **how)
    losses = [step(model, optimizer, mine(batch)) for batch in data]
    return averaged(losses), held(model.parameters(), optimizer.optim)


def zero_three(data: Tensor, number: int) -> tuple:
    """Stage 3: weights, gradients and states are cut; a block is joined to be used."""
    torch.manual_seed(number)
    model = Bloom(SMALL)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = optimizer_of(model)
    losses = [step(model, optimizer, mine(batch)) for batch in data]
    return averaged(losses), held(model.parameters(), optimizer)


# %% tags=["tensor-parallel"]
PLAN = {  # how each matrix of a block is cut
    "attention.to_qkv": ColwiseParallel(),
    "attention.to_out": RowwiseParallel(),
    "mlp.up": ColwiseParallel(),
    "mlp.down": RowwiseParallel(),
}


def cut(model: Bloom, mesh) -> Bloom:
    """Give this device its columns and rows of each block, and its heads' slopes."""
    for block in model.blocks:
        parallelize_module(block, mesh, PLAN)
        slopes = block.attention.slopes.chunk(mesh.size())
        block.attention.slopes = slopes[mesh.get_local_rank()]
    return model


def tensor_parallel(data: Tensor, number: int) -> tuple:
    torch.manual_seed(number)
    model = cut(Bloom(SMALL), init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = optimizer_of(model)
    losses = [step(model, optimizer, batch) for batch in data]
    return losses, held(model.parameters(), optimizer)


# %% tags=["stages"]
class Stage(nn.Module):
    """Some blocks of a model; the first stage begins with the embedding."""

    def __init__(self, model: Bloom, first: int, last: int):
        super().__init__()
        self.blocks = nn.ModuleList(model.blocks[first:last])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class FirstStage(Stage):
    def __init__(self, model: Bloom, first: int, last: int):
        super().__init__(model, first, last)
        self.embedding = model.embedding
        self.embedding_norm = model.embedding_norm

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.embedding_norm(self.embedding(tokens)))


class LastStage(Stage):
    """Ends with the head, which is a second copy of the embedding."""

    def __init__(self, model: Bloom, first: int, last: int):
        super().__init__(model, first, last)
        self.norm = model.norm
        self.embedding = model.embedding

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(super().forward(x)), self.embedding.weight)


def stage_of(model: Bloom, rank: int, n: int) -> Stage:
    """The part of a model that device `rank` of n has."""
    depth = len(model.blocks)
    kind = FirstStage if rank == 0 else LastStage if rank == n - 1 else Stage
    return kind(model, rank * depth // n, (rank + 1) * depth // n)


# %% tags=["meter"]
class Kept:
    """One tensor that autograd keeps; counted until it is let go."""

    def __init__(self, t: Tensor, meter):
        self.tensor = t
        self.meter = meter
        self.place = t.untyped_storage().data_ptr()
        meter.add(self.place, t.untyped_storage().nbytes())

    def __del__(self):
        self.meter.remove(self.place)


class Meter(torch.autograd.graph.saved_tensors_hooks):
    """Bytes kept for the backward pass, now and at most; each storage counts once.

    Weights do not count, nor do whole numbers and masks.
    """

    def __init__(self, model: nn.Module):
        super().__init__(self.pack, lambda kept: getattr(kept, "tensor", kept))
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.users = {}
        self.bytes = {}
        self.most = 0

    @property
    def now(self) -> int:
        return sum(self.bytes.values())

    def pack(self, t: Tensor):
        weight = t.untyped_storage().data_ptr() in self.weights
        numbers = (
            t.is_floating_point() and not t.is_meta
        )  # of stages only shapes are meta
        return Kept(t, self) if numbers and not weight else t

    def add(self, place: int, size: int) -> None:
        self.users[place] = self.users.get(place, 0) + 1
        self.bytes[place] = size
        self.most = max(self.most, self.now)

    def remove(self, place: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.bytes[place]


# %% tags=["pipeline"]
def add_copies(embedding: nn.Embedding, rank: int, n: int, ends) -> None:
    """The embedding stands in the first and the last stage: add both gradients."""
    if rank in (0, n - 1):
        dist.all_reduce(embedding.weight.grad, group=ends)


def pipeline(data: Tensor, number: int, schedule, m: int) -> tuple:
    """Stages one behind the other, the batch in m pieces; also the most bytes kept."""
    rank = dist.get_rank()
    n = dist.get_world_size()
    ends = dist.new_group([0, n - 1])
    torch.manual_seed(number)
    module = stage_of(Bloom(SMALL), rank, n)
    optimizer = optimizer_of(module)
    stage = PipelineStage(module, rank, n, torch.device("cpu"))
    plan = schedule(stage, m, loss_fn=next_token)
    losses = []
    for batch in data:
        meter = Meter(module)
        inputs = (batch[:, :-1],) if rank == 0 else ()
        found = []
        optimizer.zero_grad()
        with meter:
            plan.step(*inputs, target=batch[:, 1:], losses=found)
        if rank in (0, n - 1):
            add_copies(module.embedding, rank, n, ends)
        optimizer.step()
        losses.append(sum(loss.item() for loss in found) / m)
    return losses, held(module.parameters(), optimizer), meter.most


# %% [markdown]
# ## All forms, three seeds
#
# The same seed makes the same weights in each process, the same batches go to all.

# %% tags=["forms"]
FORMS = {
    "data parallel": (2, data_parallel, ()),
    "ZeRO, stage 1": (4, zero_one, ()),
    "ZeRO, stage 3": (4, zero_three, ()),
    "tensor parallel": (2, tensor_parallel, ()),
    "pipeline, GPipe": (4, pipeline, (ScheduleGPipe, 8)),
    "pipeline, 1F1B": (4, pipeline, (Schedule1F1B, 8)),
}
SEEDS = (0, 1, 2)


def each_seed(work, data: dict[int, Tensor], more: tuple) -> dict[int, tuple]:
    """One form with each of the seeds, so that its devices start once."""
    return {number: work(batch, number, *more) for number, batch in data.items()}


def off(found: list[float], expected: list[float]) -> float:
    """Largest relative difference of two rows of losses."""
    return checks.deviation(torch.tensor(found), torch.tensor(expected))


# %% tags=["whole"]
data = {number: batches(number) for number in SEEDS}
whole = {number: alone(data[number], number) for number in SEEDS}

# %% tags=["run-forms"]
runs = {}
for name, (n, work, more) in FORMS.items():
    answers = devices.run(n, each_seed, work, data, more)
    for number in SEEDS:
        runs[name, number] = [answer[number] for answer in answers]

# %% tags=["losses"]
worst = {}
for name in FORMS:
    found = [off(runs[name, s][-1][0], whole[s][0]) for s in SEEDS]
    worst[name] = max(found)
    claim(worst[name] < 1e-5, f"{name}: the losses of one process")
record("losses.deviation", max(worst.values()))
rows = []
for name in ("one process", *FORMS):
    losses = whole[0][0] if name == "one process" else runs[name, 0][-1][0]
    difference = "" if name == "one process" else f"{worst[name]:.0e}"
    rows.append((name, *[f"{loss:.5f}" for loss in losses], difference))
table(rows, ("form", *[f"step {i + 1}" for i in range(STEPS)], "difference"))


# %% tags=["formula"]
def expected(name: str, n: int) -> list[tuple[float, float, float]]:
    """Bytes of weights, gradients and states on each device, four bytes a number."""
    model = Bloom(SMALL)
    P = counting.parameters(model)
    if name.startswith("pipeline"):
        mine = [counting.parameters(stage_of(model, rank, n)) for rank in range(n)]
        return [(4 * p, 4 * p, 8 * p) for p in mine]
    if name == "tensor parallel":  # all but norms, embedding and two biases are cut
        D = SMALL.d_model
        shared = SMALL.vocabulary * D + SMALL.depth * (4 * D + 2 * D) + 4 * D
        P = shared + (P - shared) / n
    parts = {"ZeRO, stage 1": (1, 1, n), "ZeRO, stage 3": (n, n, n)}.get(
        name, (1, 1, 1)
    )
    return [tuple(b * P / part for b, part in zip((4, 4, 8), parts))] * n


# %% tags=["bytes"]
KINDS = ("weights", "gradients", "states")
rows = []
exact = {}
for name, (n, *_) in FORMS.items():
    counted = [answer[1] for answer in runs[name, 0]]
    formula = expected(name, n)
    pairs = [
        (c[k], f[i]) for c, f in zip(counted, formula) for i, k in enumerate(KINDS)
    ]
    exact[name] = max(abs(c / f - 1) for c, f in pairs)
    most = max(counted, key=lambda held: sum(held.values()))
    total = max(map(sum, formula))
    kilobytes = [f"{most[kind] / 1000:.1f}" for kind in KINDS]
    rows.append((name, n, *kilobytes, f"{total / 1000:.1f}"))
table(rows, ("form", "devices", *KINDS, "sum by formula"))

# %% tags=["bytes-claims"]
for name, share in exact.items():
    if name == "ZeRO, stage 1":
        claim(
            0 < share < 0.03, "stage 1 is cut between whole tensors: close to a quarter"
        )
        total = sum(answer[1]["states"] for answer in runs[name, 0])
        claim(total == 8 * small, "its states add up to those of one device")
    else:
        claim(share == 0, f"{name}: bytes on each device as the formula, to the byte")
record("stage1.off", exact["ZeRO, stage 1"])

# %% tags=["bytes-shares"]
one = whole[0][1]
most = {
    name: max((answer[1] for answer in runs[name, 0]), key=lambda h: sum(h.values()))
    for name in FORMS
}
part = {name: sum(h.values()) / sum(one.values()) for name, h in most.items()}
claim(part["data parallel"] == 1, "data parallel holds what one process holds")
claim(0.45 < part["tensor parallel"] < 0.55, "tensor parallel: about half")
for name in ("ZeRO, stage 3", "pipeline, GPipe", "pipeline, 1F1B"):
    claim(0.22 < part[name] < 0.3, f"{name}: about a quarter")
short = most["ZeRO, stage 1"]["states"] / one["states"]
claim(short < 0.3, "ZeRO stage 1 has short states")

# %% tags=["bytes-figure"] alt="Stacked bars of kilobytes on the fullest device, weights, gradients and states of the optimiser: data parallel has the longest bar, as long as one process; ZeRO stage 1 has short states; tensor parallel about half of everything; the pipeline's and ZeRO stage 3's bars are about a quarter. A vertical mark at the end of each bar is the formula."
_, axes = plt.subplots(figsize=(5, 2.9))
names = [name for name in FORMS if name != "pipeline, GPipe"]
for row, name in enumerate(names):
    most = max((a[1] for a in runs[name, 0]), key=lambda held: sum(held.values()))
    start = 0
    for kind, colour in zip(KINDS, plots.COLOURS):
        axes.barh(row, most[kind] / 1000, left=start, color=colour, height=0.6)
        start += most[kind] / 1000
    formula = max(map(sum, expected(name, FORMS[name][0]))) / 1000
    axes.plot([formula, formula], [row - 0.42, row + 0.42], color=plots.INK)
names[-1] = "pipeline"
axes.set(yticks=range(len(names)), yticklabels=names, xlabel="kB on a device")
axes.set(xticks=range(0, 3001, 1000), xlim=(0, 3500))
axes.invert_yaxis()
for place, (kind, colour) in enumerate(zip(KINDS, plots.COLOURS)):
    axes.text(2100, 2.2 + 0.75 * place, kind, color=colour)
plt.show()

# %% [markdown]
# ## The pipeline's timetable
#
# A forward pass takes one slot, a backward pass two. GPipe runs all pieces forward,
# then all backward; 1F1B begins to go back as early as it can.


# %% tags=["orders"]
def order(kind: str, stage: int, p: int, m: int) -> list[tuple[str, int]]:
    """What a stage of p does with m pieces: a list of ("F" or "B", piece)."""
    forward = [("F", i) for i in range(m)]
    backward = [("B", i) for i in range(m)]
    if kind == "GPipe":
        return forward + backward
    ahead = min(m, p - stage)  # pieces that go forward before the first comes back
    todo = forward[:ahead]
    for i in range(m):
        todo.append(backward[i])
        todo += forward[ahead + i : ahead + i + 1]
    return todo


def timetable(kind: str, p: int, m: int) -> dict[tuple[int, str, int], int]:
    """When each pass begins; F waits for the stage before, B for the next."""
    took = {"F": 1, "B": 2}
    todo = [order(kind, stage, p, m) for stage in range(p)]
    begun = {}
    free = [0] * p
    while any(todo):
        for stage in range(p):
            if not todo[stage]:
                continue
            way, i = todo[stage][0]
            before = (stage - 1, "F", i) if way == "F" else (stage + 1, "B", i)
            if 0 <= before[0] < p and before not in begun:
                continue
            ready = begun[before] + took[way] if before in begun else 0
            begun[stage, way, i] = max(ready, free[stage])
            free[stage] = begun[stage, way, i] + took[way]
            todo[stage].pop(0)
    return begun


def bubble(kind: str, p: int, m: int) -> float:
    """The share of the time in which a device waits."""
    end = max(start + 2 for (_, way, _), start in timetable(kind, p, m).items())
    return 1 - 3 * m / end


def in_flight(kind: str, stage: int, p: int, m: int) -> int:
    """How many pieces a stage keeps at most: gone forward and not yet back."""
    kept = 0
    most = 0
    for way, _ in order(kind, stage, p, m):
        kept += 1 if way == "F" else -1
        most = max(most, kept)
    return most


# %% tags=["schedule-figure"] alt="Two timetables of four stages and eight pieces, time to the right. In GPipe each stage runs all eight forward boxes, then all eight backward boxes, and all but the last wait between them. In 1F1B forward and backward boxes alternate after the first few. There is as much empty space in both, and both end in the same slot."
_, axes = plt.subplots(2, 1, figsize=(5, 3.2), sharex=True)
for panel, kind in zip(axes, ("GPipe", "1F1B")):
    for (stage, way, _), start in timetable(kind, 4, 8).items():
        width = 1 if way == "F" else 2
        colour = plots.COLOURS[0] if way == "F" else plots.COLOURS[1]
        place = (start + 0.07, stage - 0.42)
        panel.add_patch(plt.Rectangle(place, width - 0.14, 0.84, color=colour, lw=0))
    panel.set(xlim=(0, 33), ylim=(3.5, -0.5), yticks=range(4), ylabel=kind)
    panel.set_yticklabels([f"stage {stage + 1}" for stage in range(4)])
axes[1].set_xlabel("time, in forward passes")
plt.show()

# %% tags=["bubble"]
rows = []
for kind in ("GPipe", "1F1B"):
    kept = [answer[2] for answer in runs[f"pipeline, {kind}", 0]]
    flying = [in_flight(kind, stage, 4, 8) for stage in range(4)]
    rows.append(
        (kind, f"{bubble(kind, 4, 8):.1%}", *flying, f"{kept[1] / 1000:.0f} kB")
    )
heads = [f"stage {stage + 1}" for stage in range(4)]
table(rows, ("schedule", "waits", *heads, "kept in stage 2"))

# %% tags=["bubble-claims"]
gpipe = [answer[2] for answer in runs["pipeline, GPipe", 0]]
ours = [answer[2] for answer in runs["pipeline, 1F1B", 0]]
for stage in range(4):
    ratio = in_flight("GPipe", stage, 4, 8) / in_flight("1F1B", stage, 4, 8)
    claim(gpipe[stage] == ratio * ours[stage], "bytes kept as the pieces in flight")
for kind in ("GPipe", "1F1B"):
    for p, m in ((4, 8), (2, 3), (12, 128), (4, 2)):
        formula = (p - 1) / (m + p - 1)
        claim(abs(bubble(kind, p, m) - formula) < 1e-9, "the share of the bubble")

# %% [markdown]
# ## A matrix product cut in two
#
# The first matrix by columns, the second by rows: each device does a whole half, and
# one sum joins them.

# %% tags=["by-hand"]
x = torch.tensor([[1.0, 2.0]])
first = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
second = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
parts = []
for i in range(2):
    inner = torch.relu(x @ first[:, i : i + 1])  # a column: one number
    parts.append(inner @ second[i : i + 1])  # a row: the device's share of the sum
together = torch.relu(x @ first) @ second

# %% tags=["by-hand-result"]
claim(
    torch.equal(parts[0] + parts[1], together), "the two shares add up to the product"
)
rows = [(f"device {i + 1}", str(part[0].tolist())) for i, part in enumerate(parts)]
table([*rows, ("sum", str(together[0].tolist()))], ("where", "numbers"))

# %% tags=["by-rows"]
by_rows = [x[:, i : i + 1] @ first[i : i + 1] for i in range(2)]
claim(
    torch.relu(by_rows[0]).tolist() == [[1, 0]] and by_rows[0].tolist() == [[1, -1]],
    "cut by rows, the first device has a share, and the ReLU changes it",
)
claim(by_rows[1].tolist() == [[2, 2]], "the second device has (2, 2)")
added = torch.relu(by_rows[0]) + torch.relu(by_rows[1])
claim(added.tolist() == [[3, 2]], "their ReLUs do not add up")
claim(torch.relu(x @ first).tolist() == [[3, 1]], "the numbers inside are (3, 1)")


# %% tags=["messages"]
def messages(tokens: Tensor) -> tuple[int, int]:
    """All-reduces of one tensor-parallel forward pass, and of its backward pass."""
    from torch.distributed.tensor.debug import CommDebugMode

    model = cut(Bloom(SMALL), init_device_mesh("cpu", (dist.get_world_size(),)))
    forward = CommDebugMode()
    backward = CommDebugMode()
    with forward:
        scores = model(tokens)
    with backward:
        scores.sum().backward()
    return forward.get_total_counts(), backward.get_total_counts()


# %% tags=["messages-run"]
forward, backward = devices.run(2, messages, data[0][0][:, :-1])[0]
claim(forward == 2 * SMALL.depth, "two sums in each block on the way forward")
claim(backward == 2 * SMALL.depth, "and two on the way back")
record("messages", forward + backward)

# %% [markdown]
# ## What is kept for the way back
#
# A block keeps 16 numbers for each number of its input, and a square of scores for each
# head. With a checkpoint it keeps its input, and is computed once more.


# %% tags=["checkpointed"]
class Checkpointed(Bloom):
    """Keeps the input of each block only; the backward pass runs the block again."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding_norm(self.embedding(tokens))  # (B, T, D)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return F.linear(self.norm(x), self.embedding.weight)  # (B, T, V)


# %% tags=["kept-by"]
def kept_by(block: nn.Module, x: Tensor) -> int:
    """Bytes that a module keeps for its backward pass."""
    meter = Meter(block)
    with meter:
        y = block(x)
    return meter.now if y.requires_grad else 0


def kept_formula(B: int, T: int, D: int, heads: int) -> int:
    """Numbers a block keeps: 16 B T D, the scores, two for each norm and token."""
    return 16 * B * T * D + B * heads * T * T + 4 * B * T


def step_macs(model: nn.Module, tokens: Tensor) -> int:
    """Multiply-accumulates of a forward and a backward pass."""
    counter = FlopCounterMode(display=False, custom_mapping=counting.FLOPS)
    with counter:
        model(tokens).sum().backward()
    return counter.get_total_flops() // 2


# %% tags=["kept"]
seed(0)
x = torch.randn(2, 32, 64, requires_grad=True)
counted = kept_by(Block(64, 4), x)
claim(counted == 4 * kept_formula(2, 32, 64, 4), "a block keeps what the formula says")
seed(0)
plain = Bloom(SMALL)
saving = Checkpointed(SMALL)
saving.load_state_dict(plain.state_dict())
tokens = data[0][0][:, :-1]
kept = {model: kept_by(model, tokens) for model in (plain, saving)}
macs = {model: step_macs(model, tokens) for model in (plain, saving)}

# %% tags=["kept-result"]
pairs = zip(plain.parameters(), saving.parameters())
apart = max(checks.deviation(a.grad, b.grad) for a, b in pairs)
claim(apart < 1e-5, "with checkpoints the gradients are the same")
with set_checkpoint_early_stop(False):
    whole_block = step_macs(saving, tokens)
once = counting.macs(plain, tokens) - tokens.numel() * 64 * 128  # without the head
claim(whole_block - macs[plain] == once, "one more forward pass of the blocks")
last = SMALL.depth * tokens.numel() * 4 * 64**2  # the last matrix of each block
claim(macs[saving] - macs[plain] == once - last, "torch leaves the last matrix out")
record("kept.times", kept[plain] / kept[saving])
rows = [
    ("keep all", kept[plain], macs[plain]),
    ("checkpoints", kept[saving], whole_block),
]
rows.append(("checkpoints, torch stops early", kept[saving], macs[saving]))
rows = [(name, f"{k / 1000:,.0f}", f"{m / 1e6:.1f}") for name, k, m in rows]
table(rows, ("blocks", "kB kept", "M MACs of a step"))

# %% [markdown]
# ## The budget of 176 billion parameters
#
# 4 devices to a tensor, 12 stages, 8 copies of that: 384 GPUs.


# %% tags=["budget"]
TENSOR = 4  # devices to a tensor
STAGES = 12
COPIES = 8
MICRO = 2  # texts in a piece
SEQUENCE = 2048
GPU = 80e9  # bytes


def first_stage(size: Size, blocks: int = 5) -> int:
    """Parameters of the stage with the embedding and five blocks (project's notes)."""
    with torch.device("meta"):
        model = Bloom(size)
        return counting.parameters(FirstStage(model, 0, blocks))


def state_bytes(P: float, copies: int) -> dict[str, float]:
    """Bytes for P parameters in mixed precision, optimiser cut among copies."""
    return {
        "weights, bf16": 2 * P,
        "gradients, bf16": 2 * P,
        "gradients added up, fp32": 4 * P,
        "weights and two moments, fp32": 12 * P / copies,
    }


def kept_bytes(size: Size, tensor: int, *, saving: bool) -> float:
    """Bytes a block keeps of one piece (Korthikanti et al. 2022, equation 2)."""
    sbh = SEQUENCE * MICRO * size.d_model
    squares = 5 * size.n_heads * SEQUENCE / (size.d_model * tensor)
    return 2 * sbh if saving else sbh * (10 + 24 / tensor + squares)


# %% tags=["memory"]
on_gpu = first_stage(BLOOM_176B) / TENSOR
parts = state_bytes(on_gpu, COPIES)
block = kept_bytes(BLOOM_176B, TENSOR, saving=False)
kept = STAGES * 5 * kept_bytes(BLOOM_176B, TENSOR, saving=True)
parts["inputs of 5 blocks, 12 pieces"] = kept
parts["one block, computed again"] = block
parts["sum"] = sum(parts.values())
rows = [(name, f"{size / 1e9:.1f}") for name, size in parts.items()]
table(rows, ("on one of the GPUs of the first stage", "GB"))

# %% tags=["memory-record"]
without = sum(state_bytes(on_gpu, 1).values())
record("stage.billions", on_gpu * TENSOR / 1e9)
record("one.terabytes", 16 * full / 1e12)
record("budget.whole.states", 12 * on_gpu / 1e9)
record("budget.without", (without + kept + block) / 1e9)
record("budget.keep.all", STAGES * 5 * block / 1e9)
claim(parts["sum"] < 60e9, "less than the 60 GB that the project reports")
claim(without + kept + block > GPU, "with whole states on each GPU it would not fit")
claim(STAGES * 5 * block > GPU, "nor if all that the blocks keep had to stay")
record("weights.gib", 2 * full / 2**30)
record("checkpoint.tib", 14 * full / 2**40)

# %% tags=["time"]
GPUS = TENSOR * STAGES * COPIES
TOKENS = 366e9
SPEED = 149.77e12  # of a line in the project's log
PER_STEP = 2048 * SEQUENCE


def step_flops(macs: int, size: Size) -> float:
    """Two for each MAC; the blocks run four times (one again), the head three."""
    head = SEQUENCE * size.vocabulary * size.d_model
    return 2 * (4 * (macs - head) + 3 * head) * PER_STEP / SEQUENCE


# %% tags=["time-result"]
seconds = step_flops(full_macs, BLOOM_176B) / (GPUS * SPEED)
rough = 8 * full * PER_STEP / (GPUS * SPEED)
days = TOKENS / PER_STEP * seconds / 86400
rows = [("8 FLOPs for each parameter and token", f"{rough:.1f}", "")]
rows.append(("MACs counted from the model", f"{seconds:.1f}", f"{days:.1f}"))
rows.append(("reported", "104.70", f"{1_082_990 / GPUS / 24:.1f}"))
table(rows, ("what", "seconds a step", "days"))

# %% tags=["time-claims"]
words = "the count behind the log's speed, to a fifth of a percent"
claim(abs(seconds / 104.70 - 1) < 0.002, words)
record("step.seconds", seconds)
record("days", days)
record("days.reported", 1_082_990 / GPUS / 24)
record("flops", TOKENS / PER_STEP * step_flops(full_macs, BLOOM_176B))
claim(days < 1_082_990 / GPUS / 24, "more days were used than the steps need")

# %% [markdown]
# ## Two formats of 16 bits
#
# float16 spends its bits on precision, bfloat16 on range.

# %% tags=["formats"]
rows = []
found = []
for kind in (torch.float32, torch.float16, torch.bfloat16):
    info = torch.finfo(kind)
    product = torch.tensor(255, dtype=kind) * torch.tensor(257, dtype=kind)
    found.append(product.item())
    limits = f"{info.max:.3g}", f"{info.tiny:.2g}", f"{info.eps:.2g}"
    rows.append((str(kind).removeprefix("torch."), *limits, f"{product.item():,.0f}"))
table(rows, ("format", "largest", "smallest, normal", "gap above 1", "255 × 257"))
claim(found == [65_535, math.inf, 65_280], "255 times 257 in each format")
ratio = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float16).eps
claim(ratio == 8, "the first number above 1 is eight times as far away")
claim(torch.tensor(257, dtype=torch.bfloat16).item() == 256, "257 becomes 256")


# %% tags=["gradient"]
def gradient(
    model: nn.Module, kind: torch.dtype, scale: float, batch: Tensor
) -> Tensor:
    """The gradient in one format with the loss times `scale`, divided by it again."""
    network = copy.deepcopy(model).to(kind)
    loss = next_token(network(batch[:, :-1]).float(), batch[:, 1:])
    (loss * scale).backward()
    return torch.cat([p.grad.float().flatten() for p in network.parameters()]) / scale


def lost(found: Tensor, exact: Tensor) -> float:
    """The share of numbers that became zero, infinite or not a number."""
    return (~found.isfinite() | ((found == 0) & (exact != 0))).float().mean().item()


# %% tags=["scales"]
POWERS = range(-28, 33, 4)
FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
seed(0)
model = Bloom(SMALL)
batch = data[0][0]
exact_gradient = gradient(model, torch.float32, 1.0, batch)
shares = {}
errors = {}
for name, kind in FORMATS.items():
    found = [gradient(model, kind, 2.0**power, batch) for power in POWERS]
    shares[name] = [lost(g, exact_gradient) for g in found]
    at_one = found[POWERS.index(0)]
    errors[name] = ((at_one - exact_gradient).norm() / exact_gradient.norm()).item()

# %% tags=["scales-figure"] alt="The share of the gradient that is lost against the factor of the loss, in powers of two from -28 to 32. The line of bfloat16 stays at 0. That of float16 is 1 at the left, falls to 0 in a valley in the middle and rises to 1 again at the right."
_, axes = plt.subplots()
for share, colour in zip(shares.values(), plots.COLOURS[1::-1]):
    axes.plot(list(POWERS), share, "o-", color=colour, markersize=4)
axes.text(-13, 0.75, "float16", color=plots.COLOURS[1])
axes.text(-27, 0.05, "bfloat16", color=plots.COLOURS[0])
axes.set(xlabel="loss times two to the power of", ylabel="share of the gradient lost")
plt.show()

# %% tags=["scales-claims"]
claim(max(shares["bfloat16"]) < 1e-3, "in bfloat16 next to nothing is lost")
claim(shares["float16"][0] > 0.99, "in float16 all is lost at the smallest factor")
claim(shares["float16"][-1] > 0.99, "and at the largest")
claim(shares["float16"][POWERS.index(4)] < 1e-3, "between them float16 is as good")
times = errors["bfloat16"] / errors["float16"]
claim(6 < times < 10, "the gradient of bfloat16 is about eight times less exact")
record("error.float16", errors["float16"])
record("error.bfloat16", errors["bfloat16"])

# %% [markdown]
# ## The norm behind the embedding
#
# However large the embedding has become, what enters the first block has the same size.


# %% tags=["embedding-scale"]
def grown(model: Bloom, factor: float, tokens: Tensor) -> tuple[float, float]:
    """Deviation of the embedding times a factor, without the norm and behind it."""
    x = factor * model.embedding(tokens)
    return x.std().item(), model.embedding_norm(x).std().item()


# %% tags=["embedding-scale-result"]
rows = []
behind = []
for factor in (1, 10, 100):
    before, after = grown(model, factor, tokens)
    behind.append(after)
    rows.append((factor, f"{before:.2f}", f"{after:.2f}"))
claim(max(behind) / min(behind) < 1.02, "behind the norm the size stays")
claim(abs(max(behind) - 1) < 0.02, "and it is 1")
table(rows, ("embedding times", "standard deviation without norm", "behind the norm"))

# %% [markdown]
# ## What we saw
#
# - Data, tensor and pipeline parallel and ZeRO give the losses of one process, and
#   differ in what a device holds, which formulas give to the byte.
# - 1F1B waits as long as GPipe and keeps fewer pieces; checkpoints keep the inputs of
#   blocks and cost one forward pass.
# - 176 B parameters fit 80 GB only with states cut and activations computed again;
#   counted products agree with the count behind the speed in the project's log.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
waits = {m: bubble("1F1B", 12, m) for m in (12, 128, 209)}

# %% tags=["solution-1-result"]
rows = [(m, f"{share:.1%}") for m, share in waits.items()]
fewer = bubble("1F1B", 12, 208)
claim(waits[209] < 0.05 + 1e-9 < fewer, "209 pieces are the fewest")
table(rows, ("pieces", "12 stages wait"))


# %% tags=["solution-2"]
def same_slopes(data: Tensor, number: int) -> list[float]:
    """Tensor parallel, and each device takes the slopes of the first heads."""
    torch.manual_seed(number)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = cut(Bloom(SMALL), mesh)
    for block in model.blocks:
        block.attention.slopes = alibi_slopes(SMALL.n_heads).chunk(mesh.size())[0]
    optimizer = optimizer_of(model)
    return [step(model, optimizer, batch) for batch in data]


# %% tags=["solution-2-result"]
found = devices.run(2, same_slopes, data[0], 0)[0]
wrong = off(found, whole[0][0])
claim(wrong > 100 * worst["tensor parallel"], "with wrong slopes the losses differ")
table(
    [("own", f"{worst['tensor parallel']:.0e}"), ("first", f"{wrong:.0e}")],
    ("slopes", "difference"),
)


# %% tags=["solution-3"]
def moved(kind: torch.dtype, rate: float, batch: Tensor) -> float:
    """The share of all weights that one step of AdamW changes, kept in this format."""
    torch.manual_seed(0)
    model = Bloom(SMALL).to(kind)
    before = [p.clone() for p in model.parameters()]
    step(model, torch.optim.AdamW(model.parameters(), lr=rate), batch)
    pairs = zip(before, model.parameters())
    return sum((a != b).sum().item() for a, b in pairs) / counting.parameters(model)


shares = {
    kind: moved(kind, 6e-5, data[0][0]) for kind in (torch.float32, torch.bfloat16)
}

# %% tags=["solution-3-result"]
claim(
    shares[torch.bfloat16] < 0.5 < 0.9 < shares[torch.float32], "most stay in bfloat16"
)
rows = [(str(kind).removeprefix("torch."), f"{s:.0%}") for kind, s in shares.items()]
table(rows, ("weights kept in", "changed by a step"))


# %% tags=["solution-4"]
def both(data: Tensor, number: int) -> tuple:
    """Four devices: blocks cut in two as tensors, and the halves in two by ZeRO."""
    torch.manual_seed(number)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = cut(Bloom(SMALL), mesh["tensor"])
    for block in model.blocks:
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.95), foreach=False
    )
    share = mesh["data"].get_local_rank()
    losses = [step(model, optimizer, batch.chunk(2)[share]) for batch in data]
    return averaged(losses), held(model.parameters(), optimizer)


# %% tags=["solution-4-result"]
answers_both = devices.run(4, both, data[0], 0)
difference = off(answers_both[0][0], whole[0][0])
claim(difference < 1e-5, "tensor and data parallel together: the losses of one process")
half = runs["tensor parallel", 0][0][1]["weights"] / 2
claim(all(a[1]["weights"] == half for a in answers_both), "half of what tensors leave")
table(
    [(f"{difference:.0e}", answers_both[0][1]["weights"])],
    ("difference", "bytes of weights"),
)

# %% [markdown]
# ## No process is left

# %% tags=["close"]
code = devices.close()
claim(code == 0, "the fresh Python has ended by itself")
alive = [pid for _, _, pid in met if os.path.exists(f"/proc/{pid}")]
claim(not alive, "the processes of the first piece of work are gone")
table([(code, len(alive))], ("exit code", "processes left"))
