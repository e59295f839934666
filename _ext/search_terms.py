"""What the search finds: English words by their stems, identifiers, Chinese titles.

Sphinx's search takes a run of letters, digits and underscores for one word. Here the index also
holds the parts of an identifier (``BasicBlock``, ``conv2d_relu``), so that "block" finds it, and of
Chinese text, which has no spaces, each pair of neighbouring characters. A query is split in the
same way, except that an identifier stays whole; a page is found when it holds all that a query has.
"""

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

CHINESE = "\u3400-\u9fff"  # the ideographs of the first plane
RUN = re.compile(rf"[{CHINESE}]+|[^\W{CHINESE}]+")
PART = re.compile(r"[A-Z]?[a-z]+\d*[a-z]*|[A-Z]+\d*(?![a-z])")
SHORTEST = 3  # letters of a part of an identifier


def words(text: str) -> list[str]:
    """What the index keeps of a text.

    >>> words("BasicBlock 残差网络")
    ['BasicBlock', 'Basic', 'Block', '残差', '差网', '网络']
    """
    found = []
    for run in RUN.findall(text):
        if re.match(f"[{CHINESE}]", run):
            found += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
            continue
        found.append(run)
        parts = [part for part in PART.findall(run) if len(part) >= SHORTEST]
        found += [part for part in parts if part != run]
    return found


class Search(SearchEnglish):
    js_splitter_code = rf"""
function splitQuery(query) {{
  const runs = query.match(/[{CHINESE}]+|(?:(?![{CHINESE}])[\p{{Letter}}\p{{Number}}_])+/gu) ?? [];
  return runs.flatMap((run) => {{
    if (!/^[{CHINESE}]/.test(run) || run.length < 3) return [run];
    return Array.from({{ length: run.length - 1 }}, (_, i) => run.slice(i, i + 2));
  }});
}}
"""

    def split(self, input: str) -> list[str]:
        return words(input)


def setup(app: Sphinx) -> dict:
    app.add_search_language(Search)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
