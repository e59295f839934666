"""Masks, files, sizes, evaluation and augmentation of notebooks/coco.py."""

import json
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as library
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision import ops, tv_tensors

from loader import definitions

coco = definitions("coco")
# pycocotools makes its arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__")


def encoded(mask):
    return library.encode(np.asfortranarray(mask, dtype=np.uint8))


def random_mask(rng, share=None):
    share = rng.random() if share is None else share
    return (rng.random(rng.integers(1, 40, 2)) < share).astype(int)


# ---- runs and strings ----------------------------------------------------------------------------


def test_runs_by_hand():
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    assert coco.runs(mask) == [1, 4, 1]  # down the columns: 0 1, 1 1, 1 0
    assert coco.runs(1 - mask) == [0, 1, 4, 1]  # the first run is outside
    assert coco.runs(np.zeros((2, 3))) == [6]
    assert coco.runs(np.ones((2, 3), bool)) == [0, 6]
    assert coco.mask_of([1, 4, 1], 2, 3).tolist() == mask.tolist()
    assert coco.mask_of([0, 1, 4, 1], 2, 3).tolist() == (1 - mask).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_runs_and_strings_are_those_of_pycocotools(seed):
    mask = random_mask(np.random.default_rng(seed))
    theirs = encoded(mask)
    text = coco.to_text(coco.runs(mask))
    assert text.encode() == theirs["counts"]
    assert np.array_equal(coco.mask_of(coco.from_text(text), *mask.shape), mask)


def test_strings_by_hand():
    assert coco.to_text([20, 3, 2, 4, 4, 1, 14]) == "d03212M:"
    assert coco.from_text("d03212M:") == [20, 3, 2, 4, 4, 1, 14]
    assert coco.to_text([0, 15, 16, 17]) == "0?`02"  # 17 - 15 is 2
    assert coco.to_text([1, 40, 2, 8]) == "1X12PO"  # 8 - 40 is -32: 0 and more, then -1
    assert coco.from_text("1X12PO") == [1, 40, 2, 8]
    assert coco.from_text("") == []


def test_long_runs_and_steep_differences_come_back():
    rng = np.random.default_rng(3)
    for _ in range(200):
        counts = (10 ** (6 * rng.random(rng.integers(1, 12)))).astype(int).tolist()
        assert coco.from_text(coco.to_text(counts)) == counts


def test_a_cut_string_and_runs_that_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="was cut"):
        coco.from_text("d03212Md")
    with pytest.raises(ValueError, match="runs of 5 pixels do not fill 2 x 3"):
        coco.mask_of([2, 3], 2, 3)


# ---- polygons ------------------------------------------------------------------------------------


def theirs_of(polygon, H, W):
    return library.decode(library.frPyObjects([polygon], H, W))[..., 0]


@pytest.mark.parametrize("seed", range(60))
def test_random_polygons_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    H, W = rng.integers(2, 60, 2).tolist()
    corners = rng.integers(3, 14)
    polygon = (rng.random(2 * corners) * 1.6 - 0.3) * 60  # over all four edges
    polygon = polygon.round(seed % 4).tolist()
    assert np.array_equal(coco.rasterise(polygon, H, W), theirs_of(polygon, H, W))


def test_a_rectangle_on_pixel_edges_covers_its_pixels():
    found = coco.rasterise([2, 1, 2, 4, 5, 4, 5, 1], 6, 8)
    expected = np.zeros((6, 8), int)
    expected[1:4, 2:5] = 1
    assert np.array_equal(found, expected)
    everything = [-3, -3, -3, 20, 20, 20, 20, -3]
    assert coco.rasterise(everything, 6, 8).all()
    assert not coco.rasterise([9, 1, 9, 4, 12, 4, 12, 1], 6, 8).any()


def test_corners_given_twice_change_nothing():
    polygon = [2.3, 1.1, 2.3, 1.1, 6.2, 4.9, 6.2, 4.9, 1.0, 5.2]
    once = [2.3, 1.1, 6.2, 4.9, 1.0, 5.2]
    assert np.array_equal(coco.rasterise(polygon, 7, 9), coco.rasterise(once, 7, 9))
    assert np.array_equal(coco.rasterise(polygon, 7, 9), theirs_of(polygon, 7, 9))


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [1, 1], [2, 1], [3, 2], [4, 2]],
        [[4, 2], [3, 2], [2, 1], [1, 1], [0, 0]],
        [[1, 3], [1, 2], [0, 1], [0, 0]],
        [[-3, -3], [-2, -3], [-1, -3]],
        [[0, 0], [1, 1], [2, 2]],
        [[0, 1], [1, 0]],
        [[2, 2]],
    ],
)
def test_a_walk_by_hand(points):
    found = coco.walk(np.array(points[0]), np.array(points[-1]))
    assert found.tolist() == points


def test_crossings_by_hand():
    """A square of pixels 1 to 3: the middles of columns 1 and 2, down from rows 1 and 3."""
    found = coco.crossings([1, 1, 1, 3, 3, 3, 3, 1], 5, 5)
    assert sorted(found.tolist()) == [[1, 1], [1, 3], [2, 1], [2, 3]]


def test_a_coarse_grid_rounds_the_corners_to_pixels():
    polygon = [1.4, 1.4, 1.4, 3.4, 3.4, 3.4, 3.4, 1.4]
    expected = np.zeros((6, 6), int)
    expected[1:3, 1:3] = 1
    assert np.array_equal(coco.rasterise(polygon, 6, 6, fine=1), expected)


def test_a_coarse_circle_is_that_of_its_rounded_corners():
    circle = coco.circle(3, corners=20)
    rounded = np.floor(np.add(circle, 0.5)).tolist()
    coarse = coco.rasterise(circle, 128, 128, fine=1)
    assert np.array_equal(coarse, coco.rasterise(rounded, 128, 128, fine=1))
    assert not np.array_equal(coarse, coco.rasterise(circle, 128, 128))


# ---- segmentations -------------------------------------------------------------------------------


def test_the_three_forms_of_a_segmentation():
    mask = random_mask(np.random.default_rng(0), 0.5)
    H, W = mask.shape
    for counts in (coco.runs(mask), coco.to_text(coco.runs(mask))):
        found = coco.decoded({"counts": counts, "size": [H, W]}, H, W)
        assert np.array_equal(found, mask)
    parts = [[1, 1, 1, 3, 3, 3, 3, 1], [2, 2, 2, 5, 5, 5, 5, 2]]
    theirs = library.decode(library.merge(library.frPyObjects(parts, 6, 6)))
    assert np.array_equal(coco.decoded(parts, 6, 6), theirs)


def test_a_polygon_within_another_makes_no_hole():
    outer, inner = [0, 0, 0, 6, 6, 6, 6, 0], [2, 2, 2, 4, 4, 4, 4, 2]
    assert coco.decoded([outer, inner], 6, 6).all()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("polygon", "a list of polygons, or has counts"),
        ({"size": [4, 4]}, "a list of polygons, or has counts"),
        ({"counts": [16], "size": [4, 4]}, r"a mask of \[4, 4\], an image of \[4, 5\]"),
    ],
)
def test_other_segmentations_are_refused(segmentation, words):
    with pytest.raises(ValueError, match=words):
        coco.decoded(segmentation, 4, 5)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_overlaps_of_masks_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 30, 2)
    a, b = (rng.random((2, *shape)) < rng.random() ** 2).astype(int)
    assert coco.box_of(a) == library.toBbox(encoded(a)).tolist()
    for crowd in (False, True):
        theirs = library.iou([encoded(a)], [encoded(b)], [crowd])[0, 0]
        assert coco.mask_iou(a, b, crowd=crowd) == pytest.approx(theirs, abs=1e-12)


def test_the_boxes_of_torchvision_end_on_the_last_pixel():
    mask = np.zeros((9, 8), int)
    mask[2:5, 1:7] = 1
    x, y, width, height = coco.box_of(mask)
    theirs = ops.masks_to_boxes(torch.from_numpy(mask)[None])[0].tolist()
    assert theirs == [x, y, x + width - 1, y + height - 1]


def test_measures_of_masks_by_hand():
    a = np.array([[0, 1, 1], [0, 0, 1]])
    b = np.array([[0, 0, 1], [1, 0, 1]])
    assert coco.box_of(a) == [1, 0, 2, 2]
    assert coco.mask_iou(a, b) == 2 / 4
    assert coco.mask_iou(a, b, crowd=True) == 2 / 3
    assert coco.mask_iou(0 * a, 0 * b) == 0
    assert coco.box_of(0 * a) == [0, 0, 0, 0]


# ---- files ---------------------------------------------------------------------------------------

CONTENT = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}, {"id": 9}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [0, 0, 2, 2]}],
    "categories": [{"id": 90, "name": "toothbrush"}],
}


def test_a_file_is_read_by_image(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(CONTENT))
    images, objects, names = coco.read_coco(file)
    assert images[7]["file_name"] == "a.jpg"
    assert objects == {7: CONTENT["annotations"], 9: []}
    assert names == {90: "toothbrush"}


def test_a_file_without_a_list_says_which_to_take(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({key: CONTENT[key] for key in ("images", "annotations")}))
    with pytest.raises(ValueError, match=r"has no \['categories'\]: take an instances_"):
        coco.read_coco(file)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_annotation_of_nothing_is_refused(tmp_path, key):
    file = tmp_path / "instances.json"
    wrong = CONTENT["annotations"][0] | {key: 5}
    file.write_text(json.dumps(CONTENT | {"annotations": [wrong]}))
    with pytest.raises(ValueError, match="of annotation 1 is missing"):
        coco.read_coco(file)


def test_what_is_written_is_read(tmp_path):
    picture = Image.new("RGB", (6, 4), (200, 10, 10))
    objects = [(3, [1, 1, 2, 2], [[1, 1, 1, 3, 3, 3, 3, 1]], 4, 0)]
    objects += [(5, [0, 0, 6, 4], {"counts": [0, 24], "size": [4, 6]}, 24, 1)]
    scenes = [(picture, objects), (picture, [])]
    pictures, file = coco.write_set(tmp_path, "made", scenes, {3: "a", 5: "b"})
    with redirect_stdout(StringIO()):
        theirs = COCO(str(file))
    images, found, names = coco.read_coco(file)
    assert names == {3: "a", 5: "b"}
    assert [len(things) for things in found.values()] == [2, 0]
    assert [one["id"] for one in found[1]] == [1, 2]
    assert images[2] == {"id": 2, "file_name": "000000000002.jpg", "width": 6, "height": 4}
    for one in found[1]:
        ours = coco.decoded(one["segmentation"], 4, 6)
        assert np.array_equal(ours, theirs.annToMask(one))
        assert ours.sum() == one["area"] and coco.box_of(ours) == one["bbox"]
    assert [one["iscrowd"] for one in found[1]] == [0, 1]
    assert [one["category_id"] for one in found[1]] == [3, 5]
    with Image.open(pictures / images[1]["file_name"]) as opened:
        assert opened.size == (6, 4)
    assert (tmp_path / "made") == pictures
    assert coco.write_set(tmp_path, "made", scenes, {3: "a", 5: "b"})[1] == file  # again
    assert json.loads(file.read_text())["info"]


# ---- the tiny sets -------------------------------------------------------------------------------


def test_boxes_of_voc_count_from_one(tmp_path):
    file = tmp_path / "a.xml"
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>9</ymax>"
    file.write_text(f"<annotation><object><bndbox>{corners}</bndbox></object></annotation>")
    assert coco.voc_boxes(file).tolist() == [[0, 1, 5, 9]]
    assert coco.areas(coco.voc_boxes(file)).tolist() == [40]


def test_tiles_keep_what_they_show_half_of():
    S = coco.SIDE
    boxes = np.array(
        [
            [10, 20, 30, 40],  # in the first tile
            [S - 10, 5, S + 10, 15],  # half in each
            [S - 4, 50, S + 10, 60],  # mostly in the second
            [2 * S + 5, 0, 2 * S + 9, 4],  # where no whole tile is left
        ],
        float,
    )
    picture = Image.new("RGB", (2 * S + 100, S + 50))
    picture.putpixel((S, 0), (255, 0, 0))
    made = list(coco.tiles(picture, boxes))
    assert [tile.size for tile, _ in made] == [(S, S)] * 2
    assert made[0][1].tolist() == [[10, 20, 30, 40], [S - 10, 5, S, 15]]
    assert made[1][1].tolist() == [[0, 5, 10, 15], [0, 50, 10, 60]]
    assert made[1][0].getpixel((0, 0)) == (255, 0, 0)
    below = list(coco.tiles(Image.new("RGB", (S, 2 * S)), boxes + [0, S, 0, S]))
    assert [shown.tolist() for _, shown in below] == [made[0][1].tolist()]


def test_a_tile_that_lacks_a_line_of_pixels_is_left_out():
    S = coco.SIDE
    corners = np.array([[10, 20], [S + 5, 20], [10, S + 5]])
    boxes = np.concatenate([corners, corners + 30], 1)
    (tile,) = coco.tiles(Image.new("RGB", (2 * S - 1, 2 * S - 1)), boxes)
    assert tile[1].tolist() == [[10, 20, 40, 50]]


def test_the_trees_are_those_of_the_package():
    scenes = list(coco.tree_set())
    assert len(scenes) == 36
    objects = [one for _, things in scenes for one in things]
    assert len(objects) == 763
    for category, box, (outline,), area, crowd in objects:
        assert (category, crowd) == (1, 0)
        xs, ys = outline[::2], outline[1::2]
        assert [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] == box
        assert area == pytest.approx(box[2] * box[3])
        assert min(box) >= 0 and area > 0


def test_digits_are_seen_where_no_later_one_covers_them():
    pictures, masks, digits = coco.digit_scenes(6)
    assert pictures.shape == (6, 3, 160, 160) and masks.shape == (6, 5, 160, 160)
    assert (masks.sum(1) <= 1).all()  # a pixel shows one digit
    assert torch.equal(masks.any(-1).any(-1), digits >= 0)
    for picture, several in zip(pictures, masks):
        for mask in several[several.any(-1).any(-1)]:
            assert len(picture[:, mask].unique(dim=1).T) == 1  # in one colour


def test_the_longer_side_of_a_digit_is_between_10_and_120_pixels(monkeypatch):
    placed = []

    class Noted(coco.scenes.DigitScenes):
        def place(self, *how):
            placed.append(super().place(*how))
            return placed[-1]

    monkeypatch.setattr(coco.scenes, "DigitScenes", Noted)
    coco.digit_scenes(60)
    boxes, chosen = placed[0]
    longer = (boxes[..., 2:] - boxes[..., :2]).amax(-1)[chosen >= 0]
    assert 10 <= longer.min() < 11 and 110 < longer.max() < 120.01


def test_the_first_digit_of_all_is_a_digit_like_others(monkeypatch):
    class First(coco.scenes.DigitScenes):
        def place(self, *how):
            boxes, chosen = super().place(*how)
            return boxes, chosen.clamp(max=0)

    monkeypatch.setattr(coco.scenes, "DigitScenes", First)
    _, masks, digits = coco.digit_scenes(3)
    assert masks[:, 0].any(-1).any(-1).all()
    assert (digits[:, 0] == digits[0, 0]).all() and digits[0, 0] >= 0


def test_the_ids_of_digits_rise_and_have_a_gap():
    assert len(coco.DIGIT_IDS) == 10
    assert coco.DIGIT_IDS == sorted(set(coco.DIGIT_IDS)) != list(range(1, 11))


def test_a_scene_of_many_has_a_crowd():
    scenes = list(coco.digit_set())
    crowds = [one for _, things in scenes for one in things if one[4]]
    assert crowds and len(scenes) == 12
    assert {one[4] for _, things in scenes for one in things} == {0, 1}
    whole = coco.digit_scenes()
    for (picture, objects), masks in zip(scenes, whole[1]):
        covered = masks.any(0).numpy()
        there = int(masks.any(-1).any(-1).sum())
        assert len(objects) == (there - 2 if there == 5 else there)
        joined = np.zeros_like(covered)
        for category, box, segmentation, area, crowd in objects:
            mask = coco.decoded(segmentation, 160, 160)
            assert category in coco.DIGIT_IDS
            if crowd:
                assert coco.box_of(mask) == box and mask.sum() == area
            joined |= mask.astype(bool)
        assert (joined >= covered).mean() > 0.999  # polygons fill holes, lose corners
        assert np.array(picture).std() > 1


def test_of_the_scenes_shown_the_first_has_a_crowd_of_three():
    scenes = [things for _, things in coco.digit_set()]
    flags = [[one[4] for one in scenes[i]] for i in (0, coco.SHOWN)]
    assert flags == [[0, 0, 1], [0, 0, 0, 0]]


def test_outlines_come_back_as_the_mask():
    mask = np.zeros((12, 14), bool)
    mask[2:9, 0:6] = True
    mask[5:12, 9:14] = True
    found = coco.outlines(mask)
    assert len(found) == 2
    assert np.array_equal(coco.decoded(found, 12, 14), mask)


def test_outlines_fill_holes():
    mask = np.ones((9, 9), bool)
    mask[3:6, 3:6] = False
    assert coco.decoded(coco.outlines(mask), 9, 9).all()


# ---- sizes ---------------------------------------------------------------------------------------


def test_shares_by_hand():
    found = coco.shares([1023, 1024, 9215, 9216, 79522])
    assert list(found) == ["small", "medium", "large"]
    assert [boxes for boxes, _ in found.values()] == pytest.approx([0.2, 0.4, 0.4])
    total = 1023 + 1024 + 9215 + 9216 + 79522
    of_area = [1023 / total, (1024 + 9215) / total, (9216 + 79522) / total]
    assert [area for _, area in found.values()] == pytest.approx(of_area)


def test_the_published_shares_are_of_all_objects():
    assert len(coco.PUBLISHED) == len(coco.SIZES)
    assert sum(coco.PUBLISHED) == pytest.approx(1, abs=0.002)


def test_the_smaller_half_by_hand():
    assert coco.smaller_half([5, 1, 3, 1]) == 0.2
    assert coco.smaller_half([2, 1, 1]) == 0.25
    assert coco.smaller_half([7, 7]) == 0.5


def test_the_iou_of_a_shifted_square_is_that_of_boxes():
    for side, shift in ((10, 2), (50, 7)):
        theirs = coco.iou([0, 0, side, side], [shift, 0, side, side])
        assert coco.shifted_iou(side, shift) == pytest.approx(theirs)


# ---- moved boxes and average precision -----------------------------------------------------------


def some_truth(n, rng, images=4, classes=1):
    return [
        {
            "id": i + 1,
            "image_id": int(rng.integers(images)) + 1,
            "category_id": int(rng.integers(classes)) + 1,
            "bbox": [*(100 * rng.random(2)), *(10 + 60 * rng.random(2))],
        }
        for i in range(n)
    ]


def library_of(truth, images=4, classes=1):
    full = [one | {"area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} for one in truth]
    made = COCO()
    made.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(images)],
        "categories": [{"id": k + 1} for k in range(classes)],
        "annotations": full,
    }
    with redirect_stdout(StringIO()):
        made.createIndex()
    return made


def test_boxes_are_moved_by_the_spread_that_is_asked_for():
    rng = np.random.default_rng(0)
    truth = some_truth(4000, rng)
    before = np.array([one["bbox"] for one in truth])
    for spread, relative in ((2.0, False), (0.05, True)):
        found = coco.moved(truth, spread, rng, relative=relative)
        after = np.array([one["bbox"] for one in found])
        sides = np.concatenate([after[:, :2], after[:, :2] + after[:, 2:]], 1)
        old = np.concatenate([before[:, :2], before[:, :2] + before[:, 2:]], 1)
        off = sides - old
        if relative:
            off = off / np.tile(before[:, 2:], 2)
        assert np.abs(off.std(0) / spread - 1).max() < 0.05
        assert np.abs(off.mean(0)).max() < 0.06 * spread
        assert np.abs(np.corrcoef(off.T) - np.eye(4)).max() < 0.06
        for one, other in zip(truth, found):
            assert (one["image_id"], one["category_id"]) == (
                other["image_id"],
                other["category_id"],
            )
        scores = np.array([one["score"] for one in found])
        assert 0 <= scores.min() < 0.01 and 0.99 < scores.max() <= 1


def test_kinds_of_error_have_their_size_in_their_name():
    (pixels, of_side), (part, relative) = coco.KINDS.values()
    assert [*coco.KINDS] == [f"{pixels:g} pixels", f"{part:.0%} of the side"]
    assert (of_side, relative) == (False, True)


def test_a_moved_box_keeps_a_pixel_of_size():
    truth = [{"image_id": 1, "category_id": 1, "bbox": [5, 5, 1.5, 1.5]}] * 200
    found = coco.moved(truth, 4.0, np.random.default_rng(0))
    sizes = np.array([one["bbox"][2:] for one in found])
    assert sizes.min() == 1 and sizes.max() > 5


def test_iou_by_hand():
    assert coco.iou([0, 0, 4, 4], [2, 2, 4, 2]) == 4 / 20
    assert coco.iou([0, 0, 4, 4], [2, 3, 4, 4]) == 2 / 30
    assert coco.iou([0, 0, 4, 4], [5, 5, 2, 2]) == 0
    assert coco.iou([0, 0, 4, 4], [5, 0, 2, 4]) == 0
    assert coco.iou([1, 2, 3, 4], [1, 2, 3, 4]) == 1


def test_average_precision_by_hand():
    """Four objects; right, wrong, right: a precision of 1 up to 1/4 and of 2/3 up to 1/2."""
    boxes = [[20 * i, 0, 10, 10] for i in range(4)]
    truth = [{"image_id": 1, "bbox": box} for box in boxes]
    found = [
        {"image_id": 1, "bbox": boxes[0], "score": 0.9},
        {"image_id": 1, "bbox": boxes[0], "score": 0.8},  # found already
        {"image_id": 1, "bbox": boxes[1], "score": 0.7},
        {"image_id": 2, "bbox": boxes[2], "score": 0.6},  # on another image
    ]
    expected = (26 * 1 + 25 * 2 / 3) / 101
    assert coco.average_precision(truth, found, 0.5) == pytest.approx(expected)
    assert coco.average_precision(truth, [], 0.5) == 0


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    truth = some_truth(60, rng)
    found = coco.moved(truth, 4.0, rng)
    found += [one | {"score": float(rng.random())} for one in some_truth(30, rng)]
    found = [{k: v for k, v in one.items() if k != "id"} for one in found]
    theirs = coco.twelve(library_of(truth), found)
    assert coco.average_precision(truth, found, 0.5) == pytest.approx(theirs[1])
    assert coco.average_precision(truth, found, 0.75) == pytest.approx(theirs[2])
    assert 0.02 < theirs[2] < theirs[1] < 0.98


def test_mean_precision_is_that_of_pycocotools_over_classes():
    rng = np.random.default_rng(8)
    truth = some_truth(60, rng, classes=3)
    found = coco.moved(truth, 3.0, rng)
    theirs = coco.twelve(library_of(truth, classes=3), found)
    assert coco.mean_precision(truth, found, 0.5) == pytest.approx(theirs[1])
    assert coco.mean_precision(truth, found, 0.75) == pytest.approx(theirs[2])
    assert theirs[2] < theirs[1]


def test_the_twelve_numbers_come_quietly(capsys):
    rng = np.random.default_rng(0)
    truth = some_truth(40, rng)
    found = coco.moved(truth, 0.0, rng)
    theirs = library_of(truth)
    numbers = coco.twelve(theirs, found)
    assert capsys.readouterr().out == ""
    with redirect_stdout(StringIO()):
        whole = COCOeval(theirs, theirs.loadRes(found), "bbox")
        whole.evaluate()
        whole.accumulate()
        whole.summarize()
    assert np.array_equal(numbers, whole.stats)
    assert numbers[0] == pytest.approx(1)


def test_an_area_between_two_sizes_counts_in_both_for_pycocotools():
    truth = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 32, 32]}]
    found = [one | {"score": 1.0} for one in truth]
    small, medium, large = coco.twelve(library_of(truth), found)[3:6]
    assert (small, medium, large) == (pytest.approx(1), pytest.approx(1), -1)
    assert coco.shares([32**2])["medium"] == (1, 1)


@pytest.mark.parametrize(("size", "side"), [("small", 20), ("medium", 60)])
def test_where_all_boxes_have_one_size_its_ap_is_that_of_all(size, side):
    rng = np.random.default_rng(0)
    truth = [one | {"bbox": [*one["bbox"][:2], side, side]} for one in some_truth(60, rng)]
    numbers = coco.twelve(library_of(truth), coco.moved(truth, side / 20, rng))
    found = {name: numbers[place] for name, place in coco.RANGES.items()}
    other = {"small": "medium", "medium": "small"}[size]
    assert found["all"] == found[size] == numbers[:3].min() and found[other] == -1


def test_a_file_is_loaded_quietly(tmp_path, capsys):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(CONTENT))
    assert list(coco.load(file).anns) == [1]
    assert capsys.readouterr().out == ""


def test_random_masks_are_of_all_kinds():
    masks = coco.random_masks(40, np.random.default_rng(0))
    assert len(masks) == 42
    assert not masks[0].any() and masks[1].all()
    assert masks[0].shape == masks[1].shape == (5, 7)
    longest = [len(coco.runs(mask)) for mask in masks[2:]]
    assert min(longest) < 40 < max(longest)
    assert len({mask.shape for mask in masks}) > 30
    blots = [mask.mean() for i, mask in enumerate(masks[2:]) if i % 4]
    assert sum(0 < share < 1 for share in blots) > 20
    whole = 0
    many = coco.random_masks(200, np.random.default_rng(1))[2:]
    sides = [side for mask in many for side in mask.shape]
    assert (min(sides), max(sides)) == (3, 59)
    for mask in [mask for i, mask in enumerate(many) if i % 4]:
        x, y, width, height = coco.box_of(mask)
        if min(x, y) > 0 and x + width < mask.shape[1] and y + height < mask.shape[0]:
            whole += width > 2
            assert abs(width - height) <= 1  # round
    assert whole > 1


# ---- augmentation --------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    picture = Image.new("RGB", (120, 110), (9, 80, 200))
    things = []
    for x, y, w, h in ((4, 6, 20, 30), (70, 40, 45, 12)):
        outline = [[x, y, x + w / 2, y + h, x + w, y]]  # a triangle that points down
        things.append((1, [x, y, w, h], outline, 0, 0))
    pictures, file = coco.write_set(tmp_path, "made", [(picture, things)], {1: "a"})
    images, objects, _ = coco.read_coco(file)
    return coco.as_sample(pictures, images[1], objects[1])


def test_a_sample_has_masks_and_their_boxes(scene):
    picture, boxes, masks = scene
    assert isinstance(boxes, tv_tensors.BoundingBoxes) and isinstance(masks, tv_tensors.Mask)
    assert picture.shape == (3, 110, 120) and masks.shape == (2, 110, 120)
    assert boxes.canvas_size == (110, 120)
    for box, mask in zip(boxes.tolist(), masks.numpy()):
        assert box == coco.box_of(mask)
    assert coco.looseness(boxes, masks) == [1, 1]


def test_looseness_by_hand():
    masks = torch.zeros(3, 10, 10, dtype=torch.int64)
    masks[0, 2:6, 1:4] = 1
    masks[2, 0, 0] = 1
    boxes = torch.tensor([[1.0, 2, 6, 4], [0, 0, 4, 4], [0, 0, 2, 5]])
    assert coco.looseness(boxes, masks) == [2, 10]  # the second covers nothing


def test_flips_keep_boxes_tight_and_turns_do_not(scene):
    for name in ("flip", "colour"):
        assert coco.looseness(*coco.CHANGES[name](scene)[1:]) == [1, 1]
    turned = coco.CHANGES["turn"](scene)
    assert turned[0].shape[1] > 110 and turned[0].shape[2] > 120  # nothing is lost
    assert min(coco.looseness(*turned[1:])) > 1.2
    flipped = coco.CHANGES["flip"](scene)
    assert flipped[1][0].tolist() == [120 - 4 - scene[1][0, 2].item(), *scene[1][0, 1:].tolist()]


def test_a_crop_and_a_smaller_picture(scene):
    assert coco.CHANGES["crop"](scene)[0].shape == (3, 100, 100)
    small = coco.CHANGES["scale"](scene)
    assert small[0].shape == (3, 110, 120)
    ratio = small[1][:, 2:] / scene[1][:, 2:]
    assert torch.allclose(ratio, torch.full_like(ratio, 0.6))


# ---- solutions -----------------------------------------------------------------------------------


def test_a_circle_has_the_area_of_a_circle():
    mask = coco.rasterise(coco.circle(40), 128, 128)
    assert mask.sum() == pytest.approx(np.pi * 40**2, rel=0.01)
    assert len(coco.circle(3)) == 80
    assert np.mean(coco.circle(5)) == pytest.approx(64.3)


def test_boxes_go_to_yolo_and_back():
    text = coco.to_yolo([10, 20, 30, 40], 100, 200)
    assert text == "0.250000 0.200000 0.300000 0.200000"
    assert coco.from_yolo(text, 100, 200) == pytest.approx([10, 20, 30, 40])
