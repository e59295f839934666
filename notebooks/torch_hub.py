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
# # torch.hub
#
# What `torch.hub.load` does, request by request, against a host of our own on this machine, and
# what is left when the network goes away at each of them. Then the network that the reading list
# loads, DeepLabV3, built and compared with torchvision's.
# The text to it is the [chapter](../chapters/torch_hub.rst), the hub is
# [torch.hub](https://pytorch.org/docs/stable/hub.html).

# %%
import contextlib
import hashlib
import io
import json
import socket
import sys
import tempfile
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from workbench import PROFILE, claim, device, record, seed, table
from workbench import checks, counting, diagrams, plots

# %% [markdown]
# ## A repository that is a hub
#
# Two files make one: a network, and `hubconf.py`, whose functions are the entry points.

# %% tags=["files"]
NETWORKS = '''
from torch import nn


class LeNet(nn.Sequential):
    """Two convolutions and two linear layers: (B, 1, 28, 28) -> (B, num_classes)."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, num_classes),
        )
'''

HUBCONF = '''
dependencies = ["torch"]

import torch

from lenets import LeNet as _LeNet

WEIGHTS = "https://weights.example/lenet-{digits}.pth"


def lenet(pretrained=False, num_classes=10, **how):
    """A small LeNet for images of 28x28 pixels; pretrained: with its weights."""
    network = _LeNet(num_classes)
    if pretrained:
        state = torch.hub.load_state_dict_from_url(WEIGHTS, progress=False, **how)
        network.load_state_dict(state)
    return network
'''


# %% tags=["repository"]
def write_repository(folder: Path, hubconf: str) -> None:
    """The two files of a hub in a folder of their own."""
    folder.mkdir(parents=True)
    (folder / "lenets.py").write_text(NETWORKS)
    (folder / "hubconf.py").write_text(hubconf)


def saved(state) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


# %% [markdown]
# The weights come first: the first digits of their SHA-256 stand in the name of their file.

# %%
seed(0)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
scope = {}
exec(NETWORKS, scope)
trained = scope["LeNet"](10)
weights = saved(trained.state_dict())
digits = hashlib.sha256(weights).hexdigest()[:8]
write_repository(folder / "here", HUBCONF.replace("{digits}", digits))

# %% [markdown]
# From a folder, `load` asks nobody.

# %% tags=["local"]
network = torch.hub.load(str(folder / "here"), "lenet", source="local", num_classes=7)
network(torch.randn(2, 1, 28, 28)).shape

# %%
lenet_count = counting.parameters(trained)
record("lenet.parameters", lenet_count)
record("weights.bytes", len(weights))

# %% [markdown]
# ## A host in GitHub's place
#
# It answers on this machine what GitHub would answer for a repository of one branch and one tag.
# `torch.hub` itself is not changed: only the addresses that it opens lead here.

# %% tags=["pages"]
SITE = "https://github.com/reader/networks"
API = "https://api.github.com/repos/reader/networks"
NEWEST = "4f1c2ab" + "0" * 33  # the commit that `main` points to
TAGGED = "90d3e77" + "0" * 33  # that of the tag `v1`


def packed(folder: Path) -> bytes:
    """The archive of a repository as GitHub makes it: all files below one folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("reader-networks-4f1c2ab/", "")
        for path in sorted(folder.glob("*.py")):
            archive.write(path, f"reader-networks-4f1c2ab/{path.name}")
    return file.getvalue()


def pages(folder: Path, weights: bytes, digits: str) -> dict[str, bytes]:
    """What the hosts of the hub give for each address."""
    found = {f"{SITE}/tree/main/": b"a page"}
    for kind, name, commit in (("branches", "main", NEWEST), ("tags", "v1", TAGGED)):
        listed = [{"name": name, "commit": {"sha": commit}}]
        found[f"{API}/{kind}?per_page=100&page=1"] = json.dumps(listed).encode()
        found[f"{API}/{kind}?per_page=100&page=2"] = b"[]"
    for ref in ("main", "v1", NEWEST[:7]):
        found[f"{SITE}/zipball/{ref}"] = packed(folder)
    found[f"https://weights.example/lenet-{digits}.pth"] = weights
    return found


# %% tags=["host"]
class Host:
    """A server on this machine that gets all requests of torch.hub, inside a `with`.

    From request number `cut` on there is no network; with `half`, the answer to it
    breaks off in the middle. `silent`: no answer ever comes. `asked`: the addresses.
    """

    def __init__(self, pages: dict, *, cut: int = 0, half=False, silent=False):
        self.pages = pages
        self.cut = cut
        self.half = half
        self.silent = silent
        self.asked = []
        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), answers(self))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.patched = patch.object(torch.hub, "urlopen", self.open)

    def open(self, request):
        address = getattr(request, "full_url", request)
        self.asked.append(address)
        port = self.server.server_port
        if 0 < self.cut <= len(self.asked) and not self.half:
            port = 9  # nobody listens there
        path = address.removeprefix("https://")
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}")

    def __enter__(self):
        self.thread.start()
        self.patched.start()
        return self

    def __exit__(self, *_):
        self.patched.stop()
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def answers(host: Host) -> type[BaseHTTPRequestHandler]:
    """The class whose objects answer the requests of a host."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if host.silent:
                host.over.wait()
                return
            page = host.pages.get(f"https:/{self.path}")
            if page is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            broken = host.half and len(host.asked) == host.cut
            self.wfile.write(page[: len(page) // 2] if broken else page)

        def log_message(self, *_):
            pass

    return Answer


# %% tags=["attempt"]
def attempt(call, host: Host, cache: Path) -> str:
    """What a call of torch.hub says, "" if it succeeds, with the hub in that folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(cache)
    quiet = contextlib.redirect_stdout(io.StringIO())
    modules = patch.dict(sys.modules)  # as in a new process
    with host, quiet, modules:
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            torch.hub.set_dir(before)
    return ""


def load(ref: str = "", **how):
    """A call that loads the LeNet with its weights."""
    how = {"trust_repo": True, "verbose": False, "pretrained": True} | how
    return lambda: torch.hub.load(f"reader/networks{ref}", "lenet", **how)


def held(cache: Path) -> list[str]:
    """Folders and files of a hub's cache, those of checkpoints one by one."""
    top = [path.name for path in cache.iterdir() if path.name != "checkpoints"]
    return sorted(top + [path.name for path in cache.glob("checkpoints/*")])


# %% [markdown]
# ## Request by request

# %%
known = pages(folder / "here", weights, digits)
host = Host(known)
said = attempt(load(), host, folder / "first")
REASONS = (
    "is the branch main there?",
    "is it a branch of this repository, not of a fork?",
    "the repository as a ZIP archive",
    "the file of weights",
)
claim(said == "", "the stand-in gives what load needs")
claim(len(host.asked) == len(REASONS), "load with weights asks four times")
record("requests.all", len(host.asked))

# %% tags=["trace"]
table(
    [
        (i, f"{a.removeprefix('https://')}", why, len(known[a]))
        for i, (a, why) in enumerate(zip(host.asked, REASONS), start=1)
    ],
    ("request", "address", "to learn", "bytes"),
)

# %%
claim(
    held(folder / "first")
    == [f"lenet-{digits}.pth", "reader_networks_main", "trusted_list"],
    "the cache holds the repository, the weights and the list of the trusted",
)


# %% tags=["asked"]
def ask(told: dict) -> None:
    """Put what `list` and `help` say of the hub into a dictionary."""
    repository = "reader/networks"
    told["list"] = torch.hub.list(repository, trust_repo=True, verbose=False)
    told["help"] = torch.hub.help(repository, "lenet", trust_repo=True)


# %%
told = {}
with contextlib.redirect_stderr(io.StringIO()):
    said = attempt(lambda: ask(told), Host(known), folder / "first")
claim(said == "" and told["list"] == ["lenet"], "the hub lists its one entry point")

# %% tags=["entries"]
table(
    [("list", ", ".join(told["list"])), ("help, for lenet", told["help"])],
    ("call", "gives"),
)

# %% [markdown]
# ## The network goes away


# %% tags=["lost"]
def lost(number: int, known: dict, cache: Path, *, half=False, **how) -> tuple:
    """Lose the network at a request: what load says and leaves; and the next one."""
    first = attempt(load(**how), Host(known, cut=number, half=half), cache)
    return first, held(cache), attempt(load(**how), Host(known), cache)


# %%
cuts = [lost(n, known, folder / f"cut{n}") for n in (1, 2, 3, 4)]
claim(all(first for first, _, _ in cuts), "without a network each first load fails")
claim(not any(again for _, _, again in cuts), "with it again each next load succeeds")
claim(
    [("reader_networks_main" in left) for _, left, _ in cuts]
    == [False, False, False, True],
    "only the repository that came whole stays",
)

# %%
halves = [lost(n, known, folder / f"half{n}", half=True) for n in (2, 3, 4)]
checked = lost(4, known, folder / "checked", half=True, check_hash=True)
claim(all(first for first, _, _ in [*halves, checked]), "half an answer fails, too")
claim(
    [bool(again) for _, _, again in halves] == [False, False, True], "half weights stay"
)
claim(f"lenet-{digits}.pth" in halves[2][1], "half the file lies under its full name")
claim("invalid hash" in checked[0] and checked[2] == "", "a check of the hash mends it")
late = attempt(load(check_hash=True), Host(known), folder / "half4")
claim(late != "", "a half file that is in the cache already passes the check")

# %%
NAMES = ("which branch", "of this repository", "ZIP archive", "weights")


def outcome(first: str, left: list[str], again: str) -> tuple[str, str, str]:
    """The three parts of `lost`, short enough for a table."""
    kept = [name for name in left if name != "trusted_list"]
    kept = ["main.zip, half" if name == "main.zip" else name for name in kept]
    return (
        first.partition(":")[0],
        ", ".join(kept) or "nothing",
        "fails" if again else "works",
    )


# %% tags=["cuts"]
numbered = [f"{i}, {name}" for i, name in enumerate(NAMES, start=1)]
rows = [(f"cut from {name}", *outcome(*cut)) for name, cut in zip(numbered, cuts)]
rows += [(f"half of {name}", *outcome(*cut)) for name, cut in zip(numbered[1:], halves)]
rows += [(f"half of {numbered[3]}, check_hash", *outcome(*checked))]
table(rows, ("request", "error", "left in the cache", "next load"))

# %% [markdown]
# ## A cache, and what is asked although it is full

# %% tags=["refs"]
OLDER = "c0ffee7"  # a commit of main to which neither branch nor tag points
known[f"{SITE}/zipball/{OLDER}"] = known[f"{SITE}/zipball/main"]


def counts(ref: str, known: dict, cache: Path, **how) -> tuple[list[int], list[str]]:
    """Requests of a first load, a second, one without a network; and what each says."""
    hosts = [Host(known), Host(known), Host(known, cut=1)]
    said = [attempt(load(ref, **how), host, cache) for host in hosts]
    return [len(host.asked) for host in hosts], said


# %%
REFS = {
    "none": "",
    "branch main": ":main",
    "tag v1": ":v1",
    "newest commit": f":{NEWEST[:7]}",
    "0.10, as in the list": ":0.10",
    "older commit": f":{OLDER}",
}
asked = {
    name: counts(ref, known, folder / f"ref-{i}")
    for i, (name, ref) in enumerate(REFS.items())
}
asked["older commit, not validated"] = counts(
    f":{OLDER}", known, folder / "ref-unchecked", skip_validation=True
)

# %%
works = [name for name, (_, said) in asked.items() if not any(said)]
fails = [name for name in asked if name not in works]
claim(fails == ["0.10, as in the list", "older commit"], "these two refs are not found")
claim(all("Cannot find" in asked[name][1][0] for name in fails), "load says so")
claim(asked["none"][0][1] == 1, "without a ref a full cache asks once")
claim(all(asked[n][0][1:] == [0, 0] for n in works if n != "none"), "with a ref, never")
claim(asked["none"][1][2] == "", "without a network the cache is used")

# %% tags=["refs-table"]
words = {True: "from the cache", False: "fails"}
table(
    [
        (
            name,
            n[0],
            n[1] if not said[0] else "",
            words[not said[2]] if not said[0] else "not found",
        )
        for name, (n, said) in asked.items()
    ],
    ("ref", "requests, first load", "second load", "without a network"),
)

# %% [markdown]
# ## Nothing waits for ever
#
# `torch.hub` sets no time limit. One for all sockets is Python's.


# %% tags=["limit"]
@contextlib.contextmanager
def time_limit(seconds: float):
    """No answer may take longer, inside the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# %%
with time_limit(0.3):
    silent = attempt(load(), Host(known, silent=True), folder / "silent")
claim(silent.startswith("TimeoutError"), "a silent host ends in a TimeoutError")

# %% [markdown]
# ## Whose code runs


# %% tags=["trust"]
def answering(answer: str, call, host: Host, cache: Path) -> tuple[str, int]:
    """What a call says when the reader answers so, and how often it asks the reader."""
    with patch("builtins.input", return_value=answer) as asked:
        said = attempt(call, host, cache)
    return said, asked.call_count


# %%
first = answering("n", load(trust_repo="check"), Host(known), folder / "trust")
agreed = answering("y", load(trust_repo="check"), Host(known), folder / "trust")
later = answering("n", load(trust_repo="check"), Host(known), folder / "trust")
claim(first == ("Exception: Untrusted repository.", 1), "no: nothing is loaded")
claim(agreed == ("", 1) and later == ("", 0), "yes: asked once, never again")

# %% [markdown]
# The same repository, some days later: somebody has added two lines to its `hubconf.py`.

# %% tags=["changed"]
ADDED = """
from pathlib import Path
Path("{file}").write_text("code of the hub ran")
"""
mark = folder / "mark"
changed = HUBCONF.replace("{digits}", digits) + ADDED.replace("{file}", str(mark))
write_repository(folder / "there", changed)
newer = pages(folder / "there", weights, digits)


# %%
def listing() -> list[str]:
    return torch.hub.list("reader/networks", force_reload=True, verbose=False)


# %%
said, prompts = answering("n", listing, Host(newer), folder / "trust")
claim(said == "" and prompts == 0, "nobody is asked about the change")
claim(mark.exists(), "to list a hub runs its code")

# %% [markdown]
# Weights are a pickle: a list of calls that the reader makes.


# %% tags=["pickle"]
class Trap:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


trap = saved({"weight": Trap(folder / "sprung")})
trapped = pages(folder / "here", trap, digits)

# %%
refused = attempt(load(weights_only=True), Host(trapped), folder / "refused")
claim("Weights only load failed" in refused, "weights_only refuses the trap")
claim(not (folder / "sprung").exists(), "and has called nothing")
ran = attempt(load(), Host(trapped), folder / "ran")
claim((folder / "sprung").exists(), "by default the trap is sprung")
record("ran", ran.partition(":")[0])

# %% [markdown]
# ## DeepLabV3, which the list loads
#
# Atrous convolution by hand: three weights that look at every second number.

# %% tags=["by-hand"]
x = torch.tensor([1.0, 2, 4, 8, 16, 32, 64])
kernel = torch.tensor([1.0, 1, 1])
F.conv1d(x[None, None], kernel[None, None], dilation=2).flatten()

# %%
apart = [1 + 4 + 16, 2 + 8 + 32, 4 + 16 + 64]
claim(
    F.conv1d(x[None, None], kernel[None, None], dilation=2).flatten().tolist() == apart,
    "each output adds three numbers that stand two apart",
)

# %% alt="Three rows of thirteen dots. In each, three dots are filled, with lines to one dot above: neighbours at rate 1, two apart at rate 2, four apart at rate 4." tags=["atrous-figure"]
_, axes = plt.subplots(3, 1, figsize=(5, 3.4))
for axis, rate in zip(axes, (1, 2, 4)):
    for i in range(-6, 7):
        used = i in (-rate, 0, rate)
        axis.plot(i, 0, "o", color=plots.COLOURS[0], mfc=None if used else "none")
        if used:
            axis.plot([i, 0], [0, 1], color=plots.QUIET, zorder=0)
    axis.plot(0, 1, "o", color=plots.COLOURS[1])
    axis.set(ylim=(-0.4, 1.4), xlim=(-9.5, 6.5))
    axis.text(-9.4, 0.4, f"rate {rate}")
    axis.axis("off")


# %% tags=["network"]
def conv_norm(c_in: int, c_out: int, size: int, *, rate: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps height and width, batch norm, ReLU."""
    padding = rate * (size // 2)
    conv = nn.Conv2d(c_in, c_out, size, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class ImageLevel(nn.Module):
    """What the whole image says, at each place (Chen et al. 2017, section 3.3)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.project = conv_norm(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        mean = self.project(x.mean((2, 3), keepdim=True))  # (B, c_out, 1, 1)
        return mean.expand(-1, -1, H, W)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the same map at several rates, side by side.

    Chen et al. 2017, figure 5. (B, c_in, H, W) -> (B, c_out, H, W).
    """

    def __init__(self, c_in: int, c_out: int = 256, *, rates=(12, 24, 36)):
        super().__init__()
        wide = [conv_norm(c_in, c_out, 3, rate=rate) for rate in rates]
        branches = [conv_norm(c_in, c_out, 1), *wide, ImageLevel(c_in, c_out)]
        self.branches = nn.ModuleList(branches)
        self.project = conv_norm(len(branches) * c_out, c_out, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        side_by_side = torch.cat([branch(x) for branch in self.branches], dim=1)
        return self.dropout(self.project(side_by_side))


class DeepLabV3(nn.Module):
    """A score for each class at each pixel.

    trunk: (B, 3, H, W) -> (B, c_trunk, H / 8, W / 8).
    (B, 3, H, W) -> (B, num_classes, H, W). Chen et al. 2017, figure 5.
    """

    def __init__(self, trunk: nn.Module, c_trunk: int = 2048, *, num_classes: int = 21):
        super().__init__()
        self.trunk = trunk
        self.pyramid = Pyramid(c_trunk)
        self.mix = conv_norm(256, 256, 3)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.classifier(
            self.mix(self.pyramid(self.trunk(x)))
        )  # (B, K, H / 8, W / 8)
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear")


# %% tags=["trunk"]
def trunk(builder=models.resnet101, *, strides_kept: int = 1) -> nn.Sequential:
    """The stages of a torchvision ResNet, the last ones with rates in place of strides.

    strides_kept: how many of the last three stages halve the map; 3: the plain ResNet.
    """
    dilate = [False] * strides_kept + [True] * (3 - strides_kept)
    network = builder(replace_stride_with_dilation=dilate)
    return nn.Sequential(*list(network.children())[:-2])  # without mean and classifier


# %% tags=["trunk-shapes"]
noise = torch.randn(1, 3, 65, 97)
with torch.device("meta"):
    shapes = [trunk(strides_kept=kept)(noise.to("meta")).shape for kept in (3, 2, 1)]
table(
    [(32 // 2**i, str(tuple(shape))) for i, shape in enumerate(shapes)],
    ("pixels to one place", "shape of the last map"),
)

# %% [markdown]
# ## Checks

# %%
reference = models.segmentation.deeplabv3_resnet101(
    weights=None, weights_backbone=None, aux_loss=False
)
checks.randomise_norms(reference)
network = DeepLabV3(trunk())
checks.transplant(reference, network)


# %%
class Scores(nn.Module):
    """The scores of torchvision's network, which gives them in a dictionary."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]


# %%
seed(0)
noise = torch.randn(2, 3, 65, 97, device=device)
network.to(device)
reference.to(device)
deviation = checks.same_outputs(network, Scores(reference), noise)
record("deviation", deviation)

# %%
plain = trunk(strides_kept=3).to(device)
checks.transplant(network.trunk, plain)
with torch.no_grad():
    dense = network.trunk.eval()(noise)
    strided = plain.eval()(noise)
same_places = checks.deviation(dense[..., ::4, ::4], strided)
claim(same_places <= 1e-5, "at every fourth place the dense map is the strided one")
record("places.deviation", same_places)

# %%
seed(0)
wide = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)
zeros = nn.Conv2d(3, 4, 5, padding=2, bias=False)
zeros.weight.data.zero_()
zeros.weight.data[..., ::2, ::2] = wide.weight.data
image = torch.randn(1, 3, 12, 16)
record("zeros.deviation", checks.same_outputs(wide, zeros, image))
claim(
    25 * wide.weight.numel() == 9 * zeros.weight.numel(), "nine weights in place of 25"
)

# %%
rows = [
    ("the network, with torchvision's weights", f"{deviation:.0e}"),
    ("dense trunk at every fourth place, plain trunk", f"{same_places:.0e}"),
    (
        "rate 2, kernel of 5×5 with zeros",
        f"{checks.same_outputs(wide, zeros, image):.0e}",
    ),
]

# %% tags=["equal"]
table(rows, ("compared", "largest difference"))

# %%
META = models.segmentation.DeepLabV3_ResNet101_Weights.DEFAULT.meta
with torch.device("meta"):
    auxiliary = models.segmentation.fcn.FCNHead(1024, 21)
    on_meta = DeepLabV3(trunk())
    macs = counting.macs(on_meta, torch.empty(1, 3, 520, 520))
    auxiliary_macs = counting.macs(auxiliary, torch.empty(1, 1024, 65, 65))
parameters = counting.parameters(on_meta)
helper = counting.parameters(auxiliary)
claim(
    parameters + helper == META["num_params"],
    "with the helping head the published count",
)
record("parameters", parameters)
record("macs", macs)
record("auxiliary", helper)
record("published.parameters", META["num_params"])
record("published.gmacs", META["_ops"])

# %% tags=["count"]
parts = {
    "trunk": on_meta.trunk,
    "pyramid": on_meta.pyramid,
    "mix": on_meta.mix,
    "classifier": on_meta.classifier,
}
rows = [(name, counting.parameters(part)) for name, part in parts.items()]
table([*rows, ("all", parameters)], ("part", "parameters"))

# %%
both_macs = macs + auxiliary_macs
claim(round(both_macs / 1e9, 3) == META["_ops"], "with that head the published MACs")
record("auxiliary.macs", auxiliary_macs)

# %% [markdown]
# ## How many of nine weights meet the map


# %% tags=["valid"]
def weights_used(size: int, rate: int) -> Tensor:
    """How many of the 3x3 weights meet the map, at each of its size x size places."""
    ones = torch.ones(1, 1, size, size)
    kernel = torch.ones(1, 1, 3, 3)
    return F.conv2d(ones, kernel, padding=rate, dilation=rate)[0, 0]


# %%
SIDE = 65  # places of the last map, for an image of 513 pixels at a stride of 8
rates = list(range(1, 97))
used = torch.stack([weights_used(SIDE, rate) for rate in rates])
nine = (used == 9).float().mean((1, 2))
one = (used == 1).float().mean((1, 2))
record("nine.36", nine[rates.index(36)])
record("nine.12", nine[rates.index(12)])
claim(bool((one[rates.index(SIDE) :] == 1).all()), "from 65 on only the middle is left")
claim(nine[rates.index(36)] == 0, "at rate 36 nowhere all nine")

# %% alt="Two curves over the rate. The share of places with all nine weights falls from nearly 1 to 0 at about 33; the share with one weight only rises from 0 at about 33 to 1 at 65." tags=["valid-figure"]
_, axes = plt.subplots(figsize=(5, 2.8))
axes.plot(rates, nine)
axes.plot(rates, one)
axes.set(xlabel="rate", ylabel="share of the places")
plots.label_ends(axes, {"all nine": (8, nine[7].item()), "the middle": (96, 1.0)})
axes.set_axisbelow(True)

# %% alt="Four boxes in a row, joined by arrows: which branch, of this repository, ZIP archive, file of weights. Below the first two: nothing is kept; below the archive: the repository; below the file of weights: the weights." tags=["steps-figure"]
axes = diagrams.sheet(1.9)
heads = ("which\nbranch?", "of this\nrepository?", "ZIP\narchive", "file of\nweights")
left = (
    "nothing\nis kept",
    "nothing\nis kept",
    "repository\nis kept",
    "weights\nare kept",
)
nodes = {"load": diagrams.Node(2.5, 0.2, "torch.hub.load")}
for i, (head, kept) in enumerate(zip(heads, left)):
    x = 0.65 + 1.23 * i
    nodes[head] = diagrams.Node(x, 0.85, head, width=1.0)
    nodes[f"{head}{i}"] = diagrams.Node(x, 1.6, kept, colour=plots.COLOURS[1])
across = list(zip(heads, heads[1:]))
down = [(head, f"{head}{i}") for i, head in enumerate(heads)]
diagrams.draw(axes, nodes, across, down)

# %% [markdown]
# ## What the list shows
#
# With `PROFILE=full` the network comes from its hub, with weights. The list's `0.10` is no branch
# and no tag of that repository; `v0.10.0` is.


# %% tags=["from-the-list"]
def from_the_list(seconds: float = 20.0) -> nn.Module:
    """DeepLabV3 of pytorch/vision with its weights; needs a network."""
    repository = "pytorch/vision:v0.10.0"
    with time_limit(seconds):
        print(torch.hub.list(repository, trust_repo=True))
        return torch.hub.load(repository, "deeplabv3_resnet101", pretrained=True)


# %%
if PROFILE == "full":  # the same weights fit the trunk of this page
    checks.transplant(from_the_list().backbone, network.trunk)

# %% [markdown]
# ## Exercises

# %% tags=["solution-missing"]
NEEDY = HUBCONF.replace('["torch"]', '["torch", "surely_absent"]')
write_repository(folder / "needy", NEEDY.replace("{digits}", digits))
missing = attempt(
    lambda: torch.hub.load(str(folder / "needy"), "lenet", source="local"),
    Host({}),
    folder / "needy-cache",
)
missing

# %%
claim("Missing dependencies: surely_absent" in missing, "load names what is missing")

# %% tags=["solution-names"]
write_repository(folder / "other", HUBCONF.replace("LeNet", "OtherNet"))
(folder / "other" / "lenets.py").write_text("OtherNet = None")


def both() -> None:
    torch.hub.load(str(folder / "here"), "lenet", source="local")
    torch.hub.load(str(folder / "other"), "lenet", source="local")


clash = attempt(both, Host({}), folder / "clash")
clash.split(" (")[0]

# %%
claim("cannot import name 'OtherNet' from 'lenets'" in clash, "the first one's is used")


# %% tags=["solution-verified"]
def load_verified(archive: bytes, sha256: str, entry: str, cache: Path, **how):
    """Load from a repository's archive only if it is the one that was looked at."""
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise ValueError(
            f"the archive has the SHA-256 {found}, not {sha256}: not opened"
        )
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        opened.extractall(cache)
        top = opened.namelist()[0]
    return torch.hub.load(str(cache / top), entry, source="local", **how)


# %%
archive = known[f"{SITE}/zipball/main"]
sha256 = hashlib.sha256(archive).hexdigest()
mark.unlink()
good = attempt(
    lambda: load_verified(archive, sha256, "lenet", folder / "v"),
    Host({}),
    folder / "verified",
)
bad = attempt(
    lambda: load_verified(newer[f"{SITE}/zipball/main"], sha256, "lenet", folder / "w"),
    Host({}),
    folder / "verified",
)
claim(
    good == "" and "not opened" in bad and not mark.exists(), "the change does not run"
)

# %% [markdown]
# ## What we saw
#
# - A first load asks four times; half a file of weights stays in the cache unless its hash is checked.
# - A pinned ref asks nothing the second time; a hub's code runs when it is listed.
# - Rates in place of strides give the same numbers at the old places, and new ones in between.

# %%
temporary.cleanup()
