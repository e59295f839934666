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
# # Wikipedia and OpenWebText
#
# From a dump and from web pages to text that a language model can learn from: the files
# opened byte by byte, what cleaning keeps, near duplicates found by MinHash. The text to it
# is the [chapter](../chapters/wikipedia.rst); the sets are
# [wikimedia/wikipedia](https://huggingface.co/datasets/wikimedia/wikipedia) and
# [Skylion007/openwebtext](https://huggingface.co/datasets/Skylion007/openwebtext).

# %%
import bz2
import gzip
import html
import io
import math
import random
import re
import struct
import uuid
import zlib
from collections import Counter, defaultdict
from itertools import combinations
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import matplotlib.pyplot as plt
import mwparserfromhell
import pyarrow
import torch
import warcio
from pyarrow import parquet
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

import workbench
from workbench import PROFILE, claim, record, record_spread, seed, spread, table
from workbench import downloads, plots, pretrained, text

# %% [markdown]
# ## A tiny wiki of our own
#
# Articles about places that do not exist, with the markup of those that do.

# %% tags=["articles"]
LAND = {
    "Orva": """{{Infobox river
| name = Orva
| length = {{convert|212|km|mi}}
| mouth = [[Gulf of Sel]]
}}
The '''Orva''' is a river in the [[Kingdom of Tarn|north of Tarn]].<ref name="atlas">
{{cite book|title=Atlas of Tarn|year=1911}}</ref> It is {{convert|212|km|mi}} long and
rises in the [[Grey Hills]].<!-- measured along the old channel -->
[[File:Orva.jpg|thumb|The Orva at [[Mill Bridge]] in spring]]
== Course ==
It passes [[Mill Bridge]] and ''Old Weir''&nbsp;before the sea.<ref name="atlas" />
== See also ==
* [[List of rivers of Tarn]]
[[Category:Rivers of Tarn]]""",
    "Grey Hills": """The '''Grey Hills''' are a range of hills of [[limestone]] in the
west of [[Tarn]]. No hill is higher than {{convert|1120|m|ft}}.
{| class="wikitable"
! Hill !! Height
|-
| [[Long Back]] || {{convert|1120|m|ft}}
|-
| The Sow || 1,055 m
|}
Sheep have grazed here since the [[Middle Ages]].<ref>{{cite web
|url=https://example.org/a|title=Sheep of the hills|access-date=3 May 2019}}</ref>
== References ==
{{reflist}}
[[Category:Hills]]""",
    "Limestone": """'''Limestone''' is a rock of [[calcite]].{{citation needed
|date=May 2020}} Rain dissolves it: {{chem2|CaCO3 + H2O + CO2 -> Ca(2+) + 2 HCO3-}}.
== Uses ==
# Lime for [[mortar]]<ref>{{cite book|last=Brun|title=Mortar|pages=12&ndash;19}}</ref>
# Stone for building
== References ==
<references />
[[Category:Rocks]]""",
}

# %% tags=["articles"]
PEOPLE = {
    "Ada Brun": """{{Infobox person
| name = Ada Brun
| born = {{birth date|1871|3|9}}
| occupation = {{hlist|Engineer|Writer}}
}}
'''Ada Brun''' ({{birth date|1871|3|9}} &ndash; {{death date|1949|11|2}}) was an
engineer of [[Tarn]].<ref>{{cite news|title=A builder|date=4 November 1949}}</ref>
She built [[Mill Bridge]], the first bridge across the [[Orva]], and wrote ''Mortar''.
== Life ==
Brun was born in [[Hollin]] as the third of five children.<!-- when did they move? -->
Her father burned [[lime (material)|lime]].<ref>Brun, ''Mortar'', p. 3</ref>
[[Category:Engineers]]
[[Category:1871 births]]""",
    "Mill Bridge": """{{coord|61.2|N|8.1|E}}
'''Mill Bridge''' is a bridge across the [[Orva]], built by [[Ada Brun]] from
[[Limestone|white stone]]. It has seven arches.<ref name="b">{{cite book|title=Bridges
|year=1938|isbn=0-000-00000-0}}</ref>
{| class="wikitable"
|+ Traffic
! Year !! Carts a day
|-
| 1901 || 40<ref name="b" />
|}
The bridge was closed in 1962 and opened again for walkers.
[[Category:Bridges]]""",
}
WATER = {
    "Gulf of Sel": """{{Short description|Bay of the northern sea}}
The '''Gulf of Sel''' is a bay. Its water is ''brackish'', since the [[Orva]] and the
[[Lesser Orva]] bring about {{val|310|u=m3/s}} of fresh water.
* In winter the bay freezes.
* In summer ferries cross it, see [https://example.org/ferries the timetable].
[[File:Sel.png|thumb|left|Map of the gulf{{legend|#00f|deep water}}]]
[[Category:Bays of Tarn]] [[Category:Gulf of Sel]]""",
    "Ferry": """A '''ferry''' carries people across water.<br />The ferry on the
[[Gulf of Sel]] sails in summer.<ref group="n">Not on [[Sunday]]s.</ref>
<gallery>
File:Ferry.jpg|The ferry
</gallery>
[[Category:Ships]]""",
    "Northern sea": """The '''northern sea''' is cold. {{ill|Cod|xx}} and [[herring]]
live in it, and {{convert|3|to|4|m|ft}} long [[seal (animal)|seals]].
{{Navbox|name=Seas|list1=[[Northern sea]] {{dot}} [[Gulf of Sel]]}}
[[Category:Seas]]""",
}


# %% tags=["villages"]
def village(name: str, inhabitants: int, river: str) -> str:
    """A stub of the kind that a bot writes: one sentence for all villages."""
    box = f"{{{{Infobox settlement|name={name}|population={inhabitants}}}}}\n"
    first = f"'''{name}''' is a village in the [[Kingdom of Tarn]] on the [[{river}]]. "
    second = f"At the census of 2011 the village had {inhabitants} inhabitants."
    source = "<ref>{{cite web|title=Census}}</ref>\n"
    return box + first + second + source + "[[Category:Villages of Tarn]]"


# %% tags=["pages"]
VILLAGES = {
    "Hollin": village("Hollin", 212, "Orva"),
    "Aske": village("Aske", 78, "Orva"),
    "Upper Wem": village("Upper Wem", 154, "Lesser Orva"),
    "Sel": village("Sel", 901, "Orva"),
}
ARTICLES = LAND | WATER | PEOPLE | VILLAGES
OTHERS = [
    ("Orwa", 0, "#REDIRECT [[Orva]]"),
    ("Bruns", 0, "#redirect [[Ada Brun]]"),
    ("Talk:Orva", 1, "Is the length right? ~~~~"),
    ("Template:Dot", 10, "&middot;"),
]
PAGES = [(title, 0, wikitext) for title, wikitext in ARTICLES.items()] + OTHERS

# %% [markdown]
# ## The dump


# %% tags=["dump"]
def write_dump(pages) -> bytes:
    """Pages (title, namespace, wikitext) as MediaWiki exports them, packed by bzip2."""
    rows = ['<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">']
    for number, (title, space, wikitext) in enumerate(pages, start=1):
        head = f"<title>{escape(title)}</title><ns>{space}</ns><id>{number}</id>"
        words = f'<text xml:space="preserve">{escape(wikitext)}</text>'
        rows.append(f"<page>{head}<revision><id>{number}</id>{words}</revision></page>")
    return bz2.compress("\n".join([*rows, "</mediawiki>"]).encode())


def read_dump(packed: bytes):
    """Yield (id, title, namespace, wikitext) of a dump, one page after the other."""
    unpacked = bz2.BZ2File(io.BytesIO(packed))
    for _, page in ElementTree.iterparse(unpacked):
        if not page.tag.endswith("}page"):
            continue
        space = page.tag.removesuffix("page")  # {http://...}, in front of every tag
        wikitext = page.findtext(f"{space}revision/{space}text") or ""
        number, title, kind = (
            page.findtext(space + tag) for tag in ("id", "title", "ns")
        )
        yield number, title, kind, wikitext
        page.clear()


def is_article(space: str, wikitext: str) -> bool:
    """Of the main namespace, and no redirect to another page."""
    return space == "0" and not wikitext.lower().startswith("#redirect")


# %% tags=["dump-run"]
dump = write_dump(PAGES)
pages = list(read_dump(dump))
wikitexts = {
    title: words for _, title, space, words in pages if is_article(space, words)
}

# %% tags=["dump-shown"]
first, *_, orwa, _, _, _ = bz2.decompress(dump).decode().split("<page>")
print(first.strip() + "...\n<page>" + orwa.replace("><", ">\n<"))

# %% [markdown]
# ## From wikitext to text


# %% tags=["nested"]
def nested(words: str, opening: str, closing: str) -> list[tuple[int, int]]:
    """Where outermost pairs of two marks begin and end; a mark alone is text."""
    starts = []
    found = []
    for mark in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", words):
        if mark[0] == opening:
            starts.append(mark.start())
        elif starts:
            start = starts.pop()
            found = [pair for pair in found if pair[0] < start]  # not those inside it
            found.append((start, mark.end()))
    return found


def without(words: str, opening: str, closing: str, inside: str = "") -> str:
    """The text without these pairs; inside: a pattern that their content begins by."""
    for start, end in reversed(nested(words, opening, closing)):
        if re.match(inside, words[start + len(opening) :], re.IGNORECASE):
            words = words[:start] + words[end:]
    return words


# %% tags=["cleaner"]
def without_links(words: str) -> str:
    """[[page|label]] and [address label] become the label, [[page]] the page."""
    words = re.sub(r"\[\[[^\[\]|\n]*\|([^\[\]|]*)\]\]", r"\1", words)
    words = re.sub(r"\[\[([^\[\]|\n]*)\]\]", r"\1", words)
    return re.sub(r"\[https?://[^\s\]]+\s*([^\]]*)\]", r"\1", words)


def without_marks(words: str) -> str:
    """No bold, italics, headings, list marks and tags; entities become characters."""
    words = re.sub(r"<[^<>]+>|'{2,}", "", words)
    words = re.sub(r"^[*#:;]+ *|^=+ *(.*?) *=+ *$", r"\1", words, flags=re.MULTILINE)
    return html.unescape(words)


def without_references(words: str) -> str:
    words = re.sub(r"<ref[^<>]*/>", "", words)
    return re.sub(r"<(ref|gallery)\b[^<>]*>.*?</\1>", "", words, flags=re.DOTALL)


STEPS = {
    "comments": lambda words: re.sub(r"<!--.*?-->", "", words, flags=re.DOTALL),
    "references, galleries": without_references,
    "templates": lambda words: without(words, "{{", "}}"),
    "tables": lambda words: without(words, "{|", "|}"),
    "files, categories": lambda words: without(
        words, "[[", "]]", "(file|image|category):"
    ),
    "addresses of links": without_links,
    "other marks": without_marks,
}


def clean(wikitext: str) -> str:
    for step in STEPS.values():
        wikitext = step(wikitext)
    return wikitext.strip()


# %% tags=["clean-run"]
print(clean(wikitexts["Orva"]))

# %% tags=["steps"]
rows = [("the dump", len(pages), sum(len(words) for *_, words in pages))]
rows.append(("articles", len(wikitexts), sum(map(len, wikitexts.values()))))
words = wikitexts
for name, step in STEPS.items():
    words = {title: step(old) for title, old in words.items()}
    rows.append((f"without {name}", len(words), sum(map(len, words.values()))))
cleaned = {title: clean(wikitext) for title, wikitext in wikitexts.items()}
rows.append(("ends trimmed", len(cleaned), sum(map(len, cleaned.values()))))

# %% tags=["steps-table"]
table(rows, ("step", "pages", "characters"))

# %% tags=["library-cleaner"]
MEDIA = re.compile("(?:File|Image|Category):", re.IGNORECASE)
TAGS = ("ref", "table", "gallery")


def by_library(wikitext: str) -> str:
    """What mwparserfromhell keeps, without media, categories, references and tables."""
    code = mwparserfromhell.parse(wikitext)
    for link in code.filter_wikilinks(
        code.RECURSE_OTHERS, lambda x: MEDIA.match(str(x.title))
    ):
        code.remove(link)
    for tag in code.filter_tags(code.RECURSE_OTHERS, lambda x: x.tag in TAGS):
        code.remove(tag)
    return code.strip_code()


# %% [markdown]
# ## Parquet


# %% tags=["compact"]
class Compact:
    """Thrift's compact protocol, in which parquet tells what its data are."""

    def __init__(self, data: bytes, at: int = 0):
        self.data = data
        self.at = at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        """Seven bits a byte, the lowest first; the eighth says that more follow."""
        value = shift = 0
        while (byte := self.byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def value(self, kind: int):
        if kind in (1, 2):  # true or false, told by the kind itself
            return kind == 1
        if kind in (4, 5, 6):  # integers, 0 -1 1 -2 2 ... counted from 0
            zigzag = self.unsigned()
            return (zigzag >> 1) ^ -(zigzag & 1)
        if kind == 8:  # bytes behind their number
            size = self.unsigned()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind == 9:
            head = self.byte()
            size = head >> 4 if head < 240 else self.unsigned()
            return [self.value(head & 15) for _ in range(size)]
        if kind == 12:
            return self.struct()
        raise ValueError(
            f"kind {kind} at byte {self.at} is not read here: a damaged file?"
        )

    def struct(self) -> dict:
        """Fields by number, each behind a byte: step from the last number, and kind."""
        fields = {}
        number = 0
        while head := self.byte():
            step = head >> 4
            number = number + step if step else self.value(4)
            fields[number] = self.value(head & 15)
        return fields


# %% tags=["footer"]
def footer(data: bytes) -> dict:
    """What stands at the end: schema (2), rows (3), row groups (4): parquet.thrift."""
    if len(data) < 12 or data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise ValueError(
            "no whole parquet file: PAR1 is missing at an end; fetch it again"
        )
    (size,) = struct.unpack("<I", data[-8:-4])
    return Compact(data, len(data) - 8 - size).struct()


# %% tags=["runs"]
def runs(data: bytes, width: int, count: int) -> list[int]:
    """Numbers of `width` bits: one with its repetitions, or eight packed at a time."""
    reader = Compact(data)
    values = []
    while len(values) < count:
        head = reader.unsigned()
        size = width if head & 1 else (width + 7) // 8
        for _ in range(head >> 1 if head & 1 else 1):
            packed = int.from_bytes(data[reader.at : reader.at + size], "little")
            reader.at += size
            if head & 1:
                values += [packed >> i * width & (1 << width) - 1 for i in range(8)]
            else:
                values += [packed] * (head >> 1)
    return values[:count]


def plain(data: bytes) -> list[str]:
    """Strings one behind the other, each behind its length in four bytes."""
    at = 0
    values = []
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        values.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return values


# %% tags=["read-column"]
CODECS = {0: "none", 1: "snappy", 2: "gzip", 6: "zstd"}


def read_column(data: bytes, name: str, groups: int | None = None) -> list[str]:
    """A column of strings without gaps, of the first row groups or of all."""
    values = []
    for group in footer(data)[4][:groups]:
        columns = [column[3] for column in group[1]]
        (chunk,) = [chunk for chunk in columns if chunk[3] == [name.encode()]]
        values += read_chunk(data, chunk)
    return values


def read_chunk(data: bytes, chunk: dict) -> list[str]:
    """The pages of a column in one row group: first the dictionary, if there is one."""
    reader = Compact(data, chunk.get(11, chunk[9]))
    values = []
    while len(values) < chunk[5]:
        head = reader.struct()
        page = data[reader.at : reader.at + head[3]]
        reader.at += head[3]
        if head[1] not in (0, 2):
            raise ValueError(f"a page of type {head[1]}: write data_page_version='1.0'")
        if chunk[4]:
            page = pyarrow.decompress(page, head[2], CODECS[chunk[4]], asbytes=True)
        if head[1] == 2:
            dictionary = plain(page)
            continue
        (levels,) = struct.unpack_from("<I", page)  # which values are there: here all
        page = page[4 + levels :]
        if head[5][2] == 0:
            values += plain(page)
        else:  # 2 or 8: places in the dictionary, behind their width
            places = runs(page[1:], page[0], head[5][1])
            values += [dictionary[place] for place in places]
    return values


# %% [markdown]
# Three words in a file without dictionary and compression: every byte can be named.


# %% tags=["by-hand"]
def written_parquet(columns: dict, **how) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **how)
    return file.getvalue()


# %% tags=["by-hand-run"]
bare = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
tiny = written_parquet({"word": ["sea", "sea", "isle"]}, compression="none", **bare)
reader = Compact(tiny, 4)
head = reader.struct()
print(head)
print(tiny[reader.at :][: head[3]])

# %% tags=["by-hand-table"]
size = struct.unpack("<I", tiny[-8:-4])[0]
begins = reader.at
rows = [(0, tiny[:4].hex(" "), "PAR1")]
rows.append(
    (4, f"{begins - 4} bytes", "page header: type 0, sizes, 3 values, encoding 0")
)
rows.append((begins, tiny[begins : begins + 6].hex(" "), "2 bytes: 3 times level 1"))
for at in (begins + 6, begins + 13, begins + 20):
    word = tiny[at + 4 : at + 4 + tiny[at]]
    rows.append(
        (at, tiny[at : at + 4 + tiny[at]].hex(" "), f"{tiny[at]}, {word.decode()}")
    )
rows.append((at + 8, f"{size} bytes", "footer: schema, 3 rows, 1 row group"))
rows.append((len(tiny) - 8, tiny[-8:-4].hex(" "), f"length of the footer, {size}"))
rows.append((len(tiny) - 4, tiny[-4:].hex(" "), "PAR1"))
table(rows, ("byte", "content", "meaning"))

# %% tags=["by-hand-claims"]
claim(
    plain(tiny[begins + 6 : begins + head[3]]) == ["sea", "sea", "isle"], "three words"
)
claim(at + 8 == len(tiny) - 8 - size, "page and footer leave no byte unnamed")
claim(head[1] == 0 and head[5][1] == 3 and head[5][2] == 0, "a page of 3 plain values")
claim(tiny[begins : begins + 6].hex() == "020000000601", "two bytes of levels")
record("tiny.bytes", len(tiny))
record("tiny.footer", size)

# %% tags=["runs-run"]
print(runs(bytes([0b10000, 5]), width=3, count=8))
print(runs(bytes([0b11, 0x88, 0xC6, 0xFA]), width=3, count=8))

# %% [markdown]
# A shard of the tiny wiki, in the full profile that of Simple English of November 2023.

# %% tags=["shard"]
SIMPLE = "20231101.simple/train-00000-of-00001.parquet"
SIMPLE_SHA256 = "31bded16768a47c286becd292079122f5d7d4397a17b87d4250a00ccd581e6f0"
HUB = "https://huggingface.co/datasets/wikimedia/wikipedia/resolve/main"


def our_shard() -> bytes:
    """The tiny wiki with the columns of the set, six articles to a row group."""
    rows = {"id": [], "url": [], "title": [], "text": []}
    for number, title, space, wikitext in read_dump(write_dump(PAGES)):
        if is_article(space, wikitext):
            rows["id"].append(number)
            rows["url"].append(f"https://example.org/wiki/{title.replace(' ', '_')}")
            rows["title"].append(title)
            rows["text"].append(clean(wikitext))
    return written_parquet(rows, row_group_size=6)


def complete_shard() -> bytes:
    """Simple English Wikipedia, 157 MB, fetched and verified."""
    workbench.sources.append("Simple English Wikipedia, 1 November 2023")
    path = f"wikipedia/{SIMPLE}"
    return downloads.place(path, [f"{HUB}/{SIMPLE}"], SIMPLE_SHA256).read_bytes()


# %% tags=["shard-run"]
shard = complete_shard() if PROFILE == "full" else our_shard()
about = footer(shard)
print([column[4].decode() for column in about[2]], about[3], len(about[4]))
titles = read_column(shard, "title", groups=10)
texts = read_column(shard, "text", groups=10)
print(titles[0], "|", texts[0][:60])

# %% tags=["library-run"]
whole = parquet.read_table(io.BytesIO(shard), columns=["title", "text"])
print(whole.slice(0, 1).to_pylist()[0]["title"])

# %% [markdown]
# ## WARC


# %% tags=["warc"]
def warc_record(kind: str, address: str, block: bytes) -> bytes:
    """One record as a gzip member: version, header, an empty line, the block."""
    lines = ("WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {address}")
    name = uuid.uuid5(uuid.NAMESPACE_URL, address)
    lines += (f"WARC-Record-ID: <urn:uuid:{name}>", "WARC-Date: 2017-12-31T12:00:00Z")
    lines += (f"Content-Length: {len(block)}",)
    head = "\r\n".join(lines).encode()
    return gzip.compress(head + b"\r\n\r\n" + block + b"\r\n\r\n", mtime=0)


def read_warc(packed: bytes):
    """Yield (header, block) of each record."""
    data = gzip.decompress(packed)  # of all members, one behind the other
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        version, *lines = head.decode().split("\r\n")
        if not version.startswith("WARC/"):
            raise ValueError(f"{version!r:.40} begins no record: is this a WARC file?")
        header = dict(line.split(": ", 1) for line in lines)
        size = int(header["Content-Length"])
        if data[size : size + 4] != b"\r\n\r\n":
            raise ValueError(
                "a record ends too early or too late: fetch the file again"
            )
        yield header, data[:size]
        data = data[size + 4 :]


# %% tags=["warc-run"]
answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
addresses = ("https://example.org/ferries", "https://example.org/bridges")
bodies = (b"<p>The ferry sails at nine.</p>", "<p>Sept arches, un été.</p>".encode())
archive = b""
for address, body in zip(addresses, bodies):
    archive += warc_record("response", address, answer + body)
for header, block in read_warc(archive):
    print(header["WARC-Target-URI"], len(block))

# %% tags=["warc-shown"]
print(gzip.decompress(archive).decode().replace("\r\n", "\n").split("\n\nWARC")[0])

# %% [markdown]
# ## Equal to the libraries

# %% tags=["equal-warc"]
records = warcio.ArchiveIterator(io.BytesIO(archive), no_record_parse=True)
theirs = [
    (r.rec_headers.get_header("WARC-Target-URI"), r.raw_stream.read()) for r in records
]
ours = [(header["WARC-Target-URI"], block) for header, block in read_warc(archive)]

# %% tags=["equal"]
rows = []
expected = whole.slice(0, len(texts))
same = sum(a == b for a, b in zip(titles, expected["title"].to_pylist()))
rows.append(("titles in parquet", "pyarrow", len(titles), same))
same = sum(a == b for a, b in zip(texts, expected["text"].to_pylist()))
rows.append(("texts in parquet", "pyarrow", len(texts), same))
same = sum(a == b for a, b in zip(ours, theirs))
rows.append(("records in WARC", "warcio", len(theirs), same))
pairs = [(clean(wikitext), by_library(wikitext)) for wikitext in wikitexts.values()]
same = sum(a.split() == b.split() for a, b in pairs)
rows.append(("cleaned articles, word by word", "mwparserfromhell", len(pairs), same))

# %% tags=["equal-table"]
claim(all(row[2] == row[3] for row in rows), "all equal")
claim(len(ours) == len(theirs) and len(texts) == len(titles), "none is missing")
table(rows, ("what", "library", "compared", "equal"))

# %% [markdown]
# ## What cleaning keeps

# %% tags=["kept-figure"] alt="Horizontal bars of the shares of all characters of the tiny wiki. The text that is kept is the longest, but less than half. Of the markup templates are the longest, then references, then files and categories."
sizes = {"text": sum(map(len, cleaned.values()))}
words = wikitexts
for name, step in STEPS.items():
    after = {title: step(old) for title, old in words.items()}
    sizes[name] = sum(map(len, words.values())) - sum(map(len, after.values()))
    words = after
total = sum(map(len, wikitexts.values()))
shares = {name: 100 * size / total for name, size in sizes.items()}
order = sorted(shares, key=shares.get)
_, axes = plt.subplots(figsize=(5, 3))
colours = [plots.COLOURS[1] if name == "text" else plots.COLOURS[0] for name in order]
axes.barh(order, [shares[name] for name in order], color=colours)
for row, name in enumerate(order):
    axes.text(shares[name] + 1, row, f"{shares[name]:.0f}", va="center")
axes.set(xlabel="percent of all characters", xlim=(0, max(shares.values()) + 8))
axes.set_axisbelow(True)

# %% tags=["kept-claims"]
record("kept.pages", len(pages))
record("kept.articles", len(wikitexts))
record("kept.wikitext", total)
record("kept.share", sizes["text"] / total)
for name in ("templates", "references, galleries"):
    record(f"kept.{name.split(',')[0]}", sizes[name] / total)
claim(sizes["text"] < 0.5 * total, "less than half is text")
claim(order[-1] == "text", "the text is the largest part")
longest = ["files, categories", "references, galleries", "templates"]
claim(order[-4:-1] == longest, "the markup, longest last")
claim("It is  long" in cleaned["Orva"], "a length in a template is lost")
claim("212" not in cleaned["Orva"], "it stands nowhere else in the article")
claim("bring about  of" in cleaned["Gulf of Sel"], "so is an amount of water")

# %% [markdown]
# ## What is in it
#
# A text of millions of characters: the King James Bible, in the full profile the articles.


# %% tags=["words"]
def words_of(written: str) -> list[str]:
    return re.findall(r"\w+", written.lower())


def ranked(words: list[str]) -> Tensor:
    """How often the commonest word occurs, the second, and so on."""
    counts = sorted(Counter(words).values(), reverse=True)
    return torch.tensor(counts, dtype=torch.float64)


def distinct(words: list[str]) -> Tensor:
    """How many different words have been read after each word."""
    seen = set()
    grown = []
    for word in words:
        seen.add(word)
        grown.append(len(seen))
    return torch.tensor(grown, dtype=torch.float64)


def slope(x: Tensor, y: Tensor) -> float:
    """Of the straight line through log x and log y, by least squares."""
    x = x.log() - x.log().mean()
    return ((x * y.log()).sum() / (x * x).sum()).item()


# %% tags=["corpus"]
corpus = "\n".join(texts) if PROFILE == "full" else text.english().train
words = words_of(corpus)
counts = ranked(words)
grown = distinct(words)

# %% tags=["laws-figure"] alt="Two panels with logarithmic axes. Left: how often a word occurs against its rank, a curve that falls from the first rank to the last. Right: different words against words read, a curve that rises to the end."
_, (left, right) = plt.subplots(1, 2, figsize=(5, 2.7))
ranks = torch.arange(1, len(counts) + 1, dtype=torch.float64)
left.loglog(ranks, counts, color=plots.COLOURS[0])
left.set(xlabel="rank of a word", ylabel="occurrences")
steps = torch.logspace(2, math.log10(len(words)), 60).long().clamp(max=len(words)) - 1
right.loglog(steps + 1, grown[steps], color=plots.COLOURS[1])
right.set(xlabel="words read", ylabel="different words")
right.set_axisbelow(True)

# %% tags=["laws-claims"]
middle = slice(9, 3000)
record("zipf.slope", slope(ranks[middle], counts[middle]))
record("heaps.slope", slope(steps + 1.0, grown[steps]))
record("zipf.hundred", (counts[:100].sum() / counts.sum()).item())
claim(counts[:100].sum() > 0.5 * counts.sum(), "a hundred words are most of the text")
record("words", len(words))
record("words.distinct", len(counts))
record("words.once", (counts == 1).double().mean().item())
claim(
    -1.4 < slope(ranks[middle], counts[middle]) < -1.1, "a steeper fall than 1 / rank"
)
claim(slope(steps + 1.0, grown[steps]) < 0.8, "new words become rarer")
tenth = len(words) // 10
claim(grown[-1] - grown[-tenth] > 0.01 * len(counts), "the last tenth brings some, too")


# %% tags=["pieces"]
def characters_per_piece(written: str, tokenizer) -> float:
    pieces = tokenizer.encode(written, add_special_tokens=False).ids
    return len(written) / len(pieces)


# %% tags=["tokenizer"]
vocabulary = {piece: i for i, piece in enumerate(pretrained.minilm().vocabulary)}
tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)

# %% tags=["pieces-table"]
kinds = {"wikitext of the tiny wiki": "\n".join(wikitexts.values())}
kinds["the same, cleaned"] = "\n".join(cleaned.values())
kinds["the long text"] = corpus[:200_000]
rates = {
    name: characters_per_piece(written, tokenizer) for name, written in kinds.items()
}
rows = [(name, len(kinds[name]), f"{rate:.2f}") for name, rate in rates.items()]
table(rows, ("text", "characters", "characters a piece"))

# %% tags=["pieces-claims"]
raw, tidy, _ = rates.values()
claim(raw + 0.5 < tidy, "a piece holds more of cleaned text than of wikitext")
record("pieces.raw", raw)
record("pieces.tidy", tidy)

# %% [markdown]
# ## Near duplicates


# %% tags=["shingles"]
def shingles(words: list[str], n: int = 5) -> set[str]:
    """All runs of n words that stand beside each other."""
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(a: set, b: set) -> float:
    """What two sets have in common, as a share of what they have together."""
    return len(a & b) / len(a | b) if a or b else 1.0


# %% tags=["shingles-run"]
first = shingles(words_of("The ferry sails at nine in summer."), 3)
second = shingles(words_of("The ferry sails at ten in summer."), 3)
print(sorted(first & second), len(first | second), jaccard(first, second))

# %% tags=["minhash"]
P = 2**31 - 1  # a prime: x -> (a x + b) mod P leaves no two numbers below it the same


def numbers(strings: set[str]) -> Tensor:
    return torch.tensor([zlib.crc32(string.encode()) % P for string in strings])


class MinHash:
    """k hash functions; a signature is the least value of each over a set."""

    def __init__(self, k: int):
        self.a = torch.randint(1, P, (k, 1))
        self.b = torch.randint(0, P, (k, 1))

    def __call__(self, x: Tensor) -> Tensor:
        # (..., n) -> (..., k)
        return ((self.a * x.unsqueeze(-2) + self.b) % P).amin(-1)


def estimate(s: Tensor, t: Tensor) -> Tensor:
    """The share of places where two signatures agree: (..., k), (..., k) -> (...)."""
    return (s == t).double().mean(-1)


# %% tags=["minhash-run"]
seed(0)
minhash = MinHash(k=128)
signature = minhash(numbers(first))
print(signature.shape, f"{estimate(signature, minhash(numbers(second))):.3f}")


# %% tags=["bands"]
def chance(j, bands: int, rows: int):
    """That two sets of Jaccard j agree in all rows of at least one band."""
    return 1 - (1 - j**rows) ** bands


def candidates(signatures: Tensor, bands: int) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, whose signatures agree in all rows of at least one band."""
    pairs = set()
    for band in signatures.chunk(bands, dim=1):
        buckets = defaultdict(list)
        for i, row in enumerate(band.tolist()):
            for other in buckets[tuple(row)]:
                pairs.add((other, i))
            buckets[tuple(row)].append(i)
    return pairs


# %% tags=["known-pairs"]
def known_pairs(
    common: int, n: int = 100, pairs: int = 200
) -> tuple[Tensor, Tensor, float]:
    """Pairs of sets of n numbers, so many in common, each (pairs, n); their Jaccard."""
    drawn = torch.randint(0, P, (pairs, 2 * n - common))
    return drawn[:, :n], drawn[:, n - common :], common / (2 * n - common)


# %% tags=["known-run"]
BANDS = ((16, 8), (32, 4), (64, 2))
seed(0)
jaccards = []
errors = []
shares = defaultdict(list)
for common in (20, 35, 50, 60, 67, 75, 82, 90, 95):
    x, y, j = known_pairs(common)
    same = minhash(x) == minhash(y)  # (pairs, k)
    jaccards.append(j)
    errors.append((same.double().mean(1) - j).square().mean().sqrt().item())
    for bands, rows in BANDS:
        hit = same.unflatten(1, (bands, rows)).all(2).any(1)
        shares[bands, rows].append(hit.double().mean().item())

# %% tags=["error-figure"] alt="The error of the estimate against the Jaccard similarity: crosses measured on pairs lie along a curve that rises to about 0.044 at one half and falls to both sides."
_, axes = plt.subplots()
j = torch.linspace(0, 1, 101)
axes.plot(j, (j * (1 - j) / 128).sqrt(), color=plots.QUIET)
axes.plot(jaccards, errors, "x", color=plots.COLOURS[1])
axes.set(xlabel="Jaccard of the pair", ylabel="error of the estimate", ylim=(0, 0.055))
axes.set_axisbelow(True)

# %% tags=["bands-figure"] alt="Chance that a pair becomes a candidate against its Jaccard similarity, three rising curves with measured crosses on them: 64 bands of 2 rows rise first, then 32 bands of 4 rows, last 16 bands of 8 rows."
_, axes = plt.subplots(figsize=(5, 3.2))
for (bands, rows), colour, height in zip(BANDS, plots.COLOURS, (0.2, 0.5, 0.8)):
    axes.plot(j, chance(j, bands, rows), color=colour)
    axes.plot(jaccards, shares[bands, rows], "x", color=colour)
    at = (1 - (1 - height) ** (1 / bands)) ** (
        1 / rows
    )  # where the curve has this height
    axes.annotate(f"{bands} x {rows}", (at + 0.03, height), color=colour, va="center")
axes.set(xlabel="Jaccard of the pair", ylabel="chance to be a candidate")
axes.set_axisbelow(True)

# %% tags=["known-claims"]
expected = [math.sqrt(j * (1 - j) / 128) for j in jaccards]
claim(
    all(0.75 < e / s < 1.25 for e, s in zip(errors, expected)),
    "the error is as it should be",
)
for bands, rows in BANDS:
    gaps = [
        abs(s - chance(j, bands, rows)) for s, j in zip(shares[bands, rows], jaccards)
    ]
    claim(max(gaps) < 0.15, "as often as the formula says")
record("error.half", math.sqrt(0.25 / 128))
for bands, rows in BANDS:
    record(f"half.{bands}", (1 - 0.5 ** (1 / bands)) ** (1 / rows))

# %% [markdown]
# ## Copies planted in a long text


# %% tags=["planted"]
LENGTH = 100  # words of a passage
DRAWN = 1500
PLANTED = 300


def passages(words: list[str]) -> list[list[str]]:
    return [words[i : i + LENGTH] for i in range(0, len(words) - LENGTH + 1, LENGTH)]


def edited(passage: list[str], share: float, others: list[str]) -> list[str]:
    """A copy in which about this share of the words are drawn anew from the text."""
    return [
        random.choice(others) if random.random() < share else word for word in passage
    ]


def exact_pairs(sets: list[set], threshold: float) -> set[tuple[int, int]]:
    """All pairs of at least this Jaccard, by counting the shingles that they share."""
    places = defaultdict(list)
    for i, strings in enumerate(sets):
        for string in strings:
            places[string].append(i)
    common = Counter(
        pair for found in places.values() for pair in combinations(found, 2)
    )
    pairs = set()
    for (i, j), n in common.items():
        if n >= threshold * (len(sets[i]) + len(sets[j]) - n):
            pairs.add((i, j))
    return pairs


# %% tags=["find"]
def found_by(
    signatures: Tensor, sets: list[set], bands: int, threshold: float
) -> tuple:
    """Candidates, those that signatures keep, and those that the sets keep."""
    pairs = candidates(signatures, bands)
    near = {
        (i, j) for i, j in pairs if estimate(signatures[i], signatures[j]) >= threshold
    }
    exact = {(i, j) for i, j in pairs if jaccard(sets[i], sets[j]) >= threshold}
    return pairs, near, exact


def precision_recall(found: set, wanted: set) -> tuple[float, float]:
    right = len(found & wanted)
    return right / max(len(found), 1), right / max(len(wanted), 1)


# %% tags=["find-run"]
all_passages = passages(words)
measured = defaultdict(list)
corpora = []
for number in range(3):
    seed(number)
    some = random.sample(all_passages, DRAWN)
    some += [
        edited(passage, random.uniform(0, 0.25), words) for passage in some[:PLANTED]
    ]
    sets = [shingles(passage) for passage in some]
    minhash = MinHash(k=128)
    signatures = torch.stack([minhash(numbers(strings)) for strings in sets])
    corpora.append((sets, signatures))
    wanted = exact_pairs(sets, 0.5)
    for bands, _ in BANDS:
        pairs, near, exact = found_by(signatures, sets, bands, 0.5)
        measured["wanted", bands].append(len(wanted))
        measured["compared", bands].append(len(pairs))
        measured["recall", bands].append(precision_recall(exact, wanted)[1])
        measured["near", bands].append(precision_recall(near, wanted))

# %% tags=["find-table"]
rows = []
for bands, height in BANDS:
    near = zip(*measured["near", bands])
    rows.append(
        (
            f"{bands} x {height}",
            spread(measured["compared", bands], ".0f"),
            spread(measured["recall", bands], ".2f"),
            *(spread(values, ".2f") for values in near),
        )
    )
heads = ("bands x rows", "pairs compared", "recall, exact check")
table(rows, (*heads, "precision, signatures", "recall, signatures"))

# %% tags=["threshold-run"]
THRESHOLDS = (0.3, 0.5, 0.7)
at = defaultdict(list)
for sets, signatures in corpora:
    for threshold in THRESHOLDS:
        wanted = exact_pairs(sets, threshold)
        _, near, exact = found_by(signatures, sets, 32, threshold)
        at["wanted", threshold].append(len(wanted))
        at["recall", threshold].append(precision_recall(exact, wanted)[1])
        at["near", threshold].append(precision_recall(near, wanted))

# %% tags=["threshold-table"]
rows = []
for threshold in THRESHOLDS:
    wanted = spread(at["wanted", threshold], ".0f")
    recall = spread(at["recall", threshold], ".2f")
    near = [spread(values, ".2f") for values in zip(*at["near", threshold])]
    rows.append((threshold, wanted, recall, *near))
heads = ("threshold", "near duplicates", "recall, exact check")
table(rows, (*heads, "precision, signatures", "recall, signatures"))

# %% tags=["threshold-claims"]
recalls = {threshold: at["recall", threshold] for threshold in THRESHOLDS}
record_spread("recall.low", recalls[0.3])
claim(max(recalls[0.3]) + 0.05 < min(recalls[0.5]), "pairs below the step are missed")
claim(min(recalls[0.7]) > 0.98, "those above it are found")
claim(recalls[0.5] == measured["recall", 32], "the same corpora")

# %% tags=["find-claims"]
for (bands, _), name in zip(BANDS, ("few", "middle", "many")):
    record_spread(f"compared.{name}", measured["compared", bands])
    record_spread(f"recall.{name}", measured["recall", bands])
    precisions = [precision for precision, _ in measured["near", bands]]
    claim(min(precisions) > 0.8, "few pairs are wrongly kept")
    claim(max(precisions) < 1, "with each seed some are")
record("planted.drawn", DRAWN)
record("planted.copies", PLANTED)
record("planted.words", LENGTH)
record("pairs", math.comb(len(some), 2))
record_spread("wanted", measured["wanted", 32])
claim(
    max(measured["recall", 16]) + 0.1 < min(measured["recall", 32]),
    "more bands find more",
)
claim(min(measured["recall", 32]) > 0.9, "nine in ten are found")
claim(max(measured["compared", 16]) < min(measured["compared", 32]), "and compare more")
claim(max(measured["compared", 32]) < min(measured["compared", 64]), "the more bands")
claim(
    max(measured["compared", 64]) < 0.001 * math.comb(len(some), 2),
    "less than a thousandth",
)

# %% [markdown]
# The passages of the text itself, nothing planted.

# %% tags=["own"]
seed(0)
own_sets = [shingles(passage) for passage in all_passages]
own_signatures = torch.stack([minhash(numbers(strings)) for strings in own_sets])
_, _, own = found_by(own_signatures, own_sets, bands=32, threshold=0.5)
most = max(own, key=lambda pair: (jaccard(own_sets[pair[0]], own_sets[pair[1]]), pair))
for i in most:
    print(i, " ".join(all_passages[i][40:54]))

# %% tags=["own-claims"]
record("own.passages", len(all_passages))
record("own.pairs", len(own))
record("own.most", jaccard(own_sets[most[0]], own_sets[most[1]]))
claim(len(own) > 10, "the text repeats itself")
claim(all(j > i for i, j in own), "each pair once")

# %% [markdown]
# ## What copies do to a language model


# %% tags=["trigram"]
class Trigram:
    """P(c | a, b): half by what followed a b, 0.3 by what followed b, 0.2 by all."""

    def __init__(self, passages: list[list[str]], vocabulary: int):
        self.one = Counter()
        self.two = Counter()
        self.three = Counter()
        for p in passages:
            self.one.update(p)
            self.two.update(zip(p, p[1:]))
            self.three.update(zip(p, p[1:], p[2:]))
        self.all = (
            sum(self.one.values()) + vocabulary
        )  # each word once more than counted

    def probability(self, a: str, b: str, c: str) -> float:
        third = self.three[a, b, c] / max(self.two[a, b], 1)
        second = self.two[b, c] / max(self.one[b], 1)
        return 0.5 * third + 0.3 * second + 0.2 * (self.one[c] + 1) / self.all

    def loss(self, passages: list[list[str]]) -> float:
        """Mean of -log P over the third to the last word of each passage, in nats."""
        triples = [triple for p in passages for triple in zip(p, p[1:], p[2:])]
        return -sum(math.log(self.probability(*triple)) for triple in triples) / len(
            triples
        )


# %% tags=["kept-first"]
def kept(pairs: set[tuple[int, int]], n: int) -> list[int]:
    """Which of n passages stay: those of no pair (i, j), i < j, whose first stays."""
    before = defaultdict(set)
    for i, j in pairs:
        before[j].add(i)
    stay = set()
    for i in range(n):
        if not before[i] & stay:
            stay.add(i)
    return sorted(stay)


# %% tags=["copies"]
REPEATED = 12  # passages, 40 times each


def with_copies(drawn: list, leaked: list, words: list[str]) -> list[list[str]]:
    """Passages, 40 edited copies of each of 12 of them, and one of each leaked."""
    repeated = [edited(p, 0.02, words) for p in drawn[:REPEATED] for _ in range(40)]
    return drawn + repeated + [edited(p, 0.05, words) for p in leaked]


def deduplicated(train: list, test: list) -> list[list[str]]:
    """The training passages without near duplicates of one another and of the test."""
    sets = [shingles(passage) for passage in test + train]
    minhash = MinHash(k=128)
    signatures = torch.stack([minhash(numbers(strings)) for strings in sets])
    _, _, pairs = found_by(signatures, sets, bands=32, threshold=0.5)
    return [train[i - len(test)] for i in kept(pairs, len(sets)) if i >= len(test)]


# %% tags=["copies-run"]
losses = defaultdict(list)
sizes = defaultdict(list)
staying = []
for number in range(3):
    seed(number)
    some = random.sample(all_passages, 1400)
    drawn = some[:1200]
    leaked = some[1200:1250]
    new = some[1250:]
    copied = with_copies(drawn, leaked, words)
    sets = {"as drawn": drawn, "with copies": copied}
    sets["deduplicated"] = deduplicated(copied, leaked + new)
    copies = copied[-len(leaked) :]
    stay = [copy in sets["deduplicated"] for copy in copies]
    staying.append([pair for pair, left in zip(zip(copies, leaked), stay) if left])
    gone = [passage for passage, left in zip(leaked, stay) if not left]
    for name, train in sets.items():
        model = Trigram(train, vocabulary=len(counts))
        sizes[name].append(len(train))
        losses[name, "new"].append(model.loss(new))
        losses[name, "copied"].append(model.loss(leaked))
        losses[name, "gone"].append(model.loss(gone))

# %% tags=["copies-table"]
rows = []
for name, found in sizes.items():
    n = found[0] if len(set(found)) == 1 else spread(found, ".0f")
    columns = [spread(losses[name, kind], ".2f") for kind in ("new", "copied")]
    rows.append((name, n, *columns))
table(rows, ("training set", "passages", "loss, new passages", "loss, copied passages"))

# %% tags=["copies-claims"]
names = {"drawn": "as drawn", "copies": "with copies", "clean": "deduplicated"}
for short, name in names.items():
    for kind in ("new", "copied"):
        record_spread(f"loss.{kind}.{short}", losses[name, kind])
gaps = [a - b for a, b in zip(losses["as drawn", "new"], losses["deduplicated", "new"])]
claim(max(map(abs, gaps)) < 0.02, "new passages cost what they cost without copies")
gaps = [
    a - b for a, b in zip(losses["as drawn", "gone"], losses["deduplicated", "gone"])
]
claim(max(map(abs, gaps)) < 0.05, "nor is there memory of those whose copy is gone")
left = [len(pairs) for pairs in staying]
record_spread("copies.left", left)
claim(min(left) > 0 and max(left) < 15, "a few copies of test passages stay")
for copy, passage in sum(staying, []):
    claim(jaccard(shingles(copy), shingles(passage)) < 0.5, "they are too different")
worse = [
    b - c for b, c in zip(losses["with copies", "new"], losses["deduplicated", "new"])
]
claim(min(worse) > 0.05, "with each seed copies make new passages harder to predict")
low = max(losses["with copies", "copied"])
claim(low + 1 < min(losses["deduplicated", "copied"]), "copied ones look far easier")
record_spread("worse", worse)
record("copies.planted", len(copied) - len(drawn))
record("copies.share", 1 - len(drawn) / len(copied))
record("copies.drawn", len(drawn))
record("copies.leaked", len(leaked))
record("copies.repeated", REPEATED)

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
first_member = zlib.decompressobj(wbits=31)  # 31: with the header of gzip
first_member.decompress(archive)
rest = list(read_warc(first_member.unused_data))

# %% tags=["solution-1-claims"]
claim(rest[0][0]["WARC-Target-URI"] == addresses[1], "the second record alone")
claim(len(rest) == 1, "no other is left")
record("second.at", len(archive) - len(first_member.unused_data))

# %% tags=["solution-2"]
unrelated = {}
for n in (1, 2, 3, 5):
    pairs = [(shingles(a, n), shingles(b, n)) for a, b in zip(new[::2], new[1::2])]
    unrelated[n] = sum(jaccard(a, b) for a, b in pairs) / len(pairs)

# %% tags=["solution-2-table"]
for n, value in unrelated.items():
    record(f"unrelated.{n}", value)
claim(
    unrelated[1] > 0.1 > 0.01 > unrelated[3],
    "single words are shared, runs of three are not",
)
table(
    [(n, f"{value:.4f}") for n, value in unrelated.items()], ("words", "mean Jaccard")
)

# %% tags=["solution-3"]
errors = {}
for k in (32, 128, 512):
    seed(0)
    x, y, j = known_pairs(common=67)
    minhash = MinHash(k)
    gaps = estimate(minhash(x), minhash(y)) - j
    errors[k] = gaps.square().mean().sqrt().item()

# %% tags=["solution-3-claims"]
for k, value in errors.items():
    record(f"error.{k}", value)
claim(
    1.6 < errors[32] / errors[128] < 2.4, "a quarter of the functions, twice the error"
)
claim(1.6 < errors[128] / errors[512] < 2.4, "and again")


# %% tags=["solution-4"]
def with_numbers(wikitext: str) -> str:
    """Templates of amounts become words before the cleaner drops the others."""
    words = re.sub(r"\{\{convert\|([\d.]+)\|(\w+)\|\w+\}\}", r"\1 \2", wikitext)
    return re.sub(r"\{\{val\|([\d.]+)\|u=([^{}|]+)\}\}", r"\1 \2", words)


print(clean(with_numbers(wikitexts["Orva"]))[:70])

# %% tags=["solution-4-claims"]
claim("212 km long" in clean(with_numbers(wikitexts["Orva"])), "the length is back")
claim("310 m3/s of" in clean(with_numbers(wikitexts["Gulf of Sel"])), "so is the water")

# %% [markdown]
# ## What we saw
#
# - Short readers of a dump, of parquet and of WARC are equal to the libraries'.
# - Cleaning keeps less than half of the characters of the tiny wiki, and loses numbers that
#   stand in templates.
# - MinHash finds nearly all near duplicates and compares less than a thousandth of the pairs.
# - Copies in the training set make a copied test passage look easy and new ones harder.
