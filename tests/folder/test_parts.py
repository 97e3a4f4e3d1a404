"""Folders whose parts have other names, that lack a part, or that hold what nobody meant."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import DataSplits, load_splits
from dist_mnist.folder.parts import find_parts
from tests.support.configs import make_config
from tests.support.picture_folders import FOLDER_DATA, write_digits, write_flat

pytestmark = pytest.mark.usefixtures("own_cache")
MAX_SAMPLE_VALUE = 281  # of TIFF 6.0


def load(root: Path, *overrides: str) -> DataSplits:
    config = make_config(*FOLDER_DATA, f"data.root={root}", *overrides)
    return load_splits(config.data, config.seed)


def write_trees(root: Path, **counts: int) -> None:
    for number, (name, count) in enumerate(counts.items()):
        write_digits(root / name, [0, 1] * (count // 2), seed=number)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "test"], ("train", None, "test")),
        (["Train", "Test"], ("Train", None, "Test")),
        (["training_set", "test_set"], ("training_set", None, "test_set")),
        (["TRAINING", "Validation", "testing"], ("TRAINING", "Validation", "testing")),
        (["train-images", "valid"], ("train-images", None, "valid")),
        (["train", "dev", "test", "notes"], ("train", "dev", "test")),
        (["train"], ("train", None, None)),
        (["trainer", "tester"], ("", None, None)),
        (["testimony", "validity"], ("", None, None)),
        (["cats", "dogs"], ("", None, None)),
    ],
)
def test_parts_by_their_names(tmp_path: Path, names: list[str], found: tuple[str, ...]) -> None:
    for name in names:
        for label in "ab":
            write_flat(tmp_path / name / label / "x.png", (1, 1, 1))
    assert find_parts(tmp_path)[:3] == found


@pytest.mark.parametrize(
    "names",
    [["train", "training_set", "test"], ["train", "test", "tests_", "Test"], ["val", "test"]],
)
def test_parts_that_may_be_classes_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_flat(tmp_path / name / "a" / "x.png", (1, 1, 1))
    with pytest.raises(InputError, match="can be read in two ways") as raised:
        load(tmp_path)
    assert names[0] in str(raised.value)


def test_a_class_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    for path in ("train/steam/1.png", "train/diesel/2.png", "plane/jets/3.png"):
        write_flat(tmp_path / path, (1, 1, 1))
    assert find_parts(tmp_path)[:3] == ("", None, None)


def test_folders_without_pictures_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_trees(tmp_path, train=40)
    write_flat(tmp_path / "test" / "1.png", (1, 1, 1))
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    write_flat(tmp_path / "masks" / "1.png", (1, 1, 1))
    assert load(tmp_path).classes == ("0", "1")
    assert "a share of train is the test set; not used: test, masks" in caplog.text


def test_the_given_part_validates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_trees(tmp_path, train=40, val=12, test=8)
    splits = load(tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [40, 12, 8]
    expected = load(tmp_path / "val", "data.validation_size=0", "data.test_size=2").train
    ours = {image.numpy().tobytes() for image in splits.validation.resident().images}
    assert {image.numpy().tobytes() for image in expected.resident().images} < ours
    assert "train trains, val validates, test is the test set" in caplog.text
    other = load(tmp_path, "seed=5", "data.residence=host")
    assert torch.equal(other.validation.labels, splits.validation.labels)


def test_a_test_folder_without_classes_is_no_test_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_trees(tmp_path, train=40, val=12)
    write_flat(tmp_path / "test" / "1.png", (1, 1, 1))
    assert len(load(tmp_path).test) == 12
    assert "val is the test set; not used: test" in caplog.text
    shutil.rmtree(tmp_path / "val")
    assert len(load(tmp_path).test) == 8
    assert "a share of train is the test set" in caplog.text


def test_pictures_of_the_system_are_left_out(tmp_path: Path) -> None:
    write_trees(tmp_path, **{".": 40})
    for folder in ("0/@eaDir/1.png", "__MACOSX/0", "$RECYCLE.BIN", "1/.thumbnails"):
        write_flat(tmp_path / folder / "thumb.jpg", (1, 1, 1))
    splits = load(tmp_path)
    assert splits.classes == ("0", "1")
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 40


def test_copies_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_trees(tmp_path, train=40, test=8)
    load(tmp_path)
    assert "pictures are in" not in caplog.text
    shutil.copy(tmp_path / "train/0/0.png", tmp_path / "test/0/again.png")
    shutil.copy(tmp_path / "train/1/1.png", tmp_path / "train/0/wrong.png")
    shutil.copy(tmp_path / "train/1/3.png", tmp_path / "train/1/twice.png")
    load(tmp_path)
    assert (
        "1 pictures are in the training set and in the test set, such as test/0/again.png and "
        "train/0/0.png"
    ) in caplog.text
    assert "1 pictures are in two classes, such as train/0/wrong.png and train/1/1.png" in (
        caplog.text
    )


def test_copies_in_one_tree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_digits(tmp_path, [0, 1] * 20)
    for path in [*tmp_path.glob("0/*.png")]:
        shutil.copy(path, path.with_name(f"{path.stem} - Copy.png"))
    load(tmp_path)
    assert "are in the training set and in the test set" in caplog.text
    assert "two classes" not in caplog.text


def test_links_are_named_where_nothing_else_is_left(tmp_path: Path) -> None:
    write_digits(tmp_path / "outside", [0, 1] * 6)
    (tmp_path / "root").mkdir()
    for name in "01":
        (tmp_path / "root" / name).symlink_to(tmp_path / "outside" / name)
    with pytest.raises(InputError, match="2 links out of the folder are left out, such as 0"):
        load(tmp_path / "root")


@pytest.mark.parametrize(("bits", "is_told"), [(16, False), (12, True), (12, False), (8, False)])
def test_deep_pictures_have_their_true_range_or_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, is_told: bool
) -> None:
    pixels = (np.linspace(0, 1, 28 * 28).reshape(28, 28) * (2**bits - 1)).astype(np.uint16)
    tags = ImageFileDirectory_v2()
    if is_told:
        tags[MAX_SAMPLE_VALUE] = 2**bits - 1
    for number in range(20):
        path = tmp_path / str(number % 2) / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(pixels, number)).save(path, tiffinfo=tags)
    images = load(tmp_path).train.resident().images
    is_known = bits == 16 or is_told
    assert (int(images.max()) == 255) == is_known
    assert ("hardly any contrast" in caplog.text) != is_known
