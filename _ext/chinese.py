"""Mark Chinese text, so that it is drawn and read aloud as Chinese.

::

    :zh:`卷积神经网络` or, as a link, :zh:`残差网络解读 <https://example.org/resnet>`
"""

import re
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import ReferenceRole


class Chinese(ReferenceRole):
    """docutils writes the class ``language-zh`` as ``lang="zh"``."""

    explicit_title_re = re.compile(r"(.+?)\s*(?<!\x00)<([^<]*)>$", re.DOTALL)  # a title may have <

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if not self.has_explicit_title:
            if self.text.startswith("<"):
                return self.refuse("the link has no title")
            return [nodes.inline(self.rawtext, self.title, classes=["language-zh"])], []
        address = urlsplit(self.target)
        if not (address.scheme in ("http", "https") and address.netloc):
            return self.refuse(f"{self.target!r} is not an address that starts with https://")
        link = nodes.reference("", self.title, refuri=self.target, internal=False)
        return [nodes.inline(self.rawtext, "", link, classes=["language-zh"])], []

    def refuse(self, reason: str) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        message = self.inliner.reporter.error(f"zh: {reason}", line=self.lineno)
        return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]


def setup(app: Sphinx) -> dict:
    app.add_role("zh", Chinese())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
