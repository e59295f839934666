"""The first page that a reader opens is in the page's face, however it is opened."""

import contextlib

import pytest

from browser import MISSING, find, new_context, serve

pytestmark = [
    pytest.mark.xdist_group("site"),  # shares the build with test_site
    pytest.mark.skipif(find() is None, reason=MISSING),
]


def drawn_with(page, selector: str) -> set[str]:
    """Names of the fonts that the browser has drawn an element's own text with."""
    session = page.context.new_cdp_session(page)
    for domain in ("DOM", "CSS"):
        session.send(f"{domain}.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    node = session.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    fonts = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    return {font["familyName"] for font in fonts if font["isCustomFont"]}


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("origin", ["a server", "a file"])
def test_the_first_page_is_in_the_page_s_face(browser, site, origin, scripts):
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(serve(site)) if origin == "a server" else f"{site.as_uri()}/"
        context = new_context(browser, java_script_enabled=scripts)
        stack.enter_context(contextlib.closing(context))
        page = context.new_page()
        page.goto(f"{root}chapters/resnet.html")
        for selector, family in (
            ("main section > p", "Source Sans 3"),
            ("main p em", "Source Sans 3"),
            ("main math mo", "STIX Two Math"),
        ):
            (name,) = drawn_with(page, selector) or {"a font of the system"}
            assert name.startswith(family), selector
