"""The theme's style sheet without what no page can need."""

import tinycss2

from slim import slim

KNOWN = {"bd-article", "table", "open"}


def kept(css: str) -> str:
    return slim(tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True), KNOWN)


def test_a_rule_stays_when_all_classes_of_a_selector_are_known():
    assert kept("body{color:red}") == "body{color:red}"
    assert kept(".bd-article .table>tr{top:0}") == ".bd-article .table>tr{top:0}"
    assert kept(".bd-article .card{top:0}") == ""
    assert kept(".card,.table,.carousel td{top:0}") == ".table{top:0}"


def test_a_class_inside_a_function_decides_nothing():
    rule = ".table:not(.card):is(.x,.y){top:0}"
    assert kept(rule) == rule


def test_media_queries_lose_their_unused_rules_and_go_when_empty():
    assert kept("@media print{.card{top:0}.open{top:1px}}") == "@media print{.open{top:1px}}"
    assert kept("@media print{.card{top:0}}") == ""


def test_other_fonts_and_key_frames_stay_and_the_icon_font_goes():
    font = '@font-face{font-family:"Text";src:url(a.woff2)}'
    frames = "@keyframes turn{from{top:0}to{top:1px}}"
    icons = r"@font-face{font-family:Font Awesome\ 7 Free;src:url(fa.woff2)}"
    assert kept(font + frames + icons) == font + frames
