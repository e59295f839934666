"""safetensors by hand, the guard, the stand-in for the hub, of notebooks/hugging_face.py."""

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import zipfile

import httpx2
import huggingface_hub
import pytest
import safetensors
import torch
import transformers
from huggingface_hub import constants

from loader import NOTEBOOKS, definitions
from networks import close

net = definitions("hugging_face")


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    """No file in the reader's home, nothing printed by the libraries; put back afterwards."""
    bars = huggingface_hub.utils.are_progress_bars_disabled()
    levels = transformers.logging.get_verbosity(), huggingface_hub.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    with net.at_home(tmp_path / "home"):
        yield
    huggingface_hub.close_session()
    transformers.logging.set_verbosity(levels[0])
    huggingface_hub.logging.set_verbosity(levels[1])
    transformers.logging.enable_progress_bar()
    if not bars:
        huggingface_hub.utils.enable_progress_bars()


# ---- safetensors ---------------------------------------------------------------------------------


def file_of(header, numbers: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + numbers


def entry(first: int, last: int, shape, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_a_file_written_by_hand_is_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry(3, 5, [1], "I16"), "a": entry(0, 3, [3])}
    (tmp_path / "x").write_bytes(file_of(header, bytes([1, 2, 255, 0x34, 0x12])))
    found = net.read_safetensors(tmp_path / "x")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [1, 2, 255],
        "b": [0x1234],
    }
    assert found["b"].dtype == torch.int16


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_reader_and_writer_are_the_librarys(number, tmp_path):
    tensors = net.random_tensors(number)
    assert {tensor.dtype for tensor in tensors.values()} == set(net.DTYPES.values())
    data = safetensors.torch.save(tensors)
    (tmp_path / "x").write_bytes(data)
    assert net.same_bits(net.read_safetensors(tmp_path / "x"), safetensors.torch.load(data))
    assert net.same_bits(net.read_safetensors(tmp_path / "x"), tensors)
    assert net.write_safetensors(tensors) == data


def test_random_tensors_have_three_axes_and_all_bits_but_those_of_bool():
    drawn = [net.random_tensors(number) for number in range(8)]
    assert all(tensor.ndim == 3 for tensors in drawn for tensor in tensors.values())
    assert {size for tensors in drawn for t in tensors.values() for size in t.shape} == set(
        range(5)
    )
    bits = {
        name: {b for t in drawn for b in t[name].flatten().view(torch.uint8).tolist()}
        for name in ("bool", "u8", "i8", "f8_e4m3")
    }
    assert bits.pop("bool") == {0, 1}
    assert all(max(values) > 200 for values in bits.values())
    assert net.same_bits(net.random_tensors(3), drawn[3])
    assert not net.same_bits(drawn[2], drawn[3])


def test_scalars_empty_tensors_and_long_names(tmp_path):
    tensors = {
        "é" * 3: torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "t": torch.arange(6).reshape(2, 3).T.contiguous(),
    }
    (tmp_path / "x").write_bytes(net.write_safetensors(tensors))
    found = net.read_safetensors(tmp_path / "x")
    assert found["none"].shape == (0, 4) and found["é" * 3].shape == ()
    assert net.same_bits(found, tensors)
    assert net.same_bits(safetensors.torch.load_file(tmp_path / "x"), tensors)
    assert net.write_safetensors(tensors) == safetensors.torch.save(tensors)


def test_the_header_is_padded_and_the_numbers_are_in_order():
    pair = {"bias": torch.tensor([1.0, 2.0]), "a": torch.tensor([1], dtype=torch.int64)}
    data = net.write_safetensors(pair)
    header, start = net.read_header(io.BytesIO(data))
    assert start % 8 == 0 and data[:8] == (start - 8).to_bytes(8, "little")
    assert header["a"]["data_offsets"] == [0, 8] and header["bias"]["data_offsets"] == [8, 16]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "header up to 8, file of 0 bytes: not whole"),
        (b"\x01\x00", "header up to 9, file of 2 bytes: not whole"),
        (file_of({}, length=200), r"header up to 208, file of 10 bytes: not whole"),
        (file_of(b"PK\x03\x04 zip"), "no JSON: not a safetensors file"),
        (file_of(b"\xff\xfe"), "no JSON"),
        (file_of(b"[1, 2]"), "no JSON"),
        (file_of({"a": entry(0, 2, [2], "F4")}, b"12"), "a: numbers of kind F4"),
        (file_of({"a": entry(1, 3, [2])}, b"123"), "a begins at 1, not 0: hole or overlap"),
        (
            file_of({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"123"),
            "b begins at 1, not 2: hole or overlap",
        ),
        (file_of({"a": entry(0, 2, [3])}, b"12"), "a: 2 bytes, 3 needed"),
        (file_of({"a": entry(0, 2, [1], "F32")}, b"12"), "a: 2 bytes, 4 needed"),
        (file_of({"a": entry(0, 2, [2])}, b"1"), r"numbers up to 70, file of 69 bytes"),
        (file_of({"a": entry(0, 2, [2])}, b"123"), r"numbers up to 70, file of 71 bytes"),
    ],
)
def test_a_file_that_is_damaged_is_refused_with_a_reason(data, words):
    with pytest.raises(ValueError, match=words):
        net.read_header(io.BytesIO(data))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load(data)


def test_of_a_name_that_stands_twice_the_last_entry_counts(tmp_path):
    both = b'{"a": %s, "a": %s}'
    first, last = (json.dumps(entry(0, 1, [1], kind)).encode() for kind in ("U8", "I8"))
    (tmp_path / "x").write_bytes(file_of(both % (first, last), b"\xff"))
    assert net.read_safetensors(tmp_path / "x")["a"].tolist() == [-1]
    assert safetensors.torch.load_file(tmp_path / "x")["a"].tolist() == [-1]


def test_a_file_without_tensors_is_one(tmp_path):
    (tmp_path / "x").write_bytes(file_of({}))
    assert net.read_safetensors(tmp_path / "x") == {}


def test_one_tensor_is_read_without_the_others(tmp_path):
    tensors = {"a": torch.zeros(1000), "b": torch.ones(3), "c": torch.zeros(1000)}
    safetensors.torch.save_file(tensors, tmp_path / "x")
    with net.Counted(tmp_path / "x") as file:
        header, start = net.read_header(file)
        assert file.total == start
        assert net.read_tensor(file, header["b"], start).tolist() == [1, 1, 1]
        assert file.total == start + 12
        file.seek(0)
        assert len(file.read()) == file.total - start - 12 == (tmp_path / "x").stat().st_size


def test_same_bits_sees_each_difference():
    a = {"x": torch.tensor([0.0, 1.0]), "y": torch.tensor([float("nan")])}
    assert net.same_bits(a, {name: tensor.clone() for name, tensor in a.items()})
    assert not net.same_bits(a, a | {"x": torch.tensor([-0.0, 1.0])})
    assert not net.same_bits(a, a | {"x": torch.tensor([[0.0, 1.0]])})
    assert not net.same_bits(a, a | {"x": a["x"].view(torch.int32)})
    assert not net.same_bits(a, a | {"z": a["x"]}) and not net.same_bits(a, {"x": a["x"]})
    assert net.same_bits({"m": torch.eye(2)[:, :1]}, {"m": torch.tensor([[1.0], [0.0]])})


# ---- the guard -----------------------------------------------------------------------------------


def test_the_guard_refuses_and_counts_names_and_addresses_of_all_threads():
    server = socket.create_server(("127.0.0.1", 0))
    said = []

    def knock():
        try:
            socket.create_connection(server.getsockname(), timeout=1).close()
        except OSError as error:
            said.append(str(error))

    with net.GUARD as guard:
        with pytest.raises(OSError, match="the guard refuses socket.getaddrinfo"):
            socket.getaddrinfo("huggingface.co", 443)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as message, pytest.raises(OSError):
            message.sendto(b"x", ("127.0.0.1", 9))
        with socket.socket() as plain, pytest.raises(OSError, match="socket.connect"):
            plain.connect(server.getsockname())
        assert len(guard.tries) == 3
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as message, pytest.raises(OSError):
            message.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))
        with pytest.raises(OSError, match="the guard refuses socket.gethostbyname"):
            socket.gethostbyname("localhost")
        with pytest.raises(OSError, match="the guard refuses socket.gethostbyaddr"):
            socket.gethostbyaddr("127.0.0.1")
        assert len(guard.tries) == 6
        thread = threading.Thread(target=knock)
        thread.start()
        thread.join()
        assert len(guard.tries) == 7 and "the guard refuses" in said[0]
    knock()
    assert len(said) == 1 and len(guard.tries) == 7, "outside it lets everything pass"
    with net.GUARD:
        assert net.GUARD.tries == [], "it counts from nought each time"
    server.close()


def test_visit_skips_the_waits_of_the_hubs_library_only():
    scope = {"__name__": "huggingface_hub.pretended", "time": time}
    exec("def wait(): time.sleep(100); time.sleep(20.5)", scope)
    found = net.visit(scope["wait"])
    assert found == ([], 0, 120.5, "")
    before = time.monotonic()
    assert net.visit(lambda: time.sleep(0.05)).waited == 0
    assert time.monotonic() - before >= 0.05
    assert time.sleep.__name__ == "sleep", "it is put back"


def test_visit_tells_an_error_and_tries():
    found = net.visit(lambda: socket.getaddrinfo("huggingface.co", 443))
    assert found.tries == 1 and found.said == "OSError: the guard refuses socket.getaddrinfo"


# ---- the stand-in --------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """(files, folder) of a BERT of one layer in the form of the hub."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz."]
    folder = tmp_path / "small"
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(pieces), intermediate_size=16, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA small network.\n")
    return net.repository(folder), folder


def test_git_names_a_file():
    assert net.git_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert net.git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_large_files_go_by_their_sha256(small):
    files, folder = small
    weights = files["model.safetensors"]
    assert weights.digest == net.hashlib.sha256(weights.data).hexdigest()
    assert files["README.md"].digest == net.git_id((folder / "README.md").read_bytes())
    assert set(files) == {path.name for path in folder.iterdir()}


def asked(hub, method: str, path: str, **headers):
    """The answer of a hub, its body read."""
    answer = hub.answer(httpx2.Request(method, f"https://huggingface.co{path}", headers=headers))
    answer.read()
    return answer


def test_the_hub_answers_as_the_real_one():
    file = net.File(b"0123456789", "d" * 40)
    hub = net.Hub({"x.txt": file})
    path = f"/reader/minilm/resolve/{hub.COMMIT}/x.txt"
    head = asked(hub, "HEAD", path)
    assert head.headers["etag"] == f'"{"d" * 40}"' and head.headers["content-length"] == "10"
    assert head.headers["x-repo-commit"] == hub.COMMIT and head.content == b""
    whole = asked(hub, "GET", path)
    rest = asked(hub, "GET", path, Range="bytes=4-")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert (rest.status_code, rest.content) == (206, b"456789")
    absent = asked(hub, "HEAD", path.replace("x.txt", "y.txt"))
    assert absent.status_code == 404 and absent.headers["x-error-code"] == "EntryNotFound"
    assert absent.headers["x-repo-commit"] == hub.COMMIT
    assert asked(hub, "GET", "/reader/minilm/raw/main/x.txt").status_code == 404
    about = asked(hub, "GET", "/api/models/reader/minilm")
    assert about.status_code == head.status_code == 200 and about.json()["sha"] == hub.COMMIT
    for name in ("main", hub.COMMIT):
        answer = asked(hub, "GET", f"/api/models/reader/minilm/tree/{name}")
        (listed,) = answer.json()
        assert answer.status_code == 200
        assert listed == {"type": "file", "path": "x.txt", "size": 10, "oid": "d" * 40}
    gone = asked(hub, "GET", "/api/models/reader/minilm/tree/main/templates")
    assert gone.status_code == 404 and gone.headers["x-error-code"] == "EntryNotFound"
    assert hub.asked[0] == f"HEAD {path}" and len(hub.asked) == 9


def test_a_broken_answer_gives_half_of_what_is_left():
    file = net.File(b"0123456789", "d" * 64)
    hub = net.Hub({"model.safetensors": file, "other": file}, broken=1)
    path = f"/reader/minilm/resolve/{hub.COMMIT}/"
    assert asked(hub, "GET", f"{path}other").content == file.data
    with pytest.raises(httpx2.RemoteProtocolError):
        asked(hub, "GET", f"{path}model.safetensors")
    rest = asked(hub, "GET", f"{path}model.safetensors", Range="bytes=4-")
    assert rest.content == b"456789" and rest.status_code == 206
    half = net.half(file.data, 4)
    assert next(half) == b"456"
    with pytest.raises(httpx2.RemoteProtocolError):
        next(half)


def test_what_is_loaded_is_used_and_saved(small, monkeypatch):
    _, folder = small
    used, saved = [], []
    names = net.work.__globals__
    monkeypatch.setitem(names, "sentence_vectors", lambda network, *_: used.append(network))
    monkeypatch.setattr(
        transformers.BertModel, "save_pretrained", lambda network, _: saved.append(network)
    )
    net.work(folder)
    assert len(used) == 1 and used == saved and not used[0].training


def test_only_a_load_by_name_online_asks(small, tmp_path):
    files, folder = small
    cache = tmp_path / "cache"
    by_name = net.by_name(cache)
    first = net.visit(by_name, net.Hub(files))
    second = net.visit(by_name, net.Hub(files))
    pinned = net.visit(net.by_name(cache, revision=net.Hub.COMMIT), net.Hub(files))
    assert first.said == second.said == pinned.said == "" and first.tries == second.tries == 0
    assert len(first.asked) > len(second.asked) > len(pinned.asked) > 0
    silent = [
        net.by_name(cache, local_files_only=True),
        net.offline(by_name),
        lambda: net.work(folder),
    ]
    for call in silent:
        assert net.visit(call, net.Hub(files)) == ([], 0, 0, "")
        assert net.visit(call) == ([], 0, 0, "")
    assert constants.HF_HUB_OFFLINE is False or os.environ.get("HF_HUB_OFFLINE")
    lost = net.visit(by_name)
    assert lost.tries > 0 and lost.waited > 30 and lost.said == ""
    assert net.absent(second.asked, files) == [] != net.absent(first.asked, files)


def test_an_empty_cache_without_network_says_what_to_do(tmp_path):
    gone = net.visit(net.by_name(tmp_path / "a"))
    off = net.visit(net.offline(net.by_name(tmp_path / "a")))
    assert "Check your internet connection" in gone.said and "offline mode" in off.said
    assert gone.tries > 0 == off.tries and off.waited == 0


def test_absent_are_the_files_that_were_asked_for_in_vain():
    files = {"a.json": net.File(b"", "")}
    base = "/reader/minilm/resolve/main"
    asked = [f"HEAD {base}/b.txt", f"GET {base}/a.json", "GET /api/models/x/tree", f"HEAD {base}/a"]
    assert net.absent(asked, files) == ["a", "b.txt"]


def test_a_broken_answer_is_taken_up_and_a_dead_host_leaves_no_piece(small, tmp_path):
    files, _ = small
    once = net.visit(net.snapshot(tmp_path / "once"), net.Hub(files, broken=1))
    assert once.said == "" and once.waited == 1
    assert net.whole(tmp_path / "once") == (len(files), 0)
    assert net.altered(tmp_path / "once") == []
    dead = net.visit(net.snapshot(tmp_path / "dead"), net.Hub(files, broken=99))
    assert dead.said.startswith("RemoteProtocolError")
    left, pieces = net.whole(tmp_path / "dead")
    assert 0 < left < len(files) and pieces == 0
    local = net.visit(net.snapshot(tmp_path / "dead", local_files_only=True))
    assert "model.safetensors" in local.said and local.tries == 0
    again = net.visit(net.snapshot(tmp_path / "dead"), net.Hub(files))
    assert again.said == "" and net.whole(tmp_path / "dead") == (len(files), 0)


def test_whole_counts_pieces(tmp_path):
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for name in ("aa", "bb", "cc.1234.incomplete"):
        (blobs / name).touch()
    assert net.whole(tmp_path) == (2, 1)


def test_what_is_left_of_the_weights(tmp_path):
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "aa").touch()
    assert net.weights_left(tmp_path) == "nothing"
    (blobs / f"{net.MODEL_SHA256}.1234.incomplete").touch()
    assert net.weights_left(tmp_path) == "a piece"
    (blobs / net.MODEL_SHA256).touch()
    assert net.weights_left(tmp_path) == "the file"


def test_one_bit_is_found_by_the_digest_alone(small, tmp_path):
    files, _ = small
    for name in ("model.safetensors", "README.md"):
        true = files[name]
        bad = net.File(net.flipped(true.data, 8 * len(true.data) - 5), true.digest)
        fetched = net.visit(net.snapshot(tmp_path / name), net.Hub(files | {name: bad}))
        assert fetched.said == "" and net.altered(tmp_path / name) == [name]


def test_a_flipped_bit_by_hand():
    assert net.flipped(b"\x00\x00\x00", 10) == b"\x00\x04\x00"
    assert net.flipped(b"\x01", 0) == b"\x00"
    assert net.flipped(bytes(9), 64) == bytes(8) + b"\x01"
    data = bytes(range(50))
    assert net.flipped(net.flipped(data, 77), 77) == data != net.flipped(data, 77)


def test_telemetry_is_one_more_request(small, tmp_path, monkeypatch):
    module = pytest.importorskip("huggingface_hub.utils._detect_agent")
    monkeypatch.setattr(module, "_registry", None)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"))
    assert constants.HF_HUB_DISABLE_TELEMETRY is True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    found = net.visit(net.snapshot(tmp_path / "cache"), net.Hub(small[0]))
    assert found.said == "" and "GET /api/agent-harnesses" in found.asked


def test_nothing_is_kept_outside_the_folder(tmp_path):
    assert str(tmp_path / "home" / "hub") == constants.HF_HUB_CACHE
    assert str(tmp_path / "home") == constants.HF_HOME
    assert str(tmp_path / "home" / "token") == constants.HF_TOKEN_PATH
    assert constants.HF_HUB_DISABLE_XET is True


OUTSIDE = """
import sys
sys.path[:0] = [{tests!r}, {notebooks!r}]
from pathlib import Path
from loader import definitions
net = definitions("hugging_face")
net.transformers.logging.disable_progress_bar()
net.work(Path(sys.argv[1]))
net.offline(net.by_name(Path(sys.argv[2])))()
print("done")
"""


def test_it_works_where_there_is_no_network_at_all(small, tmp_path):
    """Seen from outside, sockets of other languages too: a namespace without any interface."""
    lone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        usable = subprocess.run([*lone, "true"], capture_output=True).returncode == 0
    except OSError:
        usable = False
    if not usable:
        pytest.skip("unshare --net is not allowed here")
    files, folder = small
    assert net.visit(net.snapshot(tmp_path / "cache"), net.Hub(files)).said == ""
    code = OUTSIDE.format(tests=str(NOTEBOOKS.parent / "tests"), notebooks=str(NOTEBOOKS))
    command = [*lone, sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-2000:]


# ---- networks ------------------------------------------------------------------------------------


def test_the_mean_leaves_the_padding_out(small):
    _, folder = small
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    found = net.sentence_vectors(network, tokenizer, ["a b c.", "d."])
    for i, sentence in enumerate(("a b c.", "d.")):
        with torch.no_grad():
            hidden = network(**tokenizer(sentence, return_tensors="pt")).last_hidden_state
        mean = hidden[0].sum(0) / hidden.shape[1]
        close(found[i], mean / mean.norm())
    close(found.norm(dim=-1), torch.ones(2))


def test_our_network_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    network = net.LeNet(net.LeNetConfig(num_classes=7)).eval()
    network.save_pretrained(tmp_path / "net")
    transformers.AutoConfig.register("lenet-of-this-page", net.LeNetConfig, exist_ok=True)
    transformers.AutoModel.register(net.LeNetConfig, net.LeNet, exist_ok=True)
    again = transformers.AutoModel.from_pretrained(tmp_path / "net").eval()
    x = torch.randn(2, 1, 28, 28)
    assert type(again) is net.LeNet and torch.equal(network(x), again(x))
    assert network(x).shape == (2, 7) and net.LeNetConfig().num_classes == 10
    assert sum(p.numel() for p in network.parameters()) == 156 + 2416 + 21_588 + 84 * 7 + 7
    kinds = [type(layer).__name__ for layer in network.layers]
    pooled = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*pooled, *pooled, "Flatten", "Linear", "ReLU", "Linear"]


def test_the_mixin_keeps_the_arguments(tmp_path, capsys):
    torch.manual_seed(0)
    network = net.PlainLeNet(num_classes=5).eval()
    network.save_pretrained(tmp_path / "net")
    again = net.PlainLeNet.from_pretrained(tmp_path / "net").eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(network(x), again(x)) and network(x).shape == (2, 5)
    assert json.loads((tmp_path / "net" / "config.json").read_text()) == {"num_classes": 5}
    assert net.PlainLeNet()(x).shape == (2, 10)


def test_shards_are_read_by_their_index(tmp_path):
    network = net.LeNet(net.LeNetConfig())
    network.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert net.same_bits(net.read_sharded(tmp_path), network.state_dict())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first = index["weight_map"].pop("layers.0.bias")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert first.endswith(".safetensors")
    with pytest.raises(ValueError, match=r"differ in \['layers.0.bias'\]"):
        net.read_sharded(tmp_path)


# ---- what can run --------------------------------------------------------------------------------


class Calls:
    """An object whose pickle makes a call when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_would_import(protocol):
    twice = [Calls(os.getenv, "a"), Calls(os.getenv, "b"), Calls(os.path.join, "os", "x")]
    data = pickle.dumps(twice, protocol=protocol)
    assert net.imports(data) == {"os.getenv", f"{os.path.__name__}.join"}
    assert net.imports(pickle.dumps([1, "os", {"system": 2.0}], protocol=protocol)) == set()


def test_names_from_the_memo_are_found():
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06getcwd\x94h\x00h\x01\x93."
    assert pickle.loads(data) is os.getcwd and net.imports(data) == {"os.getcwd"}
    long = b"\x80\x04\x8c\x02osr\x00\x00\x00\x00\x8c\x06getcwdq\x01j\x00\x00\x00\x00h\x01\x93."
    assert pickle.loads(long) is os.getcwd and net.imports(long) == {"os.getcwd"}
    text = b"(Vos\np0\nVgetcwd\np1\ng0\ng1\n\x93."
    assert net.imports(text) == {"os.getcwd"}
    inst = b"(ios\ngetcwd\n."
    assert net.imports(inst) == {"os.getcwd"}
    unknown = b"\x80\x04h\x07h\x08\x93."
    assert net.imports(unknown) == {"?.?"}
    assert net.imports(b"\x80\x04\x93.") == {"?.?"}
    decoy = b"\x80\x04\x8c\x02os\x8c\x06getcwd\x8c\x01x0\x93."
    assert pickle.loads(decoy) is os.getcwd and net.imports(decoy) == {"x.?"}


def test_the_trap_is_seen_refused_and_sprung(tmp_path):
    trap = net.Trap(tmp_path / "sprung")
    torch.save({"weight": torch.ones(2), "bias": trap}, tmp_path / "x.bin")
    torch.save({"weight": torch.ones(2)}, tmp_path / "y.bin")
    clean = net.checkpoint_imports(tmp_path / "y.bin")
    assert net.checkpoint_imports(tmp_path / "x.bin") - clean == {"os.makedirs"}
    assert clean == {
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch._utils._rebuild_tensor_v2",
    }
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "x.bin", weights_only=True)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").is_dir()


def test_a_checkpoint_is_looked_at_by_its_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data/0", b"numbers")
        archive.writestr("x/data.pkl", pickle.dumps(Calls(os.getenv, "a")))
    assert net.checkpoint_imports(tmp_path / "x.bin") == {"os.getenv"}


def test_code_of_a_repository_runs_only_with_consent(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    net.write_custom(tmp_path / "own", tmp_path / "mark")
    with pytest.raises(ValueError, match="contains custom code"):
        transformers.AutoConfig.from_pretrained(tmp_path / "own", trust_remote_code=False)
    assert not (tmp_path / "mark").exists()
    found = transformers.AutoConfig.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert (tmp_path / "mark").exists() and found.model_type == "own"
    assert type(found).__name__ == "OwnConfig"
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]
