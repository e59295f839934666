"""Readers, cleaner, MinHash and the small language model of notebooks/wikipedia.py."""

import bz2
import gzip
import io
import math
import random
import struct
import zlib

import mwparserfromhell
import pyarrow
import pytest
import torch
import warcio
from pyarrow import parquet
from warcio.statusandheaders import StatusAndHeaders

from loader import definitions

wiki = definitions("wikipedia")


@pytest.fixture(autouse=True)
def same_start():
    random.seed(0)
    torch.manual_seed(0)


# ---- the dump ------------------------------------------------------------------------------------


def test_a_dump_is_read_as_it_was_written():
    pages = [("A & B", 0, "x < y && '''z'''\nü"), ("Talk:A", 1, ""), ("C", 0, "  two\n\n")]
    found = list(wiki.read_dump(wiki.write_dump(pages)))
    assert [number for number, *_ in found] == ["1", "2", "3"]
    assert [(title, int(space), words) for _, title, space, words in found] == pages


def test_a_dump_of_another_version_is_read_and_other_tags_are_passed_over():
    text = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><sitename>W'
        "</sitename></siteinfo><page><title>T</title><ns>0</ns><id>7</id><revision><id>90</id>"
        "<comment>c</comment><text>words</text></revision></page></mediawiki>"
    )
    assert list(wiki.read_dump(bz2.compress(text.encode()))) == [("7", "T", "0", "words")]


def test_pages_are_forgotten_when_they_have_been_read():
    pages = wiki.read_dump(wiki.write_dump([("A", 0, "first"), ("B", 0, "second")]))
    parents = []
    tree = wiki.ElementTree
    parsed = tree.iterparse

    def watched(file):
        for event, element in parsed(file):
            if element.tag.endswith("}page"):
                parents.append(element)
            yield event, element

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "iterparse", watched)
        assert [page[3] for page in pages] == ["first", "second"]
    assert [len(page) for page in parents] == [0, 0]


@pytest.mark.parametrize(
    ("space", "words", "expected"),
    [("0", "x", True), ("1", "x", False), ("0", "#REDIRECT [[A]]", False), ("0", "", True)],
)
def test_articles_are_of_the_main_namespace_and_no_redirects(space, words, expected):
    assert wiki.is_article(space, words) is expected


def test_the_tiny_wiki_has_twelve_articles():
    assert len(wiki.ARTICLES) == 12 and len(wiki.PAGES) == 16
    kept = [title for title, space, words in wiki.PAGES if wiki.is_article(str(space), words)]
    assert kept == list(wiki.ARTICLES)
    for title, wikitext in wiki.ARTICLES.items():
        assert f"'''{title.lower()}'''" in wikitext.lower()
    for title, inhabitants in {"Hollin": 212, "Aske": 78, "Upper Wem": 154, "Sel": 901}.items():
        wikitext = wiki.VILLAGES[title]
        assert "Orva]]" in wikitext and f"had {inhabitants} inhabitants" in wikitext
    cleaned = wiki.clean(wiki.village("Xan", 5, "Bo"))
    assert cleaned == (
        "Xan is a village in the Kingdom of Tarn on the Bo. At the census of 2011 the village had "
        "5 inhabitants."
    )


# ---- from wikitext to text -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ("", []),
        ("a{{b}}c", [(1, 6)]),
        ("{{a{{b}}c}}", [(0, 11)]),
        ("{{a}}{{b}}", [(0, 5), (5, 10)]),
        ("{{a}} {{b {{c}}", [(0, 5), (10, 15)]),  # the second has no end
        ("}}{{a}}", [(2, 7)]),
        ("{{a{{b}}{{c}}}}", [(0, 15)]),
    ],
)
def test_the_outermost_pairs_are_found(words, pairs):
    assert wiki.nested(words, "{{", "}}") == pairs


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("a<!-- b\nc -->d", "ad"),
        ("a<ref>b</ref>c<ref name=x/>d<ref name='y'>e\nf</ref>", "acd"),
        ("a<gallery mode=packed>\nFile:X.jpg|y\n</gallery>b", "ab"),
        ("<references /> a", "a"),
        ("a {{b|c={{d}}|e}} f", "a  f"),
        ("a {{b f", "a {{b f"),
        ("{|\n! h\n|-\n| {{x|}}\n{|\n|in\n|}\n|}\nend", "end"),
        ("[[File:A.jpg|thumb|A [[b]] c]]d [[image:x]] [[Category:C]]", "d"),
        ("[[profile:A]] [[a|b]]s [[c d]]", "profile:A bs c d"),
        ("see [https://a.b/c the page], [http://x] and https://y", "see the page,  and https://y"),
        ("== Head ==\n=== Two===\n'''bold''' ''it'' don't", "Head\nTwo\nbold it don't"),
        ("* one\n** two\n# three\n: four\n; five * six", "one\ntwo\nthree\nfour\nfive * six"),
        ("a<br />b<small>c</small>&nbsp;&amp;&lt;", "abc\xa0&<"),
        ("1 = 2 and a == b", "1 = 2 and a == b"),
    ],
)
def test_markup_goes_and_words_stay(wikitext, expected):
    assert wiki.clean(wikitext) == expected


def some_wikitext() -> str:
    """Words with random markup, some of it nested."""

    def piece(depth: int) -> str:
        inner = [lambda: random.choice(("sea", "isle", "a river", "12"))]
        if depth:
            inner += [
                lambda: f"{{{{t|x={piece(depth - 1)}|{piece(depth - 1)}}}}}",
                lambda: f"<ref name='n'>{piece(depth - 1)}</ref>",
                lambda: f"<!-- {piece(0)} -->",
                lambda: f"[[File:A.png|thumb|{piece(depth - 1)} [[b]]]]",
                lambda: f"[[{piece(0)}|{piece(0)}]]",
                lambda: f"'''{piece(0)}'''",
                lambda: f"\n== {piece(0)} ==\n",
                lambda: f"\n* {piece(0)}\n",
                lambda: f"\n{{|\n| {piece(depth - 1)}\n|}}\n",
                lambda: f"[https://x.org/y {piece(0)}]",
                lambda: "[[Category:C]]",
            ]
        return random.choice(inner)()

    return " ".join(piece(2) for _ in range(12))


def test_the_cleaner_keeps_the_words_that_the_library_keeps():
    wikitexts = [some_wikitext() for _ in range(150)] + list(wiki.ARTICLES.values())
    for wikitext in wikitexts:
        assert wiki.clean(wikitext).split() == wiki.by_library(wikitext).split()


def test_the_library_removes_media_and_references_in_each_other():
    wikitext = "{|\n| a<ref>b</ref>\n|}\n[[File:A|[[image:b]] c]] d [[category:e]] [[f|g]]"
    assert wiki.by_library(wikitext).split() == ["d", "g"]
    assert wiki.by_library("<gallery>\nFile:A.jpg|b\n</gallery>c") == "c"
    assert "Category" in mwparserfromhell.parse(wikitext + "[[Category:C]]").strip_code()


def test_amounts_in_templates_can_be_kept():
    wikitext = "is {{convert|2.5|km|mi}} long, {{val|310|u=m3/s}}, {{x|1|km|mi}}"
    assert wiki.with_numbers(wikitext) == "is 2.5 km long, 310 m3/s, {{x|1|km|mi}}"


# ---- parquet -------------------------------------------------------------------------------------


def written(columns, **how) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "none"},
        {"compression": "gzip"},
        {"compression": "zstd", "row_group_size": 17},
        {"use_dictionary": False},
        {"data_page_size": 64, "write_batch_size": 5},
        {"dictionary_pagesize_limit": 40, "write_batch_size": 5},
    ],
)
@pytest.mark.parametrize("different", [1, 2, 7, 90])
def test_columns_are_those_of_pyarrow(how, different):
    rows = [f"wort {random.randrange(different)} ü" for _ in range(300)]
    columns = {"id": [str(i) for i in range(300)], "text": rows, "empty": [""] * 300}
    data = written(columns, **how)
    for name, values in columns.items():
        assert wiki.read_column(data, name) == values
    assert wiki.footer(data)[3] == 300


def test_only_the_first_row_groups_are_read():
    data = written({"a": [str(i) for i in range(10)]}, row_group_size=4)
    assert wiki.read_column(data, "a", groups=2) == [str(i) for i in range(8)]
    assert wiki.read_column(data, "a", groups=5) == [str(i) for i in range(10)]


def test_the_footer_tells_what_pyarrow_tells():
    data = written({"id": ["1", "2", "3"], "text": ["a", "b", "c"]}, row_group_size=2)
    found = wiki.footer(data)
    theirs = parquet.ParquetFile(io.BytesIO(data)).metadata
    assert found[3] == theirs.num_rows and len(found[4]) == theirs.num_row_groups == 2
    assert [part[4].decode() for part in found[2]] == ["schema", "id", "text"]
    chunk = found[4][1][1][1][3]  # second row group, second column
    assert chunk[9] == theirs.row_group(1).column(1).data_page_offset
    assert chunk[7] == theirs.row_group(1).column(1).total_compressed_size


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1PAR1", b"<html>not found</html>", written({"a": ["b"]})[:-1], b"PAR2" + bytes(16)],
)
def test_what_is_no_whole_file_says_so(data):
    with pytest.raises(ValueError, match="fetch it again"):
        wiki.footer(data)


def test_the_smallest_file_has_a_footer():
    assert wiki.footer(b"PAR1" + b"\x00" + struct.pack("<I", 1) + b"PAR1") == {}
    with pytest.raises(ValueError, match="fetch it again"):
        wiki.footer(b"PAR1" + bytes(3) + b"PAR1")


def test_pages_of_another_version_are_refused_with_the_way_out():
    data = written({"a": ["b", "c"]}, data_page_version="2.0")
    with pytest.raises(ValueError, match=r"type 3: write data_page_version='1.0'"):
        wiki.read_column(data, "a")


@pytest.mark.parametrize(
    ("data", "expected"), [([5], 5), ([0xE5, 0x8E, 0x26], 624_485), ([0x80, 1], 128), ([127], 127)]
)
def test_numbers_have_seven_bits_a_byte(data, expected):
    reader = wiki.Compact(bytes([9, *data, 9]), 1)
    assert reader.unsigned() == expected
    assert reader.at == 1 + len(data)


@pytest.mark.parametrize(("zigzag", "expected"), [(0, 0), (1, -1), (2, 1), (3, -2), (127, -64)])
@pytest.mark.parametrize("kind", [4, 5, 6])
def test_integers_have_their_sign_in_the_lowest_bit(zigzag, expected, kind):
    assert wiki.Compact(bytes([zigzag])).value(kind) == expected


def test_a_struct_by_hand():
    # field 1: true; field 2: false; field 4 (step 2): "ab"; field 20 (long form): -1
    data = bytes([0x11, 0x12, 0x28, 2, 97, 98, 0x05, 40, 1, 0])
    assert wiki.Compact(data).struct() == {1: True, 2: False, 4: b"ab", 20: -1}
    # field 3: a list of 2 integers; field 4: a struct with nothing; field 5: 15 integers
    data = bytes([0x39, 0x25, 2, 4, 0x1C, 0, 0x19, 0xF5, 15, *[6] * 15, 0])
    assert wiki.Compact(data).struct() == {3: [1, 2], 4: {}, 5: [3] * 15}


def test_a_list_of_fourteen_has_the_short_form():
    assert wiki.Compact(bytes([0xE5, *[2] * 14])).value(9) == [1] * 14


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="kind 13 at byte 1 .* damaged"):
        wiki.Compact(bytes([0x1D, 1, 0])).struct()


@pytest.mark.parametrize(
    ("data", "width", "count", "expected"),
    [
        ([16, 5], 3, 8, [5] * 8),
        ([3, 0x88, 0xC6, 0xFA], 3, 8, list(range(8))),  # the example in Encodings.md
        ([3, 0x88, 0xC6, 0xFA], 3, 5, list(range(5))),
        ([6, 0, 1, 4, 9], 9, 5, [256] * 3 + [9] * 2),  # two bytes a number
        ([4, 7, 6, 9], 8, 5, [7, 7, 9, 9, 9]),  # one byte
        ([5, 0b10101010, 0b1], 1, 16, [0, 1] * 4 + [1] + [0] * 7),
        ([4, 1, 3, 0b11], 1, 10, [1, 1, 1, 1] + [0] * 6),
        ([2], 0, 1, [0]),
    ],
)
def test_runs_by_hand(data, width, count, expected):
    assert wiki.runs(bytes(data), width, count) == expected


def test_plain_strings_stand_behind_their_lengths():
    assert wiki.plain(b"\x03\0\0\0sea\0\0\0\0\x02\0\0\0\xc3\xbc") == ["sea", "", "ü"]


def test_the_tiny_shard_has_the_columns_of_the_set():
    table = parquet.read_table(io.BytesIO(wiki.our_shard()))
    assert table.column_names == ["id", "url", "title", "text"]
    assert table["title"].to_pylist() == list(wiki.ARTICLES)
    assert table["id"].to_pylist() == [str(i) for i in range(1, 13)]
    assert table["url"][1].as_py() == "https://example.org/wiki/Grey_Hills"
    assert table["text"][0].as_py() == wiki.clean(wiki.ARTICLES["Orva"])
    assert len(wiki.footer(wiki.our_shard())[4]) == 2


def test_the_complete_shard_is_asked_for_by_its_hash(monkeypatch, tmp_path):
    asked = []

    def place(path, addresses, sha256):
        asked.append((path, *addresses, sha256))
        file = tmp_path / "file"
        file.write_bytes(b"PAR1")
        return file

    monkeypatch.setattr(wiki.downloads, "place", place)
    monkeypatch.setattr(wiki.workbench, "sources", [])
    assert wiki.complete_shard() == b"PAR1"
    ((path, address, sha256),) = asked
    assert path == "wikipedia/20231101.simple/train-00000-of-00001.parquet"
    assert address.startswith("https://huggingface.co/datasets/wikimedia/wikipedia/resolve/")
    assert address.endswith(path.removeprefix("wikipedia")) and len(sha256) == 64
    assert wiki.workbench.sources == ["Simple English Wikipedia, 1 November 2023"]


# ---- WARC ----------------------------------------------------------------------------------------


BLOCKS = [b"", b"abc", b"a\r\n\r\nWARC/1.0\r\n\r\nb\r\n\r\n", "ü".encode() * 500, bytes(range(256))]


def test_our_records_are_read_by_warcio():
    addresses = [f"https://example.org/{i}" for i in range(len(BLOCKS))]
    packed = b"".join(map(wiki.warc_record, ["resource"] * len(BLOCKS), addresses, BLOCKS))
    found = []
    identifiers = set()
    for record in warcio.ArchiveIterator(io.BytesIO(packed), check_digests="raise"):
        head = record.rec_headers
        assert record.rec_type == "resource" and head.protocol == "WARC/1.0"
        assert head.get_header("WARC-Date") == "2017-12-31T12:00:00Z"
        identifiers.add(head.get_header("WARC-Record-ID"))
        found.append((head.get_header("WARC-Target-URI"), record.raw_stream.read()))
    assert found == list(zip(addresses, BLOCKS))
    assert len(identifiers) == len(BLOCKS)
    assert all(name.startswith("<urn:uuid:") and name.endswith(">") for name in identifiers)


def test_records_of_warcio_are_read_by_us():
    file = io.BytesIO()
    writer = warcio.WARCWriter(file, gzip=True)
    writer._create_temp_file = io.BytesIO  # its own ones are never closed
    for i, block in enumerate(BLOCKS):
        status = StatusAndHeaders("200 OK", [("Content-Type", "a/b; c: d")], protocol="HTTP/1.1")
        address = f"https://example.org/{i}"
        payload = io.BytesIO(block)
        writer.write_record(
            writer.create_warc_record(address, "response", payload, http_headers=status)
        )
    found = list(wiki.read_warc(file.getvalue()))
    for i, (block, (header, content)) in enumerate(zip(BLOCKS, found, strict=True)):
        assert header["WARC-Target-URI"] == f"https://example.org/{i}"
        assert header["WARC-Type"] == "response"
        assert content == b"HTTP/1.1 200 OK\r\nContent-Type: a/b; c: d\r\n\r\n" + block


def test_each_record_is_a_gzip_member():
    first = wiki.warc_record("resource", "a:1", b"x")
    second = wiki.warc_record("resource", "a:2", b"y")
    member = zlib.decompressobj(wbits=31)
    member.decompress(first + second)
    assert member.unused_data == second
    assert [block for _, block in wiki.read_warc(second)] == [b"y"]
    assert first == wiki.warc_record("resource", "a:1", b"x")  # no time of writing in it


def test_files_that_are_no_warc_or_damaged_say_so():
    with pytest.raises(ValueError, match="'<html>' begins no record"):
        list(wiki.read_warc(gzip.compress(b"<html>\r\n\r\n")))
    whole = gzip.decompress(wiki.warc_record("resource", "a:1", b"abc"))
    for damaged in (whole[:-5], whole.replace(b"abc", b"abcd"), whole.replace(b"abc", b"ab")):
        with pytest.raises(ValueError, match="too early or too late: fetch"):
            list(wiki.read_warc(gzip.compress(damaged)))


# ---- what is in a text ---------------------------------------------------------------------------


def test_words_are_small_letters_and_digits():
    assert wiki.words_of("The sea, THE 2nd Übung!") == ["the", "sea", "the", "2nd", "übung"]


def test_ranks_and_new_words_of_a_small_text():
    words = ["a", "b", "a", "c", "a", "b"]
    assert wiki.ranked(words).tolist() == [3, 2, 1]
    assert wiki.distinct(words).tolist() == [1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("power", [-1.0, 0.5, 2.0])
def test_the_slope_of_a_power_is_its_exponent(power):
    x = torch.tensor([1.0, 3.0, 4.0, 90.0], dtype=torch.float64)
    assert wiki.slope(x, 7 * x**power) == pytest.approx(power)
    y = torch.tensor([2.0, 1.0, 5.0, 3.0], dtype=torch.float64)
    line = torch.linalg.lstsq(torch.stack((x.log(), torch.ones(4).double()), 1), y.log()[:, None])
    assert wiki.slope(x, y) == pytest.approx(line.solution[0].item())


# ---- MinHash -------------------------------------------------------------------------------------


def test_shingles_and_jaccard_by_hand():
    words = ["a", "b", "c", "a", "b", "c"]
    assert wiki.shingles(words, 2) == {"a b", "b c", "c a"}
    assert wiki.shingles(words) == {"a b c a b", "b c a b c"}
    assert wiki.shingles(["a"], 2) == set()
    assert wiki.jaccard({1, 2, 3}, {2, 3, 4, 5}) == 2 / 5
    assert wiki.jaccard({1}, {2}) == 0
    assert wiki.jaccard(set(), {2}) == 0
    assert wiki.jaccard(set(), set()) == wiki.jaccard({1}, {1}) == 1


def test_numbers_are_below_the_prime_and_the_same_in_each_run():
    strings = {f"a {i}" for i in range(2000)}
    found = wiki.numbers(strings)
    assert found.min() >= 0 and found.max() < wiki.P == 2147483647
    assert len(set(found.tolist())) > 1990
    assert wiki.numbers({"the ferry"}).tolist() == [zlib.crc32(b"the ferry") % wiki.P]


def test_a_signature_is_the_least_value_of_each_function():
    minhash = wiki.MinHash(k=16)
    x = torch.tensor([5, 2147483646, 77, 123_456_789])
    expected = [
        min((a * n + b) % (2**31 - 1) for n in x.tolist())
        for a, b in zip(minhash.a.flatten().tolist(), minhash.b.flatten().tolist(), strict=True)
    ]
    assert minhash(x).tolist() == expected
    assert torch.equal(minhash(torch.stack((x, x.flip(0)))), minhash(x).expand(2, 16))
    assert minhash.a.min() > 0 and len(set(expected)) > 10


def test_the_functions_reach_the_whole_range():
    minhash = wiki.MinHash(k=4000)
    for values in (minhash.a, minhash.b):
        assert values.min() < 0.01 * wiki.P and values.max() > 0.99 * wiki.P
        assert values.double().mean() == pytest.approx(wiki.P / 2, rel=0.05)
    assert minhash.a.shape == minhash.b.shape == (4000, 1)


def test_places_that_agree_are_counted():
    s = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert wiki.estimate(s[0], torch.tensor([1, 0, 3, 0])) == 0.5
    assert wiki.estimate(s, s.flip(0)).tolist() == [0, 0]
    assert wiki.estimate(s, s).tolist() == [1, 1]


@pytest.mark.parametrize("common", [0, 30, 67, 90, 100])
def test_known_pairs_have_the_jaccard_that_is_told(common):
    x, y, j = wiki.known_pairs(common, pairs=5)
    assert x.shape == y.shape == (5, 100)
    for a, b in zip(x.tolist(), y.tolist()):
        assert len(set(a)) == len(set(b)) == 100
        assert wiki.jaccard(set(a), set(b)) == j
    assert x.max() > 0.9 * wiki.P and x.max() < wiki.P
    assert len(wiki.known_pairs(50)[0]) == 200


@pytest.mark.parametrize("common", [30, 67, 90])
def test_the_estimate_errs_as_a_share_of_k_draws_does(common):
    x, y, j = wiki.known_pairs(common, pairs=400)
    minhash = wiki.MinHash(k=64)
    gaps = wiki.estimate(minhash(x), minhash(y)) - j
    assert abs(gaps.mean()) < 4 * math.sqrt(j * (1 - j) / 64 / 400) + 0.005
    assert gaps.square().mean().sqrt() == pytest.approx(math.sqrt(j * (1 - j) / 64), rel=0.25)


def test_the_estimate_is_that_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    minhash = wiki.MinHash(k=512)
    gaps = []
    for size in (5, 20, 60, 120):
        a = {f"word {i}" for i in range(150)}
        b = {f"word {i}" for i in range(size, size + 150)}
        theirs = []
        for strings in (a, b):
            theirs.append(datasketch.MinHash(num_perm=512, seed=1))
            for string in strings:
                theirs[-1].update(string.encode())
        ours = wiki.estimate(minhash(wiki.numbers(a)), minhash(wiki.numbers(b))).item()
        j = wiki.jaccard(a, b)
        error = math.sqrt(2 * j * (1 - j) / 512)
        gaps.append(abs(ours - theirs[0].jaccard(theirs[1])) / error)
    assert max(gaps) < 4


def test_the_chance_of_a_band_by_hand():
    assert wiki.chance(0.5, bands=1, rows=1) == 0.5
    assert wiki.chance(0.5, bands=2, rows=1) == 0.75
    assert wiki.chance(0.5, bands=1, rows=3) == 0.125
    assert wiki.chance(0.5, bands=2, rows=2) == pytest.approx(1 - 0.75**2)


def test_candidates_agree_in_a_whole_band():
    signatures = torch.tensor(
        [
            [1, 2, 3, 4],
            [1, 9, 3, 4],  # with the first: the second band
            [1, 2, 8, 8],  # with the first: the first band
            [9, 2, 4, 3],  # with none: half bands, and another order
            [3, 4, 7, 7],  # with none: other bands
            [1, 9, 3, 4],  # with the second, and as the second with the first
        ]
    )
    assert wiki.candidates(signatures, 2) == {(0, 1), (0, 2), (1, 5), (0, 5)}
    assert wiki.candidates(signatures, 1) == {(1, 5)}
    assert (0, 3) in wiki.candidates(signatures, 4)


def test_exact_pairs_are_those_of_trying_all():
    sets = [set(random.sample(range(14), random.randint(1, 9))) for _ in range(60)]
    for threshold in (0.3, 0.5, 1.0):
        tried = {
            (i, j)
            for j in range(60)
            for i in range(j)
            if wiki.jaccard(sets[i], sets[j]) >= threshold
        }
        assert wiki.exact_pairs(sets, threshold) == tried and tried


def test_what_is_found_and_what_is_kept():
    sets = [set(range(100)), set(range(5, 105)), set(range(60, 160)), set(range(200, 300))]
    signatures = wiki.MinHash(k=128)(torch.tensor([sorted(s) for s in sets]) * 7919)
    pairs, near, exact = wiki.found_by(signatures, sets, bands=64, threshold=0.5)
    assert exact == {(0, 1)} and near == {(0, 1)}
    assert exact < pairs
    _, near, exact = wiki.found_by(signatures, sets, bands=128, threshold=90 / 110)
    assert (0, 1) in exact  # 95 of 105
    _, near, exact = wiki.found_by(signatures, sets, bands=128, threshold=95 / 105)
    assert exact == {(0, 1)}  # the threshold itself counts
    same = signatures[:1].expand(2, -1)
    assert wiki.found_by(same, sets[:2], bands=1, threshold=1.0)[1:] == ({(0, 1)}, set())


def test_precision_and_recall_by_hand():
    assert wiki.precision_recall({1, 2, 3, 4}, {3, 4, 5}) == (0.5, 2 / 3)
    assert wiki.precision_recall(set(), {1}) == (0, 0)
    assert wiki.precision_recall({1}, {1}) == (1, 1)
    assert wiki.precision_recall({1}, set()) == (0, 0)


# ---- copies --------------------------------------------------------------------------------------


def test_passages_are_whole_and_in_order():
    words = [str(i) for i in range(350)]
    found = wiki.passages(words)
    assert [len(p) for p in found] == [100] * 3
    assert sum(found, []) == words[:300]
    assert len(wiki.passages(words[:300])) == 3
    assert wiki.passages(words[:99]) == []


def test_edits_change_the_share_that_is_asked_for():
    passage = ["a"] * 5000
    assert wiki.edited(passage, 0, ["b"]) == passage
    assert wiki.edited(passage, 1, ["b"]) == ["b"] * 5000
    assert 0.17 < wiki.edited(passage, 0.2, ["b"]).count("b") / 5000 < 0.23


def test_of_near_duplicates_the_first_stays():
    assert wiki.kept(set(), 3) == [0, 1, 2]
    assert wiki.kept({(0, 1), (0, 2), (1, 2)}, 4) == [0, 3]
    assert wiki.kept({(0, 1), (1, 2)}, 3) == [0, 2]  # 1 goes, so 2 has no duplicate in front


def test_copies_are_as_many_as_told():
    drawn = [[f"{i} {j}" for j in range(100)] for i in range(20)]
    leaked = [[f"leaked {i} {j}" for j in range(100)] for i in range(3)]
    found = wiki.with_copies(drawn, leaked, ["new"])
    assert found[:20] == drawn and len(found) == 20 + 12 * 40 + 3
    near = [sum(a == b for a, b in zip(p, drawn[i // 40])) for i, p in enumerate(found[20:500])]
    assert 97 < sum(near) / len(near) < 99 and max(near) == 100
    near = [sum(a == b for a, b in zip(p, q)) for p, q in zip(found[500:], leaked)]
    assert min(near) > 80 and max(near) < 100


def test_deduplicated_training_has_one_of_each_and_none_of_the_test():
    words = [f"w{i}" for i in range(500)]
    drawn = [random.choices(words, k=100) for _ in range(30)]
    test = [random.choices(words, k=100) for _ in range(5)]
    train = [*drawn, *drawn[:4], test[2], wiki.edited(test[3], 0.01, words)]
    assert wiki.deduplicated(train, test) == drawn


def test_a_trigram_model_by_hand():
    model = wiki.Trigram([["a", "b", "c", "a", "b", "d"]], vocabulary=4)
    # a b was followed by c and d, b by c and d; c is one of six words, each counted once more
    expected = 0.5 * 1 / 2 + 0.3 * 1 / 2 + 0.2 * 2 / 10
    assert model.probability("a", "b", "c") == pytest.approx(expected)
    assert model.probability("x", "y", "z") == pytest.approx(0.2 * 1 / 10)
    assert model.probability("x", "b", "a") == pytest.approx(0.2 * 3 / 10)
    assert model.probability("x", "a", "b") == pytest.approx(0.3 * 2 / 2 + 0.2 * 3 / 10)
    losses = -math.log(expected), -math.log(0.2 * 1 / 10)
    passages = [["a", "b", "c"], ["x", "y", "z"], ["a", "b"]]
    assert model.loss(passages) == pytest.approx(sum(losses) / 2)


def test_words_of_two_passages_do_not_follow_one_another():
    model = wiki.Trigram([["a", "b"], ["c", "d"]], vocabulary=4)
    assert model.probability("a", "b", "c") == pytest.approx(0.2 * 2 / 8)
    assert model.probability("x", "c", "d") == pytest.approx(0.3 + 0.2 * 2 / 8)


def test_probabilities_add_up_where_all_is_known():
    model = wiki.Trigram([list("ababcabd")], vocabulary=4)
    total = sum(model.probability("a", "b", c) for c in "abcd")
    assert total == pytest.approx(1)  # neither a b nor b ends the text


def test_pieces_are_counted_by_the_library(monkeypatch):
    class Encoding:
        ids = (1, 2, 3)

    class Tokenizer:
        def encode(self, written, add_special_tokens):
            assert written == "nine12345" and add_special_tokens is False
            return Encoding

    assert wiki.characters_per_piece("nine12345", Tokenizer()) == 3
