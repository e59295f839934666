"""The files of Pascal VOC, cropping, and average precision of notebooks/voc.py."""

import io
import math
import random
import zlib
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, ops

from loader import definitions

voc = definitions("voc")


def thing(box=(1, 1, 10, 10), name="Tree", **flags):
    return voc.Thing(name, tuple(map(float, box)), **flags)


def read(objects):
    return voc.read_annotation(io.StringIO(f"<annotation>{objects}</annotation>"))


BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>5</xmax><ymax>9</ymax></bndbox>"


# ---- annotations ---------------------------------------------------------------------------------


def test_the_box_of_the_object_is_read_and_not_that_of_its_head():
    (person,) = voc.read_annotation(io.StringIO(voc.WRITTEN))
    assert person == voc.Thing("person", (1, 1, 4, 8), True, False, "Left")


def test_flags_and_pose_may_be_absent():
    (one,) = read(f"<object><name> cat </name>{BOX}</object>")
    assert one == voc.Thing("cat", (3, 4, 5, 9), False, False, "Unspecified")


def test_each_flag_is_read_from_its_own_tag():
    for truncated, difficult in ((0, 1), (1, 0)):
        flags = f"<difficult>{difficult}</difficult><truncated>{truncated}</truncated>"
        (one,) = read(f"<object><name>cat</name>{flags}{BOX}</object>")
        assert (one.truncated, one.difficult) == (bool(truncated), bool(difficult))


def test_sides_in_another_order_are_read_by_name_and_may_have_fractions():
    box = "<bndbox><xmax>5.5</xmax><ymax>9</ymax><xmin>3</xmin><ymin>4</ymin></bndbox>"
    assert read(f"<object><name>cat</name>{box}</object>")[0].box == (3, 4, 5.5, 9)


def test_a_box_of_one_pixel_is_one():
    box = BOX.replace("<xmax>5", "<xmax>3").replace("<ymax>9", "<ymax>4")
    (one,) = read(f"<object><name>cat</name>{box}</object>")
    assert voc.area(voc.edges(one.box)) == 1


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (f"<object>{BOX}</object>", "needs <name> and <bndbox>"),
        ("<object><name>cat</name></object>", "with xmin, ymin, xmax, ymax"),
        ("<object><name>a</name>" + BOX.replace("<xmin>3", "<xmin>6") + "</object>", "in order"),
        ("<object><name>a</name>" + BOX.replace("<ymin>4", "<ymin>10") + "</object>", "in order"),
    ],
)
def test_an_object_that_lacks_something_says_what(objects, words):
    with pytest.raises(ValueError, match=words):
        read(objects)


def test_half_a_file_is_named(tmp_path):
    file = tmp_path / "000001.xml"
    file.write_text("<annotation><object>")
    with pytest.raises(ValueError, match="000001.xml is no whole XML, fetch it again"):
        voc.read_annotation(file)


def test_edges_and_areas_by_hand():
    assert voc.edges((1, 1, 4, 8)).tolist() == [0, 0, 4, 8]
    assert voc.area(torch.tensor([[0.0, 0, 4, 8], [5, 5, 3, 9]])).tolist() == [32, 0]


def test_what_is_written_is_read_again_by_us_and_by_torchvision():
    things = [
        thing((1, 2, 30, 40), "Dead", truncated=True),
        thing((5, 5, 6, 60), difficult=True, pose="Left"),
    ]
    text = voc.annotation("000007", things, True)
    assert voc.read_annotation(io.StringIO(text)) == things
    target = datasets.VOCDetection.parse_voc_xml(ElementTree.fromstring(text))["annotation"]
    assert list(map(voc.of_torchvision, target["object"])) == things
    assert target["filename"] == "000007.jpg"
    assert target["folder"] == "VOC2007"
    assert target["segmented"] == "1"
    assert target["size"] == {"width": "200", "height": "200", "depth": "3"}
    assert "<segmented>0<" in voc.annotation("a", [], False)
    assert text.count("\n") > 20


# ---- cropping ------------------------------------------------------------------------------------


def test_a_crop_by_hand():
    things = [
        thing((11, 11, 20, 20)),  # inside
        thing((1, 11, 20, 20)),  # half of it: truncated, not difficult
        thing((1, 11, 14, 20)),  # 4 of 14 columns: difficult
        thing((2, 11, 10, 20)),  # nothing
        thing((3, 11, 11, 30)),  # a ninth of it and more below: 1 column of 9
    ]
    found = voc.cropped(things, 10, 10, 20)
    assert [one.box for one in found] == [
        (1, 1, 10, 10),
        (1, 1, 10, 10),
        (1, 1, 4, 10),
        (1, 1, 1, 20),
    ]
    assert [one.truncated for one in found] == [False, True, True, True]
    assert [one.difficult for one in found] == [False, False, True, True]


def test_the_limits_of_a_crop():
    row = [thing((101 - k, 1, 200 - k, 10)) for k in (0, 15, 16, 50, 51, 90, 91)]
    found = voc.cropped(row, 100, 0, 100)
    assert [one.truncated for one in found] == [False, False, True, True, True, True]
    assert [one.difficult for one in found] == [False, False, False, False, True, True]


def test_a_crop_on_the_lower_and_right_side():
    (one,) = voc.cropped([thing((15, 25, 24, 44))], 10, 20, 10)
    assert one.box == (5, 5, 10, 10)
    (one,) = voc.cropped([thing((15, 25, 24, 30), name="Dead", pose="Rear")], 10, 20, 20)
    assert one == thing((5, 5, 14, 10), name="Dead", pose="Rear")


def test_flags_that_are_set_stay():
    flagged = [thing((2, 2, 5, 5), truncated=True), thing((2, 2, 5, 5), difficult=True)]
    assert voc.cropped(flagged, 0, 0, 20) == flagged


def test_a_crop_of_everything_changes_nothing():
    things = voc.read_annotation(voc.shipped("OSBS_029.xml"))
    assert voc.cropped(things, 0, 0, 400) == things


# ---- lists ---------------------------------------------------------------------------------------


def test_the_value_of_a_list():
    easy, hard = thing(), thing(difficult=True)
    assert voc.list_value([easy, hard], "Tree") == 1
    assert voc.list_value([hard], "Tree") == 0
    assert voc.list_value([thing(name="Dead")], "Tree") == -1
    assert voc.list_value([hard, thing(name="Dead")], "Dead") == 1
    assert voc.list_value([], "Tree") == -1


def test_lists_with_and_without_a_second_column(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("000012  1\n000017 -1\n000023  0\n")
    assert voc.read_list(file) == {"000012": 1, "000017": -1, "000023": 0}
    file.write_text("000012\n000017\n")
    assert voc.read_list(file) == {"000012": 1, "000017": 1}


def test_lists_are_written_as_they_are_read(tmp_path):
    members = {"a": [thing()], "b": [thing(difficult=True)], "c": []}
    voc.write_lists(tmp_path, "val", members, ["b"])
    assert voc.read_list(tmp_path / "Main" / "Tree_val.txt") == {"a": 1, "b": 0, "c": -1}
    assert (tmp_path / "Main" / "Tree_val.txt").read_text().splitlines()[0] == "a  1"
    assert voc.read_list(tmp_path / "Main" / "Dead_val.txt") == {"a": -1, "b": -1, "c": -1}
    assert [*voc.read_list(tmp_path / "Main" / "val.txt")] == ["a", "b", "c"]
    assert [*voc.read_list(tmp_path / "Segmentation" / "val.txt")] == ["b"]


# ---- the tiny set --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    voc.tiny_set(folder)
    return folder


@pytest.mark.parametrize(("part", "n"), [("train", 70), ("val", 66), ("test", 34)])
def test_torchvision_reads_the_tiny_set(folder, part, n):
    place = folder / "VOCdevkit" / "VOC2007"
    theirs = datasets.VOCDetection(str(folder), "2007", part)
    names = [*voc.read_list(place / "ImageSets" / "Main" / f"{part}.txt")]
    assert len(theirs) == len(names) == n
    for i in (0, n // 2, n - 1):
        picture, target = theirs[i]
        assert picture.size == (200, 200)
        assert target["annotation"]["filename"] == f"{names[i]}.jpg"
        found = [voc.of_torchvision(one) for one in target["annotation"].get("object", [])]
        assert found == voc.read_annotation(place / "Annotations" / f"{names[i]}.xml")


def test_photographs_are_numbered_through_and_masks_belong_to_them(folder):
    place = folder / "VOCdevkit" / "VOC2007"
    files = sorted(file.stem for file in (place / "JPEGImages").iterdir())
    assert files == [f"{i:06d}" for i in range(1, 171)]
    masks = {file.stem for file in (place / "SegmentationClass").iterdir()}
    assert len(masks) == 12
    listed = set()
    for part in ("train", "val", "test"):
        listed |= set(voc.read_list(place / "ImageSets" / "Segmentation" / f"{part}.txt"))
    assert masks == listed
    for name in files:
        root = ElementTree.parse(place / "Annotations" / f"{name}.xml").getroot()
        assert root.findtext("segmented") == str(int(name in masks))
        assert name not in masks or root.find("object") is not None


def test_a_tile_shows_the_photograph_and_its_trees():
    tiles = voc.tiles_of("OSBS_029")
    photograph = np.array(Image.open(voc.shipped("OSBS_029.png")).convert("RGB"))
    trees = voc.read_annotation(voc.shipped("OSBS_029.xml"))
    assert len(tiles) == 4
    for (tile, things), (top, left) in zip(tiles, ((0, 0), (0, 200), (200, 0), (200, 200))):
        assert (np.array(tile) == photograph[top : top + 200, left : left + 200]).all()
        assert things == voc.cropped(trees, left, top, 200)


def test_the_tiles_of_a_photograph_that_is_no_multiple_stay_inside():
    assert len(voc.tiles_of(voc.FAR)) == 6 * 5


def test_a_tile_that_lacks_a_line_of_pixels_is_left_out(tmp_path, monkeypatch):
    Image.new("RGB", (399, 399)).save(tmp_path / f"{voc.FAR}.png")
    (tmp_path / f"{voc.FAR}.xml").write_text("<annotation/>")
    place = lambda package, name, sha256: tmp_path / name.removeprefix("data/")  # noqa: E731
    monkeypatch.setattr(voc.archives, "package_file", place)
    assert len(voc.tiles_of(voc.FAR)) == 1


def test_the_upper_half_validates_and_the_lower_trains(folder):
    place = folder / "VOCdevkit" / "VOC2007" / "Annotations"
    near = voc.tiles_of(voc.NEAR)
    assert len(near) == 132
    assert voc.read_annotation(place / "000001.xml") == near[66][1]
    assert voc.read_annotation(place / "000071.xml") == near[0][1]
    assert voc.read_annotation(place / "000137.xml") == voc.tiles_of(voc.FAR)[0][1]


# ---- masks ---------------------------------------------------------------------------------------


def test_colours_that_the_development_kit_lists():
    colours = voc.palette()
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert colours[:6] == known
    assert colours[8] == (64, 0, 0)
    assert colours[15] == (192, 128, 128)
    assert colours[20] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256


def test_pillow_reads_mask_and_palette_back(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    voc.write_mask(tmp_path / "a.png", mask)
    with Image.open(tmp_path / "a.png") as picture:
        assert (np.array(picture) == mask).all()
        assert picture.getpalette() == [value for colour in voc.palette() for value in colour]
        assert (np.array(picture.convert("RGB")) == np.array(voc.palette())[mask]).all()


def test_the_chunks_of_a_png(tmp_path):
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png")
    found = voc.chunks((tmp_path / "a.png").read_bytes())
    assert found["IHDR"][:10] == bytes([0, 0, 0, 5, 0, 0, 0, 3, 8, 0])
    assert [*found] == ["IHDR", "IDAT", "IEND"]
    assert found["IEND"] == b""


def test_chunks_of_one_kind_are_joined(tmp_path):
    def chunk(kind, body):
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + checksum

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"ab") + chunk(b"IDAT", b"cde")
    assert voc.chunks(data) == {"IDAT": b"abcde"}


def test_a_damaged_mask_says_what_to_do(tmp_path):
    voc.write_mask(tmp_path / "a.png", np.zeros((3, 5), np.uint8))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[20] ^= 1
    with pytest.raises(ValueError, match="IHDR is damaged, fetch the file again"):
        voc.chunks(bytes(data))
    with pytest.raises(ValueError, match="this is no PNG"):
        voc.chunks(b"\xff\xd8\xff\xe0 JPEG")


def test_a_drawn_mask_by_hand():
    mask = voc.drawn_mask([thing((21, 41, 60, 100), "Dead")])
    assert mask.shape == (200, 200)
    row = mask[70]  # the middle: columns 20 to 60, half of the border on each side
    assert set(row[:17]) == {0}
    assert set(row[18:22]) == {voc.VOID}
    assert set(row[23:57]) == {voc.CLASSES.index("Dead") + 1}
    assert set(row[58:62]) == {voc.VOID}
    assert set(row[63:]) == {0}
    column = mask[:, 40]
    assert np.flatnonzero(column == 2)[[0, -1]].tolist() == [43, 97] or column[43] == 2
    assert (column[38:42] == voc.VOID).all()
    assert (column[98:102] == voc.VOID).all()
    assert mask[41, 21] == 0  # an ellipse does not fill its box


def test_smaller_objects_are_in_front():
    large, small = thing((1, 1, 100, 100)), thing((40, 40, 61, 61), "Dead")
    for things in ([large, small], [small, large]):
        mask = voc.drawn_mask(things, ((0, None),))
        assert mask[50, 50] == 2
        assert mask[20, 50] == 1


def test_a_mask_that_shrinks_to_nothing_keeps_a_spot():
    mask = voc.drawn_mask([thing((11, 11, 13, 13))], ((-5, None),))
    assert np.argwhere(mask).tolist() == [[11, 11]]
    assert (voc.drawn_mask([thing((11, 11, 20, 20))], ((2, None),)) > 0).sum() > 120


def test_mean_iou_by_hand():
    truth = np.array([0, 0, 255, 1, 1])
    assert math.isclose(voc.mean_iou(np.array([0, 1, 1, 1, 1]), truth, 3), (1 / 2 + 2 / 3) / 2)
    assert voc.mean_iou(np.array([0, 0, 2, 1, 1]), truth, 3) == 1
    assert voc.mean_iou(np.array([0, 0, 0, 2, 2]), truth, 3) == 1 / 3


def test_mean_iou_is_that_of_sets_of_pixels():
    draw = np.random.default_rng(1)
    truth = draw.choice([0, 1, 2, 4, 255], (20, 30)).astype(np.uint8)
    found = draw.integers(0, 5, (20, 30), dtype=np.uint8)
    values = []
    for k in range(5):
        a = {tuple(p) for p in np.argwhere((truth == k) & (truth != 255))}
        b = {tuple(p) for p in np.argwhere((found == k) & (truth != 255))}
        values.append(len(a & b) / len(a | b))
    assert math.isclose(voc.mean_iou(found, truth, 5), sum(values) / 5)


# ---- average precision ---------------------------------------------------------------------------


def truth(boxes, difficult=None, truncated=None):
    n = len(boxes)
    flags = [torch.tensor(f or [False] * n, dtype=torch.bool) for f in (truncated, difficult)]
    return voc.Truth(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), *flags)


def detection(score, box, image="a"):
    return voc.Detection(image, score, torch.tensor(box, dtype=torch.float32))


def test_the_truth_of_a_class():
    things = [thing(), thing((3, 3, 4, 4), "Dead"), thing((2, 3, 4, 5), truncated=True)]
    found = voc.truth_of([*things, thing(difficult=True)], "Tree")
    assert found.boxes.tolist() == [[0, 0, 10, 10], [1, 2, 4, 5], [0, 0, 10, 10]]
    assert found.truncated.tolist() == [False, True, False]
    assert found.difficult.tolist() == [False, False, True]
    nothing = voc.truth_of([], "Tree")
    assert nothing.boxes.shape == (0, 4)
    assert nothing.truncated.dtype == nothing.difficult.dtype == torch.bool


def test_verdicts_by_hand():
    truths = {"a": truth([(0, 0, 10, 10), (20, 0, 30, 10)], [False, True]), "b": truth([])}
    found = [
        detection(0.9, (0, 0, 10, 9)),  # right
        detection(0.95, (50, 0, 60, 10)),  # nothing there
        detection(0.8, (20, 0, 30, 9)),  # difficult
        detection(0.7, (20, 0, 30, 8)),  # difficult, again
        detection(0.6, (0, 0, 10, 10)),  # taken
        detection(0.5, (0, 0, 10, 10), "b"),  # another photograph, without objects
    ]
    assert voc.verdicts(found, truths) == [False, True, False, False]
    assert voc.verdicts(found[::-1], truths) == [False, True, False, False]


def test_an_iou_of_one_half_is_enough():
    truths = {"a": truth([(0, 0, 10, 10)])}
    assert voc.verdicts([detection(1, (0, 0, 10, 5))], truths) == [True]
    assert voc.verdicts([detection(1, (0, 0, 10, 4.9))], truths) == [False]


def test_a_detection_asks_only_for_the_object_that_it_overlaps_most():
    truths = {"a": truth([(0, 0, 10, 10), (0, 0, 10, 8)])}
    found = [detection(0.9, (0, 0, 10, 10)), detection(0.8, (0, 0, 10, 9.5))]
    assert voc.verdicts(found, truths) == [True, False]


def test_the_same_place_on_two_photographs_is_two_objects():
    truths = {"a": truth([(0, 0, 10, 10)]), "b": truth([(0, 0, 10, 10)])}
    found = [detection(0.9, (0, 0, 10, 10)), detection(0.8, (0, 0, 10, 10), "b")]
    assert voc.verdicts(found, truths) == [True, True]


def test_average_precision_by_hand():
    six = [True, False, True, True, False, False]
    assert math.isclose(voc.average_precision(six, 4, voc.eleven()), 6.75 / 11)
    assert math.isclose(voc.average_precision(six, 4, voc.every(4)), 0.625)
    assert voc.average_precision([True, True], 2, voc.every(2)) == 1
    assert voc.average_precision([], 3, voc.every(3)) == 0
    assert voc.average_precision([False, False], 3, voc.eleven()) == 0


def test_recalls_are_exact():
    assert voc.eleven() == [Fraction(k, 10) for k in range(11)]
    assert voc.every(3) == [Fraction(1, 3), Fraction(2, 3), Fraction(1)]
    right = [True] * 3 + [False] * 7
    assert math.isclose(voc.average_precision(right, 10, voc.eleven()), 4 / 11)


@pytest.mark.parametrize("number", range(6))
def test_both_averages_are_those_of_pycocotools(number):
    found, truths = voc.random_case(100 + number)
    right = voc.verdicts(found, truths)
    n = voc.number_of(truths)
    assert 0 < n < 36
    for recalls in (voc.eleven(), voc.every(n)):
        ours = voc.average_precision(right, n, recalls)
        assert math.isclose(ours, voc.by_coco(found, truths, recalls), abs_tol=1e-12)
        assert 0.2 < ours < 0.9


def test_pycocotools_ignores_one_detection_of_a_difficult_object_and_voc_all():
    truths = {"a": truth([(0, 0, 10, 10), (20, 0, 30, 10)], [False, True])}
    once = [detection(0.9, (20, 0, 30, 9)), detection(0.8, (0, 0, 10, 9))]
    twice = [detection(0.95, (20, 0, 30, 8)), *once]
    for found, value in ((once, 1), (twice, 1 / 2)):
        assert voc.average_precision(voc.verdicts(found, truths), 1, voc.every(1)) == 1
        assert math.isclose(voc.by_coco(found, truths, voc.every(1)), value)


def test_random_cases_have_difficult_objects_that_are_found():
    found, truths = voc.random_case(3)
    assert [*truths] == ["a", "b", "c"]
    overlaps = ops.box_iou(truths["a"].boxes, truths["a"].boxes)
    assert torch.equal(overlaps, torch.eye(12))
    assert (truths["a"].boxes[:, 2:] - truths["a"].boxes[:, :2] == 40).all()
    assert 4 < int(sum(one.difficult.sum() for one in truths.values())) < 20
    assert len(voc.verdicts(found, truths)) < len(found)


def test_detections_of_random_cases_are_off_by_six_pixels_around_zero():
    off = []
    for number in range(40):
        found, truths = voc.random_case(number)
        boxes = torch.stack([one.box for one in found if one.box.max() < 500])
        best = ops.box_iou(boxes, truths["a"].boxes).argmax(1)
        off.append(boxes - truths["a"].boxes[best])
    assert torch.cat(off).mean(0).abs().max() < 0.7
    assert (torch.cat(off).std(0) - 6).abs().max() < 0.5


# ---- what is done with flags ---------------------------------------------------------------------


def ap_of(found, truths):
    n = voc.number_of(truths)
    return voc.average_precision(voc.verdicts(found, truths), n, voc.every(n))


FLAGGED = {"difficult": [False, True, False], "truncated": [False, False, True]}
BOXES = [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)]


def test_four_ways_to_treat_flags():
    one = truth(BOXES, **FLAGGED)
    assert voc.as_flagged(one) is one
    assert voc.counted(one).difficult.tolist() == [False] * 3
    assert voc.counted(one).truncated.tolist() == FLAGGED["truncated"]
    assert voc.dropped(one).boxes.tolist() == [list(BOXES[0]), list(BOXES[2])]
    assert voc.dropped(one).truncated.tolist() == [False, True]
    assert voc.whole(one).difficult.tolist() == [False, True, True]
    assert voc.number_of({"a": one, "b": one, "c": truth([])}) == 4


def test_ap_of_a_detector_that_finds_all_and_of_one_that_finds_no_difficult_object():
    one = truth(BOXES, **FLAGGED)
    keen = [detection(0.9, BOXES[1]), detection(0.8, BOXES[0]), detection(0.7, BOXES[2])]
    timid = keen[1:]
    expected = {
        voc.as_flagged: (1, 1),
        voc.counted: (1, 2 / 3),
        voc.dropped: (2 / 3, 1),
        voc.whole: (1, 1),
    }
    for way, values in expected.items():
        for found, value in zip((keen, timid), values):
            assert math.isclose(ap_of(found, {"a": way(one)}), value), way


@pytest.fixture(scope="module")
def many():
    draw = torch.Generator().manual_seed(0)
    truths = {}
    for i in range(60):
        corner = 200 * torch.rand(10, 2, generator=draw)
        boxes = torch.cat([corner, corner + 10 + 30 * torch.rand(10, 2, generator=draw)], 1)
        flags = torch.rand(2, 10, generator=draw) < 0.4
        truths[str(i)] = voc.Truth(boxes, *flags)
    return truths, voc.by_rule(truths, 7)


def test_the_two_detectors_differ_on_difficult_objects_only(many):
    truths, found = many
    rest = {id(one) for one in found["keen"]} - {id(one) for one in found["timid"]}
    extra = [one for one in found["keen"] if id(one) in rest]
    difficult = int(sum(one.difficult.sum() for one in truths.values()))
    assert 0.5 * difficult < len(extra) < difficult
    assert len(found["keen"]) == len(extra) + len(found["timid"])
    assert all((one.box[2:] > one.box[:2]).all() for one in found["keen"])
    for one in extra:
        boxes = truths[one.image].boxes[truths[one.image].difficult]
        assert ops.box_iou(one.box[None], boxes).max() > 0.3


def test_the_shares_of_the_rule(many):
    truths, found = many
    n = sum(len(one.boxes) for one in truths.values())
    truncated = int(sum(one.truncated.sum() for one in truths.values()))
    expected = 0.9 * (n - truncated) + 0.6 * truncated + 0.5 * n
    assert abs(len(found["keen"]) - expected) < 4 * math.sqrt(n)
    middle = torch.cat([voc.area(one.boxes) for one in truths.values()]).median()
    matched = {True: [], False: []}
    sizes = {True: [], False: []}
    shifts = []
    for one in found["timid"]:
        boxes = truths[one.image].boxes
        overlaps, best = ops.box_iou(one.box[None], boxes)[0].max(0)
        near = bool(overlaps > 0.6)
        matched[near].append(one.score)
        if near:
            box = boxes[best]
            sizes[bool(voc.area(box) > middle)].append(one.score)
            shifts.append(((one.box - box) / (box[2:] - box[:2]).repeat(2)).tolist())
    assert 0.06 < torch.tensor(shifts).std() < 0.09
    assert torch.tensor(shifts).mean(0).abs().max() < 0.02
    mean = {near: torch.tensor(scores).mean() for near, scores in matched.items()}
    assert 0.85 < mean[True] < 1.15
    assert mean[False] < 0.4
    assert torch.tensor(sizes[True]).mean() > torch.tensor(sizes[False]).mean() + 0.2


def test_whole_objects_are_found_more_often_than_truncated_ones():
    boxes = [(100.0 * i, 0, 100.0 * i + 40, 40) for i in range(400)]
    for flag, low, high in ((False, 0.85, 0.95), (True, 0.53, 0.67)):
        truths = {"a": truth(boxes, None, [flag] * 400)}
        found = voc.by_rule(truths, 3)["keen"]
        exact = torch.stack([one.box for one in found])
        near = ops.box_iou(exact, truths["a"].boxes).amax(1) > 0.55
        assert low < near.sum() / 400 < high


def test_scores_of_objects_and_of_alarms_spread_alike():
    boxes = [(100.0 * i, 0, 100.0 * i + 40, 40) for i in range(400)]
    truths = {"a": truth(boxes)}
    scores = {True: [], False: []}
    for one in voc.by_rule(truths, 5)["timid"]:
        near = ops.box_iou(one.box[None], truths["a"].boxes).max() > 0.6
        scores[bool(near)].append(one.score)
    for near, middle in ((True, 1), (False, 0)):
        found = torch.tensor(scores[near])
        assert abs(found.mean() - middle) < 0.15
        assert 0.6 < found.std() < 0.8


def test_a_seed_gives_the_same_detections_and_another_does_not(many):
    truths, found = many
    again = voc.by_rule(truths, 7)["keen"]
    assert [one.score for one in again] == [one.score for one in found["keen"]]
    other = voc.by_rule(truths, 8)["keen"]
    assert other[0].score != again[0].score


def test_photographs_without_objects_have_no_detections():
    truths = {"a": truth([]), "b": truth(BOXES)}
    assert all(one.image == "b" for one in voc.by_rule(truths, 0)["keen"])


# ---- statistics and solutions --------------------------------------------------------------------


def test_the_gravest_flag_counts():
    assert voc.kind_of(thing()) == "whole"
    assert voc.kind_of(thing(truncated=True)) == "truncated"
    assert voc.kind_of(thing(truncated=True, difficult=True)) == "difficult"
    assert voc.kind_of(thing(difficult=True)) == "difficult"


def test_centres_are_shares_of_width_and_height(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text(voc.WRITTEN)
    (place,) = voc.centres(file)
    assert place == pytest.approx((2 / 12, 4 / 8))


def test_the_twenty_classes_and_their_groups():
    names = [name for members in voc.GROUPS.values() for name in members]
    assert sorted(names) == sorted(voc.annotated.VOC)
    assert [len(members) for members in voc.GROUPS.values()] == [1, 6, 7, 6]


def test_the_parts_of_table_2_add_up_to_its_photographs():
    """The columns train and val of Everingham et al. 2010, table 2."""
    parts = {
        "aeroplane": (112, 126), "bicycle": (116, 127), "bird": (180, 150), "boat": (81, 100),
        "bottle": (139, 105), "bus": (97, 89), "car": (376, 337), "cat": (163, 174),
        "chair": (224, 221), "cow": (69, 72), "diningtable": (97, 103), "dog": (203, 218),
        "horse": (139, 148), "motorbike": (120, 125), "person": (1025, 983),
        "pottedplant": (133, 112), "sheep": (48, 48), "sofa": (111, 118), "train": (127, 134),
        "tvmonitor": (128, 128),
    }  # fmt: skip
    known = {name: n for members in voc.GROUPS.values() for name, n in members.items()}
    assert known == {name: sum(columns) for name, columns in parts.items()}


def test_mirrored_by_hand_and_twice():
    one = thing((1, 2, 4, 8), pose="Left", truncated=True)
    (found,) = voc.mirrored([one], 12)
    assert found == thing((9, 2, 12, 8), pose="Right", truncated=True)
    draw = random.Random(0)
    things = [thing((i, 3, i + draw.randint(0, 9), 5), pose="Frontal") for i in range(1, 9)]
    assert voc.mirrored(voc.mirrored(things, 30), 30) == things
    assert voc.mirrored([thing(pose="Right")], 12)[0].pose == "Left"
