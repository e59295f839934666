"""Chinese text is marked as such, and a wrong link is refused."""

import pytest

from sites import build, page, write_site

CONF = 'extensions = ["chinese"]\nhtml_theme = "basic"\n'


def test_text_and_links_are_marked_as_chinese(tmp_path):
    text = "A\n=\n\nThe word :zh:`残差 (residual)`, read :zh:`ResNet 解读：<残差> 网络 <https://a.org/p?q=1#b>`.\n"
    folder = write_site(tmp_path, {"index.rst": text}, CONF)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    word, title = page(folder, "index").select("p span[lang=zh]")
    assert word.text == "残差 (residual)" and word.a is None
    assert title.text == title.a.text == "ResNet 解读：<残差> 网络"
    assert title.a["href"] == "https://a.org/p?q=1#b"
    assert "external" in title.a["class"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (":zh:`<https://a.org>`", "zh: the link has no title"),
        (":zh:`解读 <www.a.org>`", "zh: 'www.a.org' is not an address that starts with https://"),
        (":zh:`解读 <>`", "zh: '' is not an address"),
        (":zh:`解读 <javascript:alert>`", "zh: 'javascript:alert' is not an address"),
    ],
)
def test_wrong_use_is_an_error_at_its_line(tmp_path, wrong, message):
    folder = write_site(tmp_path, {"index.rst": f"A\n=\n\nOne.\n\nTwo {wrong}.\n"}, CONF)
    result = build(folder)
    assert result.returncode != 0
    assert "index.rst:6: ERROR" in result.stderr
    assert message in result.stderr


def test_a_title_is_extracted_for_translation_with_its_paragraph(tmp_path):
    text = "A\n=\n\nRead :zh:`解读 <https://a.org>`.\n"
    folder = write_site(tmp_path, {"index.rst": text}, CONF)
    assert build(folder, "-b", "gettext").returncode == 0
    catalogue = (folder / "_build" / "html" / "index.pot").read_text(encoding="utf-8")
    assert 'msgid "Read :zh:`解读 <https://a.org>`."' in catalogue
