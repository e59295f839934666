"""The parts of the book with their chapters: picture, idea, numbers, what each was proven against.

::

    .. parts::

Parts and order come from the toctrees of the front page, all else from the cards (see ``cards``).
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import summaries
from cards import cards, parts, shown
from formats import WEB_SITE, link


class parts_placeholder(nodes.General, nodes.Element):
    """Stands for the parts until all chapters are read."""


class Parts(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        summaries.note(self.env, "parts")
        return [parts_placeholder()]


class Resolve(SphinxPostTransform):
    default_priority = 2  # before `embed` brings the pictures and results, at 3

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(parts_placeholder)):
            place.replace_self([self.part(*each) for each in parts(self.env)])

    def part(self, caption: str, docnames: list[str]) -> nodes.section:
        items = [self.chapter(doc) for doc in docnames]
        listed = nodes.bullet_list("", *items, classes=["chapters"])
        ids = [f"part-{nodes.make_id(caption)}"]
        return nodes.section("", nodes.title("", caption), listed, ids=ids)

    def chapter(self, doc: str) -> nodes.list_item:
        """What the card tells of a chapter; without a card its title alone."""
        title = nodes.paragraph("", "", link(self.env, doc), classes=["chapter-title"])
        card, item = cards(self.env).get(doc), nodes.list_item(classes=["chapter"])
        if card is None:
            item += title
            return item
        if card.picture is not None and self.env._builder_cls.name in WEB_SITE:
            item += nodes.container("", card.picture.deepcopy(), classes=["chapter-picture"])
        kind = str(card.date[0]) if card.first else card.kind
        title += [nodes.Text(" "), nodes.inline("", kind, classes=["chapter-kind"])]
        item += title
        idea = card.idea.deepcopy()
        item += nodes.paragraph("", "", *idea.children, classes=["chapter-idea"])
        if card.facts:
            item += nodes.field_list("", *[fact.deepcopy() for fact in card.facts])
        return item


class Pictures(SphinxPostTransform):
    """The pictures of the list only adorn it: what they show is told in their chapters."""

    default_priority = 5  # the pictures are there and chosen
    builders = WEB_SITE

    def run(self, **kwargs) -> None:
        for box in self.document.findall(nodes.container):
            if "chapter-picture" in box["classes"]:
                images = [image.deepcopy() for image in box.findall(nodes.image)]
                for image in images:
                    image["alt"] = ""
                box.children = []
                box += images


def setup(app: Sphinx) -> dict:
    app.setup_extension("cards")
    app.add_node(parts_placeholder)
    app.add_directive("parts", Parts)
    app.add_post_transform(Resolve)
    app.add_post_transform(Pictures)
    summaries.follow(app, "parts", shown)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
