"""The stand-in for GitHub, what torch.hub does with it, and DeepLabV3, of notebooks/torch_hub.py."""

import io
import os
import subprocess
import sys
import urllib.error
import zipfile

import pytest
import torch
from torch import nn
from torchvision import models

import networks
from loader import ROOT, definitions
from networks import close, on_meta, parameters_of

net = definitions("torch_hub")


# ---- the stand-in --------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """(pages, folder) of a hub whose weights are those of its LeNet."""
    scope = {}
    exec(net.NETWORKS, scope)
    torch.manual_seed(0)
    weights = net.saved(scope["LeNet"](10).state_dict())
    digits = net.hashlib.sha256(weights).hexdigest()[:8]
    net.write_repository(tmp_path / "hub", net.HUBCONF.replace("{digits}", digits))
    return net.pages(tmp_path / "hub", weights, digits), tmp_path


def test_the_archive_has_all_files_below_one_folder(hub):
    _, folder = hub
    with zipfile.ZipFile(io.BytesIO(net.packed(folder / "hub"))) as archive:
        names = archive.namelist()
        assert archive.read(names[1]).decode() == (folder / "hub" / "hubconf.py").read_text()
    top = "reader-networks-4f1c2ab/"
    assert names == [top, f"{top}hubconf.py", f"{top}lenets.py"]


def test_a_load_asks_in_this_order_and_has_the_weights(hub):
    pages, folder = hub
    host, given = net.Host(pages), []

    def load():
        given.append(torch.hub.load("reader/networks", "lenet", trust_repo=True, pretrained=True))

    assert net.attempt(load, host, folder / "cache") == ""
    tails = ["tree/main/", "branches?per_page=100&page=1", "zipball/main", ".pth"]
    assert [a.endswith(tail) for a, tail in zip(host.asked, tails, strict=True)] == [True] * 4
    close(given[0][0].weight, torch.load(io.BytesIO(pages[host.asked[3]]))["0.weight"])
    assert net.held(folder / "cache") == [
        host.asked[3].rpartition("/")[2],
        "reader_networks_main",
        "trusted_list",
    ]


def test_entries_are_listed_and_explained_and_helpers_are_not(hub):
    pages, folder = hub
    told = {}
    assert net.attempt(lambda: net.ask(told), net.Host(pages), folder / "cache") == ""
    assert told["list"] == ["lenet"] and told["help"].startswith("A small LeNet")


def test_of_list_and_help_only_help_says_that_the_cache_is_used(hub, capsys):
    pages, folder = hub
    for _ in range(2):
        assert net.attempt(lambda: net.ask({}), net.Host(pages), folder / "cache") == ""
    assert capsys.readouterr().err.count("Using cache found") == 2


def test_a_host_says_of_an_unknown_address_that_it_is_not_found():
    with net.Host({}) as host, pytest.raises(urllib.error.HTTPError, match="404") as caught:
        host.open(f"{net.SITE}/unknown")
    caught.value.close()


def test_a_hub_is_listed_anew_each_time(hub):
    pages, folder = hub
    hosts = [net.Host(pages), net.Host(pages)]
    said = [net.answering("y", net.listing, host, folder / "cache") for host in hosts]
    assert said == [("", 1), ("", 0)]
    assert [len(host.asked) for host in hosts] == [3, 3]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_without_a_network_from_a_request_on_the_next_load_works(number, hub):
    pages, folder = hub
    host = net.Host(pages, cut=number)
    assert net.attempt(net.load(), host, folder / "cache")
    assert len(host.asked) == number
    first, left, again = net.lost(number, pages, folder / "other")
    assert first and again == ""
    assert ("reader_networks_main" in left) == (number == 4)


def test_half_a_file_of_weights_stays_unless_its_hash_is_checked(hub):
    pages, folder = hub
    first, left, again = net.lost(4, pages, folder / "a", half=True)
    assert first and again and left[0].endswith(".pth")
    half = (folder / "a" / "checkpoints" / left[0]).read_bytes()
    (whole,) = [page for address, page in pages.items() if address.endswith(".pth")]
    assert half == whole[: len(whole) // 2]
    first, left, again = net.lost(4, pages, folder / "b", half=True, check_hash=True)
    assert "invalid hash" in first and again == "" and not left[0].endswith(".pth")


def test_only_the_answer_that_is_cut_is_half(hub):
    pages, folder = hub
    first, left, again = net.lost(3, pages, folder / "a", half=True)
    assert first.startswith("BadZipFile") and "main.zip" in left and again == ""
    assert net.outcome(first, left, again) == ("BadZipFile", "main.zip, half", "works")
    assert net.outcome("E: x", ["trusted_list"], "E: y") == ("E", "nothing", "fails")


@pytest.mark.parametrize(
    ("ref", "requests"),
    [("", [4, 1, 1]), (":main", [3, 0, 0]), (":v1", [5, 0, 0]), (":4f1c2ab", [3, 0, 0])],
)
def test_a_full_cache_is_asked_for_only_without_a_ref(ref, requests, hub):
    pages, folder = hub
    assert net.counts(ref, pages, folder / "cache") == (requests, [""] * 3)


def test_what_is_neither_branch_nor_tag_is_not_found(hub):
    pages, folder = hub
    requests, said = net.counts(":0.10", pages, folder / "cache")
    assert requests == [4, 4, 1] and "Cannot find 0.10" in said[0] and "refused" in said[2]


def test_a_silent_host_ends_at_the_limit_which_is_put_back(hub):
    pages, folder = hub
    with net.time_limit(0.2):
        said = net.attempt(net.load(), net.Host(pages, silent=True), folder / "cache")
        assert net.socket.getdefaulttimeout() == 0.2
    assert said.startswith("TimeoutError") and net.socket.getdefaulttimeout() is None


def test_no_server_is_left_and_no_address_leads_elsewhere(hub):
    pages, folder = hub
    before = torch.hub.urlopen
    folder_before = torch.hub.get_dir()
    host = net.Host(pages)
    net.attempt(net.load(), host, folder / "cache")
    assert torch.hub.urlopen is before and not host.thread.is_alive()
    assert torch.hub.get_dir() == folder_before
    assert host.server.socket.fileno() == -1 and "lenets" not in sys.modules


def test_the_reader_is_asked_once(hub):
    pages, folder = hub
    check = net.load(trust_repo="check")
    found = [net.answering(a, check, net.Host(pages), folder / "c") for a in ("n", "y", "n")]
    assert found == [("Exception: Untrusted repository.", 1), ("", 1), ("", 0)]


def test_the_trap_is_sprung_only_by_an_unguarded_load(tmp_path):
    file = net.saved({"weight": net.Trap(tmp_path / "sprung")})
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(io.BytesIO(file), weights_only=True)
    assert not (tmp_path / "sprung").exists()
    torch.load(io.BytesIO(file), weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_an_archive_that_nobody_has_looked_at_is_not_opened(hub):
    pages, folder = hub
    archive = pages[f"{net.SITE}/zipball/main"]
    sha256 = net.hashlib.sha256(archive).hexdigest()
    with pytest.raises(ValueError, match="not opened"):
        net.load_verified(archive + b" ", sha256, "lenet", folder / "no")
    assert not (folder / "no").exists()
    given = []
    call = lambda: given.append(  # noqa: E731
        net.load_verified(archive, sha256, "lenet", folder / "yes", num_classes=3)
    )
    assert (
        net.attempt(call, net.Host({}), folder / "cache") == "" and given[0][-1].out_features == 3
    )


def test_a_package_that_is_absent_is_named(hub):
    _, folder = hub
    net.write_repository(folder / "needy", net.NEEDY)
    with pytest.raises(RuntimeError, match="Missing dependencies: surely_absent"):
        torch.hub.load(str(folder / "needy"), "lenet", source="local")


def test_the_networks_of_this_book_are_a_hub():
    code = (
        "import torch\n"
        f"net = torch.hub.load({str(ROOT)!r}, 'smallnet', source='local', num_classes=7)\n"
        "print(net(torch.zeros(1, 3, 32, 32)).shape[1])\n"
        "import hubconf\n"
        "print([n for n in dir(hubconf) if callable(getattr(hubconf, n)) and n[0] != '_'])\n"
        "print(hubconf.resnet50.__name__, hubconf.resnet50.__doc__)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    classes, names, about = done.stdout.strip().splitlines()[-3:]
    from reproduction.networks import NETWORKS

    assert classes == "7" and sorted(NETWORKS) == eval(names)
    assert about.startswith("resnet50 (B, 3, 32, 32) -> (B, num_classes): ")


# ---- DeepLabV3 -----------------------------------------------------------------------------------


def reference(**how) -> nn.Module:
    return models.segmentation.deeplabv3_resnet101(
        weights=None, weights_backbone=None, aux_loss=False, **how
    )


def test_count():
    network = on_meta(lambda: net.DeepLabV3(net.trunk()))
    meta = models.segmentation.DeepLabV3_ResNet101_Weights.DEFAULT.meta
    helper = on_meta(models.segmentation.fcn.FCNHead, 1024, 21)
    assert parameters_of(network) == 58_630_997
    assert parameters_of(network) + parameters_of(helper) == meta["num_params"]
    macs = networks.macs_of(network, 1, 3, 520, 520) + networks.macs_of(helper, 1, 1024, 65, 65)
    assert round(macs / 1e9, 3) == meta["_ops"]


def test_its_outputs_are_torchvisions():
    torch.manual_seed(0)
    expected = net.checks.randomise_norms(reference(num_classes=5))
    found = net.DeepLabV3(net.trunk(), num_classes=5)
    net.checks.transplant(expected, found)
    x = torch.randn(2, 3, 41, 67)
    assert net.checks.same_outputs(found, net.Scores(expected), x) < 1e-5


@pytest.mark.parametrize(("kept", "step"), [(1, 4), (2, 2), (3, 1)])
def test_rates_in_place_of_strides_give_the_same_numbers_at_the_old_places(kept, step):
    torch.manual_seed(0)
    dense = net.checks.randomise_norms(net.trunk(models.resnet50, strides_kept=kept)).eval()
    plain = nn.Sequential(*list(models.resnet50().children())[:-2]).eval()
    net.checks.transplant(dense, plain)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        close(dense(x)[..., ::step, ::step], plain(x))


def test_the_pyramid_has_the_rates_of_the_paper():
    wide = net.Pyramid(3, 4).branches[1:4]
    assert [branch[0].dilation for branch in wide] == [(12, 12), (24, 24), (36, 36)]


def test_the_image_level_is_one_number_a_channel():
    torch.manual_seed(0)
    level = net.ImageLevel(3, 5).eval()
    x = torch.randn(2, 3, 4, 6)
    found = level(x)
    assert found.shape == (2, 5, 4, 6)
    close(found, found[..., :1, :1].expand_as(found))
    close(level(x.flip(2, 3)), found)


def test_at_a_rate_beyond_the_map_a_window_is_one_weight():
    torch.manual_seed(0)
    wide, point = net.conv_norm(3, 4, 3, rate=9), net.conv_norm(3, 4, 1)
    point[0].weight.data.copy_(wide[0].weight[..., 1:2, 1:2])
    x = torch.randn(2, 3, 8, 5)
    close(wide.eval()(x), point.eval()(x))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    pyramid = net.Pyramid(3, 4, rates=(1, 2))
    x = torch.randn(2, 3, 6, 6)
    share = (pyramid(x) == 0).float().mean()
    assert share > (pyramid.eval()(x) == 0).float().mean() + 0.1
    assert len(pyramid.branches) == 4 and pyramid.dropout.p == 0.5


def test_weights_used_by_hand():
    corner, edge, inside = 4, 6, 9
    expected = [[corner, edge, corner], [edge, inside, edge], [corner, edge, corner]]
    assert net.weights_used(3, 1).tolist() == expected
    assert (net.weights_used(4, 4) == 1).all()
    assert net.weights_used(5, 2)[2, 2] == 9 and net.weights_used(5, 2)[0, 2] == 6


def test_the_map_of_the_published_image_has_the_side_of_the_figure():
    layers = on_meta(net.trunk, models.resnet50)
    x = torch.empty(1, 3, 513, 513, device="meta")
    assert layers(x).shape[2:] == (net.SIDE, net.SIDE)


def test_it_runs_on_the_meta_device_and_keeps_the_size_of_the_image():
    network = on_meta(lambda: net.DeepLabV3(net.trunk(models.resnet50), num_classes=4))
    assert networks.runs_on_meta(network, 3, 3, 50, 71).shape == (3, 4, 50, 71)


def test_one_batch_is_fitted():
    torch.manual_seed(0)
    layers = nn.Sequential(net.conv_norm(3, 16, 3), nn.MaxPool2d(8))
    network = networks.without_dropout(net.DeepLabV3(layers, 16, num_classes=3))
    means = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    networks.learns(means, torch.randn(3, 3, 16, 16), rate=0.01, steps=30, K=3)
