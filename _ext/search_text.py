"""What of a page is searched, in a form in which Pagefind finds what a reader may type.

Pagefind takes what stands between spaces for a word and finds it by its stem, by its beginning and,
where capitals or punctuation join several, by each of them: ``BasicBlock`` by "block". What else a
reader may type is written into a copy of the page, from which the index is made. ``GLUE`` before a
word there says that no space stands before it on the page, ``HIDDEN`` that the word does not stand
there at all; ``search.js`` takes both away again.

* ``nn.Conv2d(3`` is three words.
* Chinese, which has no spaces, is found from each of its characters on.
* "colour" is also found by "color", ``optimizer`` by "optimiser".
* "3 × 3" becomes "3ẋ3", which is 3x3 to Pagefind, since it takes accents away.
"""

import re
from functools import lru_cache
from html import escape
from html.parser import HTMLParser

GLUE, HIDDEN = "~|", "~-"  # of punctuation, at which Pagefind parts words
TIMES = "ẋ"
PRODUCT = re.compile(r"(?<=\d)\s*×\s*(?=\d)|(?<=\w)×(?=\w)")
CODE = re.compile(r"[^\w\s]*(?:\d+\.\d+|\w+)[^\w\s]*|[^\w\s]+")
HAN = re.compile("[\u3400-\u9fff]")  # the ideographs of the first plane
SCRIPT = re.compile(f"{HAN.pattern}+|[^{HAN.pattern[1:]}+")
LONGEST = 8  # characters: a longer query in Chinese is found by its beginning

BRITISH = {
    "analyse": "analyze",
    "analysing": "analyzing",
    "artefact": "artifact",
    "behaviour": "behavior",
    "catalogue": "catalog",
    "centre": "center",
    "centred": "centered",
    "centring": "centering",
    "colour": "color",
    "defence": "defense",
    "favour": "favor",
    "fibre": "fiber",
    "grey": "gray",
    "labelled": "labeled",
    "labelling": "labeling",
    "licence": "license",
    "modelled": "modeled",
    "modelling": "modeling",
    "neighbour": "neighbor",
    "signalling": "signaling",
}
OTHER = {**BRITISH, **{american: british for british, american in BRITISH.items()}}
WORDS = re.compile("|".join(sorted(OTHER, key=len, reverse=True)), re.IGNORECASE)
# norm-al-ise, opt-im-iser, tok-en-isation; not noise, raise, precise
ENDING = re.compile(
    "(?<=[a-z](?:al|ar|el|em|en|er|et|gn|ic|id|il|im|in|it|ll|nt|ol|om|on|or|th|um))"
    "i([sz])(?=e|ing|ation|ab)",
    re.IGNORECASE,
)

HEADINGS = {"h1": 7, "h2": 6, "h3": 5, "h4": 4, "h5": 3, "h6": 2}
WEIGHTS = {
    **HEADINGS,
    "figcaption": 0.5,
    "pre": 0.5,
    "table": 0.5,
    "script": 0,
    "style": 0,
    "svg": 0,
}
BLOCKS = {"dd", "div", "dt", "figcaption", "li", "p", "pre", "section", "tr", *HEADINGS}
VOID = {"br", "col", "hr", "img", "input", "source", "wbr"}
LEFT_OUT = {"headerlink", "launch"}  # and displayed equations
FIELDS = {"paper-title": "paper", "paper-authors": "authors"}  # of a card, searched with a boost


def respelled(word: str) -> str:
    """The word as the other side of the Atlantic writes it; often the same."""
    word = WORDS.sub(lambda found: OTHER[found[0].lower()], word)
    return ENDING.sub(lambda found: "iz" if found[1] in "sS" else "is", word)


def hidden(word: str) -> list[str]:
    """What else a word is found by: the ends of a Chinese one, the other spelling."""
    if HAN.match(word):
        return [word[start : start + LONGEST] for start in range(1, len(word))]
    word = word.removeprefix(GLUE)
    other = respelled(word)
    return [other] if other != word else []


def glued(parts: list[str]) -> str:
    return f" {GLUE}".join(parts)


@lru_cache(maxsize=1 << 14)
def found_by(word: str) -> str:
    """What stands between two spaces, and all that it is found by.

    >>> found_by("残差网络：ResNet")
    '残差网络 ~-差网络 ~-网络 ~-络 ~|：ResNet'
    """
    return glued(
        [" ".join([part, *(HIDDEN + h for h in hidden(part))]) for part in SCRIPT.findall(word)]
    )


class Copy(HTMLParser):
    """The body of a page as plain headings and paragraphs, each with its weight."""

    def __init__(self, body: str, weight: float, sections: dict[str, float]):
        super().__init__()
        self.sections = sections
        self.blocks: list[str] = []
        self.terms: list[str] = []  # in bold, as a term is where it is explained
        self.runs: list[tuple[bool, str]] = []  # of the block that is open: (is it code, text)
        self.weights = [weight]  # of the elements that are open
        self.code = 0  # how many of them are code
        self.bold = False
        self.section = self.field = ""
        self.feed(body)
        self.close()
        self.end_block()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = set(given.get("class", "").split())
        if tag in BLOCKS:
            self.end_block()
            self.field = next((FIELDS[name] for name in classes & FIELDS.keys()), "")
        elif tag in VOID or tag in ("td", "th"):
            self.handle_data(" ")
        elif tag == "strong":
            self.bold = True
            self.terms.append("")
        if tag not in VOID:
            weight = self.weights[-1] * WEIGHTS.get(tag, 1)
            if tag == "section":
                self.section = given.get("id", "")
                weight *= self.sections.get(self.section, 1)
            if classes & LEFT_OUT or (tag == "div" and "math" in classes):
                weight = 0
            self.weights.append(weight)
            self.code += tag in ("code", "pre")

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self.end_block(tag)
        elif tag == "strong":
            self.bold = False
        if tag not in VOID and len(self.weights) > 1:
            self.weights.pop()
            self.code -= tag in ("code", "pre")

    def handle_data(self, data: str) -> None:
        if not self.weights[-1]:
            return
        if self.bold:
            self.terms[-1] += data
        code = self.code > 0
        if self.runs and self.runs[-1][0] == code:
            data = self.runs.pop()[1] + data
        self.runs.append((code, data))

    def end_block(self, tag: str = "p") -> None:
        """Write what has been read since the last block."""
        text = in_copy(self.runs)
        if text:
            tag = tag if tag in HEADINGS else "p"
            attributes = f' data-pagefind-weight="{self.weights[-1]:.3g}"'
            if self.field:
                attributes += f' data-pagefind-meta="{self.field}"'
            if tag in HEADINGS and tag != "h1":  # which is the page's
                attributes += f' id="{escape(self.section)}"'
            self.blocks.append(f"<{tag}{attributes}>{escape(text, quote=False)}</{tag}>")
        self.field, self.runs = "", []


def in_copy(runs: list[tuple[bool, str]]) -> str:
    """The text of a block as it is searched."""
    text = ""
    for code, run in runs:
        run = PRODUCT.sub(TIMES, run)
        text += re.sub(r"\S+", lambda word: glued(CODE.findall(word[0])), run) if code else run
    return " ".join(map(found_by, text.split()))


def copy(body: str, language: str, weight: float, sections: dict[str, float]) -> str:
    """The page from which the index is made."""
    page = Copy(body, weight, sections)
    terms = " ".join(term for term in page.terms if not term.endswith("."))  # "Check." in a list
    content = escape(in_copy([(False, terms)]))
    lines = [
        f'<!doctype html><html lang="{language}"><body data-pagefind-body>',
        f'<div data-pagefind-meta="terms[content]" content="{content}"></div>',
        *page.blocks,
        "</body></html>\n",
    ]
    return "\n".join(lines)
