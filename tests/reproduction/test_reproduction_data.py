"""The data of reproduction/: parts that do not change, a test part that opens once, augmentation."""

import io
import math
import pickle
import tarfile

import pytest
import torch

from reproduction import data
from workbench import archives

CPU = torch.device("cpu")


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> None:
    """An archive like CIFAR-100's in DATA_ROOT, whose pixels tell the number of the image."""
    pixels = torch.arange(50_000).remainder(256).byte()[:, None].repeat(1, 3072)
    labels = torch.arange(50_000).remainder(100)
    files = {
        "train": {"data": pixels[:6_000].numpy(), "fine_labels": labels[:6_000].tolist()},
        "test": {"data": pixels[:7].numpy(), "fine_labels": labels[:7].tolist()},
        "meta": {"fine_label_names": [str(k) for k in range(100)]},
    }
    name = "cifar-100-python.tar.gz"
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{path}")
            raw = pickle.dumps(content)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    digest = archives.hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(archives.ARCHIVES, "CIFAR100", {name: digest})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))


def test_cifar_is_split_once_and_for_all_and_no_image_is_in_two_parts(cifar, monkeypatch):
    a, b = data.load("cifar100"), data.load("cifar100")
    assert len(a.train[1]) == 1_000 and len(a.validation[1]) == 5_000
    assert torch.equal(a.validation[1], b.validation[1])
    order = torch.randperm(6_000, generator=torch.Generator().manual_seed(2009))
    assert torch.equal(a.validation[1], order[:5_000] % 100)
    assert torch.equal(a.train[1], order[5_000:] % 100)
    assert torch.equal(a.train[0][:, 0, 0, 0], (order[5_000:] % 256).byte())
    assert a.classes == 100 and a.train[0].shape == (1_000, 3, 32, 32)
    values = a.train[0].double() / 255
    torch.testing.assert_close(a.mean, values.mean((0, 2, 3)).view(3, 1, 1).float())
    torch.testing.assert_close(a.deviation, values.std((0, 2, 3)).view(3, 1, 1).float())


def test_a_damaged_archive_is_named(cifar, tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"an error page")
    with pytest.raises(data.DataError, match="damaged or another file.*\n.*--data patches"):
        data.load("cifar100")


def test_a_small_set_is_at_hand():
    digits = data.load("digits", first=50)
    assert digits.train[0].shape == (50, 3, 32, 32) and digits.train[0].dtype == torch.uint8
    assert len(digits.validation[1]) == 50 and digits.classes == 10
    assert digits.train[0].max() > 200


def test_the_test_part_opens_once_in_a_run():
    part = torch.zeros(1), torch.ones(1)
    sealed = data.Sealed(*part)
    assert sealed.open()[1] is part[1]
    with pytest.raises(RuntimeError, match="has been read"):
        sealed.open()
    assert sealed.open(again=True)[0] is part[0] and sealed.readings == 2


# ---- augmentation ----------------------------------------------------------------------------------


def same_for_all(n: int, shift=(4, 4), flip: float = 1, angle: float = 0) -> data.Changes:
    return data.Changes(
        torch.tensor([shift] * n), torch.tensor([flip] * n), torch.tensor([angle] * n).float()
    )


def test_each_change_alone():
    x = torch.rand(2, 3, 32, 32)
    both = torch.arange(2)
    torch.testing.assert_close(data.augment(x, same_for_all(2), both), x)
    torch.testing.assert_close(data.augment(x, same_for_all(2, flip=-1.0), both), x.flip(3))
    quarter = data.augment(x, same_for_all(2, angle=math.pi / 2), both)
    torch.testing.assert_close(quarter, x.rot90(1, (2, 3)))
    moved = data.augment(x, same_for_all(2, shift=(0, 8)), both)
    torch.testing.assert_close(moved[:, :, 4:, :-4], x[:, :, :-4, 4:])
    assert moved[:, :, :4].eq(0).all() and moved[:, :, :, -4:].eq(0).all()


def test_the_rotation_comes_last_as_in_the_repository():
    x = torch.rand(1, 3, 32, 32)
    one = torch.arange(1)
    how = same_for_all(1, shift=(1, 6), flip=-1.0, angle=math.pi / 2)
    cropped = data.augment(x, same_for_all(1, shift=(1, 6)), one)
    torch.testing.assert_close(data.augment(x, how, one), cropped.flip(3).rot90(1, (2, 3)))


def test_corners_turn_out_of_the_picture_and_become_black():
    x = torch.ones(1, 3, 32, 32)
    turned = data.augment(x, same_for_all(1, angle=math.radians(15)), torch.arange(1))
    assert turned[0, 0, 0, 0] == 0 and turned[0, 0, 16, 16] == 1


def test_changes_have_the_range_of_the_recipe_and_depend_on_seed_and_epoch_only():
    how = data.changes(5_000, 3, 7, CPU)
    assert how.shift.min() == 0 and how.shift.max() == 8
    assert set(how.flip.tolist()) == {-1.0, 1.0} and abs(how.flip.mean()) < 0.1
    assert 14.9 < how.angle.abs().max().rad2deg() <= 15 and abs(how.angle.rad2deg().mean()) < 0.5
    same = data.changes(5_000, 3, 7, CPU)
    assert torch.equal(how.angle, same.angle) and torch.equal(how.shift, same.shift)
    for seed, epoch in ((3, 8), (4, 7), (7, 3)):
        assert not torch.equal(how.angle, data.changes(5_000, seed, epoch, CPU).angle)


def test_an_image_is_changed_by_its_place_in_the_set_not_in_the_batch():
    x = torch.rand(6, 3, 32, 32)
    how = data.changes(6, 0, 0, CPU)
    whole = data.augment(x, how, torch.arange(6))
    chosen = torch.tensor([4, 1])
    torch.testing.assert_close(data.augment(x[chosen], how, chosen), whole[chosen])
