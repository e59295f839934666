"""Formats, memory maps and the server that fails, of notebooks/data_sets.py."""

import csv
import hashlib
import json
import locale
import urllib.error
import urllib.request

import pyarrow
import pyarrow.parquet
import pytest

from loader import definitions

data_sets = definitions("data_sets")

ROWS = [
    {"id": "00007", "text": 'a, "b"', "words": 2, "answerable": True},
    {"id": "00008", "text": "Zoë", "words": 1, "answerable": False},
]


# ---- formats -------------------------------------------------------------------------------------


def test_json_and_text_have_a_line_for_each_row(tmp_path):
    data_sets.write_json(ROWS, tmp_path / "rows")
    lines = (tmp_path / "rows").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    data_sets.write_text(ROWS, tmp_path / "rows")
    assert (tmp_path / "rows").read_text(encoding="utf-8") == 'a, "b"\nZoë\n'


def test_csv_has_a_head_and_quotes_but_no_types(tmp_path):
    data_sets.write_csv(ROWS, tmp_path / "rows")
    with (tmp_path / "rows").open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    assert head == ["id", "text", "words", "answerable"]
    assert lines == [[str(value) for value in row.values()] for row in ROWS]
    data_sets.write_csv(ROWS[:1], tmp_path / "rows")
    assert len((tmp_path / "rows").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("kind", ["json", "csv", "text"])
def test_what_is_written_is_the_same_in_each_locale(kind, tmp_path):
    data_sets.WRITERS[kind](ROWS, tmp_path / "here")
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        data_sets.WRITERS[kind](ROWS, tmp_path / "elsewhere")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "elsewhere").read_bytes()


def test_parquet_and_arrow_give_back_rows_with_types(tmp_path):
    data_sets.write_parquet(ROWS, tmp_path / "rows")
    assert pyarrow.parquet.read_table(tmp_path / "rows").to_pylist() == ROWS
    data_sets.write_arrow(ROWS * 1200, tmp_path / "rows")
    with pyarrow.OSFile(str(tmp_path / "rows")) as file:
        batches = list(pyarrow.ipc.open_stream(file))
    assert [len(batch) for batch in batches] == [1000, 1000, 400]
    assert pyarrow.Table.from_batches(batches).to_pylist() == ROWS * 1200


@pytest.mark.parametrize("kind", ["json", "csv", "text", "parquet", "arrow"])
def test_each_format_is_read_by_datasets(kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    data_sets.WRITERS[kind](ROWS, tmp_path / f"rows.{kind}")
    found = datasets.load_dataset(
        kind,
        data_files=str(tmp_path / f"rows.{kind}"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    ).to_list()
    if kind == "text":
        assert found == [{"text": row["text"]} for row in ROWS]
    else:
        assert found == [row | {"id": int(row["id"])} if kind == "csv" else row for row in ROWS]


# ---- map and memory ------------------------------------------------------------------------------


def test_a_function_for_map_counts_letters_and_adds():
    assert data_sets.plus(0)({"text": "abc"}) == {"letters": 3}
    assert data_sets.plus(4)({"text": "abc"}) == {"letters": 7}


def test_arrow_files_are_counted_in_folders_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.arrow", "a/y.arrow", "a/b/z.arrow", "a/b/other.json"):
        (tmp_path / name).touch()
    assert data_sets.arrow_files(tmp_path) == 3


def test_a_mapped_file_is_resident_once_it_is_read(tmp_path):
    if not hasattr(data_sets.psutil.Process, "memory_maps"):
        pytest.skip("this system does not tell what is mapped")
    path = tmp_path.resolve() / "large"
    path.write_bytes(b"x" * 4_000_000)
    assert data_sets.resident(path) == 0
    mapped = pyarrow.memory_map(str(path))
    assert mapped.read_buffer().to_pybytes()[-1:] == b"x"
    assert data_sets.resident(path) == pytest.approx(4, rel=0.02)
    mapped.close()


def test_where_the_system_tells_nothing_no_memory_is_resident(monkeypatch, tmp_path):
    monkeypatch.setattr(data_sets.psutil, "Process", object)
    assert data_sets.resident(tmp_path) == 0


def test_what_arrow_holds_is_told_in_megabytes():
    before = data_sets.allocated()
    held = pyarrow.array(range(500_000), pyarrow.int64())
    assert data_sets.allocated() - before == pytest.approx(len(held) * 8 / 1e6, rel=0.1)


# ---- the server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    server = data_sets.serve()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def asked(server, way, **headers):
    address = f"http://127.0.0.1:{server.server_port}/{way}.bin"
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5)


@pytest.mark.parametrize(
    ("way", "length", "comes"),
    [
        ("right", 102_400, 102_400),
        ("page", 24, 24),
        ("other", 102_400, 102_400),
        ("cut", 102_400, 51_200),
        ("broken", 102_400, 51_200),
        ("huge", 10**15 + 102_400, 51_200),
    ],
)
def test_the_server_announces_and_sends(server, way, length, comes):
    with asked(server, way) as answer:
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) == length
        sent = b"".join(iter(lambda: answer.read1(2**16), b""))
    assert len(sent) == comes
    if way in ("right", "cut", "broken"):
        assert sent == data_sets.FILE[:comes]
    else:
        assert sent != data_sets.FILE[:comes] or way == "huge"
    assert server.asked[-1] == f"/{way}.bin"


def test_the_server_goes_on_where_it_is_asked_to(server):
    with asked(server, "broken", Range="bytes=51200-") as answer:
        assert answer.status == 206
        assert answer.read() == data_sets.FILE[51_200:]
    with asked(server, "right", Range="bytes=51200-") as answer:
        assert answer.status == 200 and answer.read() == data_sets.FILE


def test_the_server_forbids(server):
    with pytest.raises(urllib.error.HTTPError, match="403") as caught:
        asked(server, "forbidden")
    caught.value.close()


def test_the_server_logs_nothing(server, capfd):
    asked(server, "right").close()
    server.handle_error(None, ("127.0.0.1", 0))
    assert capfd.readouterr() == ("", "")


# ---- fetching ------------------------------------------------------------------------------------


def test_what_an_error_says_is_told_without_places():
    digest = hashlib.sha256(b"").hexdigest()
    error = OSError(
        f"x.bin could not be fetched: http://127.0.0.1:1/x.bin: its 3 bytes do not have the"
        f" SHA-256 {digest}. Place it as '/tmp/x.bin', or set DATA_ROOT"
    )
    assert data_sets.told_by(error) == "its 3 bytes do not have the SHA-256 e3b0c442…"
    error = OSError("10 bytes are missing, /tmp/a has room for 1,234")
    assert data_sets.told_by(error) == "10 bytes are missing, the folder has room for less"


def test_what_is_left_under_a_name(tmp_path):
    path = tmp_path / "x"
    assert data_sets.left(path) == "nothing"
    path.write_bytes(data_sets.FILE[:-1])
    assert data_sets.left(path) == "something else"
    path.write_bytes(data_sets.FILE)
    assert data_sets.left(path) == "the file"


@pytest.mark.parametrize(
    ("way", "naive", "careful"),
    [
        ("right", "the file", "the file"),
        ("page", "something else", "nothing"),
        ("cut", "something else", "nothing"),
        ("broken", "something else", "the file"),
        ("other", "something else", "nothing"),
        ("huge", "something else", "nothing"),
        ("forbidden", "nothing", "nothing"),
    ],
)
def test_what_both_ways_of_fetching_leave(server, tmp_path, monkeypatch, way, naive, careful):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("DATA_MIRROR", "http://127.0.0.1:9")
    address = f"http://127.0.0.1:{server.server_port}/{way}.bin"
    words, found = data_sets.tried(data_sets.by_urlretrieve, address, tmp_path / "naive.bin")
    assert found == naive
    assert (words == "done") == (way in ("right", "page", "other"))
    words, found = data_sets.tried(data_sets.by_place, address, tmp_path / "careful.bin")
    assert found == careful and (words == "done") == (careful == "the file")
    assert "http" not in words


def test_the_cautious_fetch_of_the_solution_keeps_only_the_right_file(server, tmp_path):
    base = f"http://127.0.0.1:{server.server_port}"
    expected = hashlib.sha256(data_sets.FILE).hexdigest()
    data_sets.cautious(f"{base}/right.bin", tmp_path / "a.bin", expected)
    assert data_sets.left(tmp_path / "a.bin") == "the file"
    assert not (tmp_path / "a.part").exists()
    with pytest.raises(ValueError, match=r"other\.bin is another file"):
        data_sets.cautious(f"{base}/other.bin", tmp_path / "b.bin", expected)
    assert data_sets.left(tmp_path / "b.bin") == "nothing"
