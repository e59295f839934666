"""VOC and COCO, from tiny sets in their true formats."""

import io
import json
import tarfile
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from workbench import annotated, downloads, seed

XML = """<annotation><filename>{name}.jpg</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture(autouse=True)
def full(monkeypatch, tmp_path):
    monkeypatch.setattr("workbench.PROFILE", "full")
    monkeypatch.setattr(annotated, "COCO_PHOTOGRAPHS", {"train2017": 40, "val2017": 40})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))


def voc(root, **parts):
    """VOC2007 below root: for each part the photographs, each a list of objects."""
    base = root / "VOCdevkit" / "VOC2007"
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for part, photographs in parts.items():
        names = [f"{part}{i:04}" for i in range(len(photographs))]
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name, objects in zip(names, photographs):
            Image.new("RGB", (40, 20), "red").save(base / "JPEGImages" / f"{name}.jpg")
            text = XML.format(name=name, objects="".join(OBJECT.format(*one) for one in objects))
            (base / "Annotations" / f"{name}.xml").write_text(text)


def test_voc_is_read_with_its_pixels_counted_from_one(tmp_path):
    dog = [("dog", 0, 1, 1, 40, 20), ("cat", 1, 11, 6, 30, 15)]
    voc(tmp_path, train=[dog], val=[dog, []], test=[dog])
    source = annotated.Photographs("VOC", 80)
    scenes = source.fixed("validation", 9)
    assert scenes.images.shape == (2, 3, 80, 80)
    assert [source.classes[k] for k in scenes.labels[0, :2]] == ["dog", "cat"]
    # twice as large, in the middle of a square: 20 pixels of grey above
    assert scenes.boxes[0, :2].tolist() == [[0, 20, 80, 60], [20, 30, 60, 50]]
    assert scenes.ignored[0, :3].tolist() == [False, True, False]
    assert (scenes.labels[0, 2:] == -1).all() and (scenes.labels[1] == -1).all()
    torch.testing.assert_close(scenes.images[0, :, :20], torch.full((3, 20, 80), 0.5))
    red = scenes.images[0, :, 30, 40]
    assert red[0] > 0.95 and red[1] < 0.05


def test_batches_draw_from_the_training_part(tmp_path):
    cases = [[("dog", 0, 1 + i, 1, 20 + i, 20)] for i in range(8)]
    voc(tmp_path, train=cases, val=[[]], test=[[]])
    source = annotated.Photographs("VOC", 40)
    seed(0)
    batches = list(source.batches(3, 4))
    seed(0)
    again = list(source.batches(3, 4))
    assert len(batches) == 3 and batches[0].images.shape == (4, 3, 40, 40)
    lefts = torch.cat([b.boxes[:, 0, 0] for b in batches])
    assert lefts.unique().numel() > 3
    assert torch.equal(lefts, torch.cat([b.boxes[:, 0, 0] for b in again]))
    assert source.fixed("train", 4).boxes[:, 0, 0].tolist() == [0, 2, 4, 6]


def coco(root, photographs):
    """COCO 2017 below root, the same photographs to train on and to test with."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (folder / name).mkdir()
        images, objects = [], []
        for i, boxes in enumerate(photographs):
            file = f"{i:012}.jpg"
            Image.new("RGB", (20, 40), "blue").save(folder / name / file)
            images.append({"id": i, "file_name": file, "width": 20, "height": 40})
            for category, crowd, box in boxes:
                one = {"category_id": category, "iscrowd": crowd, "bbox": box, "area": 1}
                objects.append(one | {"id": len(objects) + 1, "image_id": i})
        categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
        found = {"images": images, "annotations": objects, "categories": categories}
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(found))


def test_coco_is_read_with_its_gaps_in_the_numbers_of_classes(tmp_path, capsys):
    one = [(18, 0, [0, 0, 20, 40]), (1, 1, [5, 10, 10, 20]), (1, 0, [5, 10, 0.5, 20])]
    coco(tmp_path, [one] * 40)
    source = annotated.Photographs("COCO", 40)
    assert source.classes == ["person", "dog"]
    assert {name: len(part) for name, part in source.parts.items()} == {
        "train": 38,
        "validation": 2,
        "test": 40,
    }
    scenes = source.fixed("test", 1)
    assert scenes.labels[0, :4].tolist() == [1, 0, 0, -1]
    assert scenes.boxes[0, :2].tolist() == [[10, 0, 30, 40], [15, 10, 25, 30]]
    assert scenes.ignored[0, :4].tolist() == [False, True, True, False]
    ids = [target[0]["image_id"] for _, target in source.parts["validation"]]
    assert ids == [19, 39]
    capsys.readouterr()  # pycocotools says that it reads


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What is asked for, of a `place` that finds archives in the forms of VOC's and COCO's."""
    asked = []

    def place(path, addresses, sha256):
        asked.append((path, list(addresses), sha256))
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        name = file.stem
        if file.suffix == ".tar":
            part = "test" if "test" in name else "train"
            with tarfile.open(file, "w") as made:
                for member in (f"ImageSets/Main/{part}.txt", f"JPEGImages/{part}.jpg"):
                    made.addfile(tarfile.TarInfo(f"VOCdevkit/VOC2007/{member}"), io.BytesIO())
            return file
        with ZipFile(file, "w") as made:
            if name in annotated.COCO_PHOTOGRAPHS:
                for i in range(annotated.COCO_PHOTOGRAPHS[name]):
                    made.writestr(f"{name}/{i}.jpg", b"")
            else:
                for part in annotated.COCO_PHOTOGRAPHS:
                    made.writestr(f"annotations/instances_{part}.json", "{}")
        return file

    monkeypatch.setattr(downloads, "place", place)
    return asked


def test_voc_is_fetched_part_by_part(tmp_path, asked):
    base = tmp_path / "VOCdevkit" / "VOC2007"
    assert annotated.voc_folder() == tmp_path
    assert [path for path, _, _ in asked] == [
        "VOCtrainval_06-Nov-2007.tar",
        "VOCtest_06-Nov-2007.tar",
    ]
    for archive, addresses, sha256 in asked:
        assert all(address.endswith(f"/{archive}") for address in addresses) and addresses
        assert len(sha256) == 64
    assert sorted(file.name for file in base.glob("JPEGImages/*")) == ["test.jpg", "train.jpg"]
    annotated.voc_folder()
    assert len(asked) == 2
    (base / "ImageSets" / "Main" / "test.txt").unlink()
    annotated.voc_folder()
    assert [path for path, _, _ in asked[2:]] == ["VOCtest_06-Nov-2007.tar"]


def test_a_broken_unpacking_leaves_no_list_of_its_part(tmp_path, asked, monkeypatch):
    def broken(opened, path, members, filter):
        opened.extract(members[0], path, filter=filter)
        raise OSError("no space left")

    monkeypatch.setattr(tarfile.TarFile, "extractall", broken)
    with pytest.raises(OSError, match="no space left"):
        annotated.voc_folder()
    assert (tmp_path / "VOCdevkit/VOC2007/JPEGImages/train.jpg").exists()
    assert not list(tmp_path.rglob("*.txt"))


def test_an_archive_that_writes_outside_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    with tarfile.open(tmp_path / "made.tar", "w") as made:
        made.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    monkeypatch.setattr(downloads, "place", lambda *how: tmp_path / "made.tar")
    with pytest.raises(tarfile.OutsideDestinationError):
        annotated.voc_folder()
    assert not (tmp_path / "outside").exists()


def test_of_coco_what_is_missing_is_fetched(tmp_path, asked):
    folder = annotated.coco_folder("val2017")
    assert folder == tmp_path / "coco"
    assert [path for path, _, _ in asked] == [
        "coco/val2017.zip",
        "coco/annotations_trainval2017.zip",
    ]
    assert asked[0][1] == ["http://images.cocodataset.org/zips/val2017.zip"]
    assert {len(sha256) for _, _, sha256 in asked} == {64}
    annotated.coco_folder("val2017")
    assert len(asked) == 2
    (folder / "val2017" / "0.jpg").unlink()
    annotated.coco_folder("train2017", "val2017")
    assert [path for path, _, _ in asked[2:]] == ["coco/train2017.zip", "coco/val2017.zip"]
    (folder / "annotations/instances_train2017.json").unlink()
    annotated.coco_folder("val2017")
    assert len(asked) == 4
    annotated.coco_folder("train2017")
    assert [path for path, _, _ in asked[4:]] == ["coco/annotations_trainval2017.zip"]


@pytest.mark.parametrize("name, title", [("VOC", "VOC 2007"), ("COCO", "COCO")])
def test_what_cannot_be_fetched_is_said(monkeypatch, name, title):
    def unreachable(*_):
        raise OSError("no network.")

    monkeypatch.setattr(downloads, "place", unreachable)
    with pytest.raises(RuntimeError, match=f"{title} could.*no network. .*PROFILE=sample"):
        annotated.Photographs(name, 64)


def test_other_sets_are_refused():
    with pytest.raises(ValueError, match="there are VOC and COCO"):
        annotated.Photographs("KITTI", 64)


def test_the_sample_profile_reads_no_complete_set(monkeypatch):
    monkeypatch.setattr("workbench.PROFILE", "sample")
    with pytest.raises(RuntimeError, match="set PROFILE=full"):
        annotated.Photographs("VOC", 64)
