"""Search in a browser: what is found first, the dialog, and the ways out without scripts or server."""

import contextlib
import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup, SoupStrainer
from playwright.sync_api import expect

from browser import MISSING, Visit, against, find, new_context, serve
from loader import STEMS

pytestmark = [
    pytest.mark.xdist_group("site"),  # shares the build with test_site
    pytest.mark.skipif(find() is None, reason=MISSING),
]
START = "chapters/lenet.html"
SPHINX = ("searchindex.js", "searchtools.js", "language_data.js")
FIRST = {  # the page that must come first
    # a chapter by its name, whole or begun
    "resnet": "chapters/resnet",
    "ResNeXt": "chapters/resnext",
    "vgg": "chapters/vgg",
    "LeNet-5": "chapters/lenet",
    "densenet": "chapters/densenet",
    "network in network": "chapters/nin",
    "googl": "chapters/googlenet",
    "alex": "chapters/alexnet",
    "feature fusion": "chapters/feature_fusion",
    "EfficientNet": "chapters/efficientnet",
    "nfnet": "chapters/nfnet",
    "convnext": "chapters/convnext",
    "shuffle net": "chapters/shufflenet",
    "vision transformer": "chapters/vit",
    "cspnet": "chapters/cspnet",
    "facenet": "chapters/facenet",
    "YOLOv1": "chapters/yolov1",
    "evolution of cnns": "chapters/cnn_evolution",
    "feature pyramid": "chapters/fpn",
    "YOLOv2": "chapters/yolov2",
    "yolov3": "chapters/yolov3",
    "YOLOv4": "chapters/yolov4",
    "yolov5": "chapters/yolov5",
    "PANet": "chapters/panet",
    "EfficientDet": "chapters/efficientdet",
    "bert": "chapters/bert",
    "tacotron": "chapters/tacotron",
    "tacotron 2": "chapters/tacotron2",
    "ddpm": "chapters/diffusion",
    "stable diffusion": "chapters/stable_diffusion",
    "positional encoding": "chapters/positional_encoding",
    "bloom": "chapters/bloom",
    "imagenet recipes": "chapters/imagenet_recipes",
    "resnet-50 on cifar-100": "chapters/cifar100_resnet50",
    "data sets": "chapters/data_sets",
    "mnist": "chapters/mnist",
    "cifar-10": "chapters/cifar",
    "coco": "chapters/coco",
    "pascal voc": "chapters/voc",
    "wikipedia": "chapters/wikipedia",
    "squad 2.0": "chapters/squad2",
    "torch.hub": "chapters/torch_hub",
    "hugging face": "chapters/hugging_face",
    "onnx model zoo": "chapters/onnx_zoo",
    "open model zoo": "chapters/open_model_zoo",
    "tensorflow models": "chapters/tf_models",
    "looking into a network": "chapters/inspection",
    "seeing what a cnn sees": "chapters/visualize_cnn",
    "counting operations": "chapters/flops_params",
    "what training keeps in memory": "chapters/memory",
    "matrix multiplication": "chapters/matmul",
    "mixed precision": "chapters/mixed_precision",
    "quantization": "chapters/quantization",
    "export to onnx": "chapters/onnx_export",
    "what a framework does": "chapters/frameworks",
    # a term, where it is explained
    "adaptive feature pooling": "chapters/panet",
    "residual": "chapters/resnet",
    "degradations": "chapters/resnet",
    "shortcut": "chapters/resnet",
    "inception": "chapters/googlenet",
    "auxiliary heads": "chapters/googlenet",
    "global average pooling": "chapters/nin",
    "receptive field": "chapters/vgg",
    "effective receptive field": "chapters/convnext",
    "growth rate": "chapters/densenet",
    "cardinality": "chapters/resnext",
    "dropout": "chapters/alexnet",
    "local response normalization": "chapters/alexnet",
    "subsampling": "chapters/lenet",
    "squeeze and excitation": "chapters/feature_fusion",
    "depthwise": "chapters/cnn_evolution",
    "compound scaling": "chapters/efficientnet",
    "adaptive gradient clipping": "chapters/nfnet",
    "layer scale": "chapters/convnext",  # two words that are on most pages
    "layer scale of one millionth": "chapters/convnext",
    "channel shuffle": "chapters/shufflenet",
    "grouped-query attention": "chapters/transformer_family",
    "griffin-lim": "chapters/tacotron",
    "label audit": "chapters/mnist",
    "near duplicates": "chapters/wikipedia",
    "run lengths": "chapters/coco",
    "truncated": "chapters/voc",
    "minhash": "chapters/wikipedia",
    "memory map": "chapters/data_sets",
    "atrous": "chapters/torch_hub",
    "location-sensitive attention": "chapters/tacotron2",
    "classifier-free guidance": "chapters/diffusion",
    "cross-attention": "chapters/stable_diffusion",
    "class token": "chapters/vit",
    "responsible box": "chapters/yolov1",
    "WordTree": "chapters/yolov2",
    "passthrough layer": "chapters/yolov2",
    "cross stage": "chapters/cspnet",
    "fast normalised fusion": "chapters/efficientdet",
    "triplet loss": "chapters/facenet",
    "non-maximum suppression": "chapters/detection",
    "average precision": "chapters/detection",
    "RoIAlign": "chapters/detection",
    "top-down path": "chapters/fpn",
    "darknet-53": "chapters/yolov3",
    "mosaic": "chapters/yolov4",
    "drop block": "chapters/yolov4",
    "back-propagation through time": "chapters/rnn",
    "unanswerable questions": "chapters/squad",
    "LSTM": "chapters/lstm",
    "sequence to sequence": "chapters/seq2seq",
    "forget gate": "chapters/lstm",
    "additive score": "chapters/attention",
    "key-value cache": "chapters/transformer",
    '"identity shortcut"': "chapters/resnet",
    # numbers and sizes
    "1×1": "chapters/nin",
    "1x1": "chapters/nin",
    "3×3": "chapters/vgg",
    "3x3": "chapters/vgg",
    "11x11": "chapters/alexnet",
    "11 × 11": "chapters/alexnet",
    "2012": "chapters/alexnet",
    "138357544": "chapters/vgg",
    "138,357,544": "chapters/vgg",
    "138 357 544": "chapters/vgg",
    "25557032": "chapters/resnet",
    # authors and papers
    "LeCun": "chapters/lenet",
    "Kaiming He": "chapters/resnet",
    "Dollár": "chapters/resnext",
    "Dollar": "chapters/resnext",
    "going deeper with convolutions": "chapters/googlenet",
    # names in the code
    "BasicBlock": "chapters/resnet",
    "basicblock": "chapters/resnet",
    "MlpConv": "chapters/nin",
    "map_criterion": "chapters/lenet",
    "growth": "chapters/densenet",
    # spelling
    "color": "chapters/alexnet",
    "colour": "chapters/alexnet",
    # Chinese
    "残差网络": "chapters/resnet",
    "卷积": "chapters/cnn_evolution",
    # other pages
    "bibliography": "bibliography",
    "what the pages ran on": "status",
}
SAME = (
    ("color", "colour"),
    ("optimizer", "optimiser"),
    ("normalization", "normalisation"),
    ("initialize", "initialise"),
    ("gray", "grey"),
    ("neighbors", "neighbours"),
    ("1×1", "1 x 1"),
    ("Dollár", "dollar"),
    ("nn.Conv2d(", "nn Conv2d"),
)
EXTRA = ("block", "dirac", "digitnetwork", "网络", "zebra", "residual zebra", "qqq", "卷")


@pytest.fixture(scope="module")
def root(site):
    with serve(site) as address:
        yield address


@pytest.fixture
def visit(browser, root):
    with contextlib.ExitStack() as stack:

        def open_page(name: str = START, address: str = root, **options) -> Visit:
            context = stack.enter_context(contextlib.closing(new_context(browser, **options)))
            return Visit(context, address).open(name)

        yield open_page


def opened(tab: Visit):
    """The dialog, once the engine is there."""
    tab.page.keyboard.press("Control+k")
    dialog = tab.page.locator("#pst-search-dialog")
    expect(dialog.get_by_role("status")).to_contain_text("A network, a term")
    return dialog


# ---- what is found -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(browser, root) -> dict[str, list[dict]]:
    """{query: pages that are found, best first}, asked in one visit."""
    queries = [*FIRST, *EXTRA, *(query for pair in SAME for query in pair)]
    with contextlib.closing(new_context(browser)) as context:
        tab = Visit(context, root).open(START)
        answers = tab.page.evaluate(
            """async (queries) => {
                const { find } = await import("../_static/search.js");
                const answers = [];
                for (const query of queries) answers.push((await find(query, 100)).pages);
                return answers;
            }""",
            queries,
        )
        assert tab.trouble == []
    for page in (page for pages in answers for page in pages):
        page["name"] = urlsplit(page["url"]).path.removeprefix("/book/").removesuffix(".html")
    return dict(zip(queries, answers))


def names(pages: list[dict]) -> list[str]:
    return [page["name"] for page in pages]


@pytest.mark.parametrize("query", FIRST)
def test_a_query_finds_its_page_first(found, query):
    assert names(found[query])[:1] == [FIRST[query]], names(found[query])


def test_each_chapter_is_found_first_by_its_title(found):
    assert {f"chapters/{stem}" for stem in STEMS} <= set(FIRST.values())


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_ways_to_write_it_find_the_same(found, one, other):
    assert names(found[one]) and sorted(names(found[one])) == sorted(names(found[other]))


def test_notebooks_do_not_double_their_chapters_and_the_bibliography_comes_last(found):
    assert not [page for pages in found.values() for page in names(pages) if "notebooks" in page]
    for query in ("residual", "inception", "squeeze and excitation", "LeCun"):
        assert names(found[query])[-1] == "bibliography"


def test_an_identifier_is_found_by_its_parts(found):
    assert {"chapters/resnet", "chapters/densenet"} <= set(names(found["block"]))
    assert names(found["dirac"]) == ["chapters/resnet"]  # nn.init.dirac_ alone has the word
    assert names(found["digitnetwork"])[0] == "chapters/resnet"


def test_chinese_finds_each_page_with_a_title_that_holds_it(site, found):
    titles = {}
    for path in (site / "chapters").glob("*.html"):
        html = BeautifulSoup(path.read_bytes(), "html.parser", parse_only=SoupStrainer(lang="zh"))
        titles[f"chapters/{path.stem}"] = html.text
    for query in ("卷积", "网络", "卷", "残差网络"):
        holds = {page for page, text in titles.items() if query in text}
        assert holds and set(names(found[query])) == holds, query


@pytest.mark.parametrize("query", ["zebra", "residual zebra", "qqq"])
def test_a_word_that_is_not_in_the_book_finds_nothing(found, query):
    assert found[query] == []


def test_what_the_index_adds_is_not_shown(found):
    shown = json.dumps(list(found.values()), ensure_ascii=False)
    assert not re.search(r"~[|-]|ẋ|<mark>|&lt;", shown)


# ---- the dialog ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light")])
def test_the_dialog_is_opaque_accessible_and_within_the_window(visit, width, scheme):
    tab = visit(color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.page.evaluate("scrollTo({ top: 1500, behavior: 'instant' })")
    dialog = opened(tab)
    tab.page.keyboard.type("residual")
    expect(dialog.locator("li").first).to_contain_text("ResNet")
    seen = tab.page.evaluate("""() => {
        const dialog = document.querySelector("#pst-search-dialog");
        const { left, right, top, bottom } = dialog.getBoundingClientRect();
        const pen = document.createElement("canvas").getContext("2d");
        pen.fillStyle = getComputedStyle(dialog).backgroundColor;
        pen.fillRect(0, 0, 1, 1);
        const opacity = pen.getImageData(0, 0, 1, 1).data[3] * getComputedStyle(dialog).opacity;
        const light = pen.getImageData(0, 0, 1, 1).data[0] > 127;
        const inside = left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight;
        const places = [...dialog.querySelectorAll("a")].map((a) => a.getBoundingClientRect());
        const wide = places.some((box) => box.left < left || box.right > right);
        return { opacity, light, inside, wide };
    }""")
    assert seen == {"opacity": 255, "light": scheme == "light", "inside": True, "wide": False}
    assert against(tab.page, part="#pst-search-dialog") == {}
    assert tab.trouble == []


def test_nothing_of_search_is_loaded_before_it_is_opened(visit):
    tab = visit()
    assert not tab.loaded("pagefind") and not tab.loaded("search.js")
    tab.page.get_by_role("button", name="Search").first.click()
    expect(tab.page.get_by_role("status")).to_contain_text("A network, a term")
    assert tab.loaded("pagefind/pagefind.js") and tab.loaded(".pf_meta")
    assert not tab.loaded(".pf_fragment")
    assert not any(tab.loaded(name) for name in SPHINX)
    assert tab.trouble == []


def test_results_come_by_section_while_one_types_and_their_number_is_told(visit):
    tab = visit()
    dialog = opened(tab)
    status = dialog.get_by_role("status")
    tab.page.keyboard.type("residual")
    expect(status).to_contain_text(re.compile(r"^\d+ pages"))
    first = dialog.locator("li").first
    sections = [a.get_attribute("href") for a in first.locator("a").all()]
    assert sections[0].endswith("/chapters/resnet.html") and 2 <= len(sections) <= 4
    assert all("/chapters/resnet.html#" in address for address in sections[1:])
    assert first.locator("mark").first.inner_text().lower().startswith("residual")
    tab.page.keyboard.type(" zebra")
    expect(status).to_contain_text("Nothing is found for “residual zebra”")
    assert dialog.locator("li").count() == 0
    dialog.get_by_role("searchbox").fill("cardinality")
    expect(status).to_have_text("1 page.")
    dialog.get_by_role("searchbox").fill("")
    expect(status).to_contain_text("A network, a term")
    assert tab.trouble == []


def test_arrows_enter_and_escape(visit):
    tab = visit()
    dialog = opened(tab)
    field = dialog.get_by_role("searchbox")
    expect(field).to_be_focused()
    tab.page.keyboard.type("growth rate")
    links = dialog.locator("li a")
    expect(links.first).to_contain_text("DenseNet")
    tab.page.keyboard.press("ArrowDown")
    expect(links.first).to_be_focused()
    tab.page.keyboard.press("ArrowUp")
    expect(field).to_be_focused()
    tab.page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    tab.page.keyboard.press("Control+k")
    expect(field).to_be_focused()
    field.fill("growth rate")
    expect(links.first).to_contain_text("DenseNet")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/chapters/densenet.html#*")
    assert tab.trouble == []


@pytest.mark.parametrize("width", [390, 1300])
def test_what_was_sought_stays_until_something_else_is_typed(visit, width):
    tab = visit(viewport={"width": width, "height": 800})
    button = tab.page.locator(".search-button__button:visible")
    dialog = tab.page.locator("#pst-search-dialog")
    field = dialog.locator("input")
    browser = tab.page.context.new_cdp_session(tab.page)
    for close in (lambda: tab.page.keyboard.press("Escape"), dialog.get_by_text("Close").click) * 2:
        browser.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        button.focus()
        tab.page.keyboard.press("Enter")
        tab.page.keyboard.type("growth rate")  # at once, and in place of what was sought before
        expect(field).to_have_value("growth rate")
        browser.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        expect(dialog.locator("li a").first).to_contain_text("DenseNet")
        close()
        expect(dialog).not_to_be_visible()
        expect(button).to_be_focused()
        expect(field).to_have_value("growth rate")
        assert dialog.locator("li").count() > 0


def test_the_field_stands_still_with_its_ring_and_its_text_is_no_hint(visit):
    tab = visit()
    dialog = opened(tab)
    field = dialog.get_by_role("searchbox")
    expect(field).to_be_focused()
    tab.page.keyboard.type("residual")
    expect(dialog.locator("li").first).to_be_visible()
    place = field.bounding_box()
    assert abs(place["x"] - dialog.locator("li").first.bounding_box()["x"]) < 1
    colours = "e => [e, e.closest('dialog')].map(one => getComputedStyle(one).color)"
    own, text = field.evaluate(colours)
    assert own == text
    tab.page.keyboard.press("ArrowDown")
    assert field.bounding_box() == place


def test_the_search_page_begins_where_other_pages_do(visit):
    tab = visit()
    title = tab.page.locator("main h1:visible").bounding_box()
    tab.go("search.html")
    own = tab.page.locator("main h1:visible").bounding_box()
    field = tab.page.locator("main").get_by_role("searchbox").bounding_box()
    assert abs(own["x"] - title["x"]) < 1
    assert own["y"] <= title["y"]  # which has a line above it
    assert abs(field["x"] - title["x"]) < 1


def test_what_is_found_moves_nothing_that_is_in_view(visit):
    tab = visit("search.html?q=residual", viewport={"width": 412, "height": 823})
    expect(tab.page.locator("main li").first).to_contain_text("ResNet")
    shifts = tab.page.evaluate("book.shifts")
    assert sum(shift["value"] for shift in shifts) < 0.01, shifts


def test_enter_without_a_choice_leads_to_the_page_of_all_results(visit):
    tab = visit()
    dialog = opened(tab)
    tab.page.keyboard.type("residual")
    expect(dialog.locator("li").first).to_contain_text("ResNet")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/search.html?q=residual")
    expect(tab.page.locator("main li").first).to_contain_text("ResNet")
    field = tab.page.locator("main").get_by_role("searchbox")
    expect(field).to_be_focused()
    field.fill("残差网络")
    expect(tab.page.locator("main").get_by_role("status")).to_have_text("1 page.")
    assert parse_qs(urlsplit(tab.page.url).query) == {"q": ["残差网络"]}
    assert not any(tab.loaded(name) for name in SPHINX)
    tab.scroll()
    assert tab.trouble == []


# ---- the ways out --------------------------------------------------------------------------------


def test_without_scripts_the_search_page_says_so_and_leads_on(browser, root):
    with contextlib.closing(new_context(browser, java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(root + "search.html")
        assert "Search needs JavaScript" in page.locator("main noscript").inner_text()
        assert not page.locator("main input").is_visible()
        page.locator("main noscript a").first.click()
        assert page.url == root + "index.html"
        assert page.locator("main a", has_text="ResNet").first.is_visible()


def test_where_the_index_cannot_be_loaded_the_page_of_sphinx_takes_over(visit):
    tab = visit()
    tab.page.route("**/pagefind/**", lambda route: route.abort())
    tab.page.keyboard.press("Control+k")
    expect(tab.page.get_by_role("status")).to_contain_text("The index cannot be loaded")
    tab.page.keyboard.type("degradation")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/search.html?q=degradation")
    expect(tab.page.locator("#search-results a", has_text="ResNet").first).to_be_visible()
    expect(tab.page.locator("main .search-status")).to_have_text("")


def test_a_site_opened_as_files_is_searched_by_the_page_of_sphinx(browser, site):
    with contextlib.closing(new_context(browser)) as context:
        tab = Visit(context, f"{site.as_uri()}/").open(START)
        tab.page.keyboard.press("Control+k")
        assert "Enter shows what is found" in tab.page.get_by_role("status").inner_text()
        tab.page.keyboard.type("degradation")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_url("**/search.html?q=degradation")
        link = tab.page.locator("#search-results a", has_text="ResNet").first
        link.click()
        tab.page.wait_for_url("**/chapters/resnet.html*")
        tab.scroll()
        assert tab.page.get_by_text("Hide Search Matches").count() == 0
        assert tab.trouble == []
