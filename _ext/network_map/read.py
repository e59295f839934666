"""What stands on the map, from the cards of the chapters."""

from sphinx.environment import BuildEnvironment

from cards import Card, cards, parts, value
from network_map.layout import Band, Node


def bands(env: BuildEnvironment) -> list[Band]:
    """The chapters that have a card, by parts, in the order of time, overviews last."""
    found = []
    for caption, docnames in parts(env):
        own = [node for doc in docnames if (node := network(env, doc))]
        own.sort(key=lambda node: (node.until is not None, node.when, node.name))
        if own:
            found.append(Band(caption, own))
    return found


def network(env: BuildEnvironment, doc: str) -> Node | None:
    known, name = cards(env), env.titles[doc].astext()
    if doc not in known:
        return None
    card = known[doc]
    if card.first:
        values = [value(env, place) for place in card.values[:1]]
        size = next((number for number in values if isinstance(number, int) and number > 0), None)
        return Node(doc, name, when(card), size=size, after=card.after)
    whens = sorted(when(known[d]) for d in card.after if d in known and known[d].first)
    return Node(doc, name, whens[0], until=whens[-1], after=card.after) if whens else None


def when(card: Card) -> float:
    """The middle of the month, or of the year, in years."""
    year, month = card.date
    return year + ((month or 6.5) - 0.5) / 12
