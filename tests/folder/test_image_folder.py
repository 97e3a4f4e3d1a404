"""Folders as people have them: read, split, kept, and refused with the names of the wrong files."""

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_mnist.config.data_schema import Fit
from dist_mnist.config.errors import InputError
from dist_mnist.data.mapped import Samples
from dist_mnist.data.splits import DataSplits, load_part, load_splits
from dist_mnist.folder import decoding
from dist_mnist.folder.decoding import Problem, decode_all, decode_picture
from tests.support.configs import make_config
from tests.support.picture_folders import FOLDER_DATA, write_digits, write_flat

pytestmark = pytest.mark.usefixtures("own_cache")


def load(root: Path, *overrides: str) -> DataSplits:
    config = make_config(*FOLDER_DATA, f"data.root={root}", *overrides)
    return load_splits(config.data, config.seed)


def everything(root: Path, *overrides: str, train: bool = True) -> tuple[Samples, tuple[str, ...]]:
    return load_part(make_config(*FOLDER_DATA, f"data.root={root}", *overrides).data, train)


def two_parts(root: Path) -> torch.Tensor:
    write_digits(root / "test", [0, 1] * 5, seed=1)
    return write_digits(root / "train", [1, 0, 1, 1, 0] * 12)


def test_files_keep_their_order(tmp_path: Path) -> None:
    images = two_parts(tmp_path)
    part, classes = everything(tmp_path)
    assert torch.equal(part.resident().images[:, 0], images)
    assert part.labels.tolist() == [1, 0, 1, 1, 0] * 12
    assert classes == ("0", "1")
    assert len(everything(tmp_path, train=False)[0]) == 10


def test_one_tree_is_split(tmp_path: Path) -> None:
    write_digits(tmp_path, [0] * 60 + [1] * 30)
    splits = load(tmp_path)
    sizes = [part.labels.bincount().tolist() for part in (splits.test, splits.validation)]
    assert sizes == [[12, 6], [5, 2]]
    parts = (splits.train, splits.validation, splits.test)
    seen = {image.numpy().tobytes() for part in parts for image in part.resident().images}
    assert len(seen) == sum(map(len, parts)) == 90
    other = load(tmp_path, "seed=3")
    assert torch.equal(other.test.resident().images, splits.test.resident().images)
    assert not torch.equal(other.validation.resident().images, splits.validation.resident().images)
    assert len(load(tmp_path, "data.test_size=30").test) == 30


def test_other_names_of_the_test_tree(tmp_path: Path) -> None:
    two_parts(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(everything(tmp_path)[0]) == 60
    assert len(everything(tmp_path, train=False)[0]) == 10
    write_flat(tmp_path / "test" / "unknown.png", (1, 1, 1))
    assert len(everything(tmp_path, train=False)[0]) == 10


def test_names_and_deep_trees(tmp_path: Path) -> None:
    deep = tmp_path.joinpath("Äpfel und Birnen", *["x"] * 60)
    write_flat(deep / "ein Bild.PNG", (9, 9, 9))
    write_flat(tmp_path / "zwei" / "b.jpeg", (250, 250, 250))
    write_flat(tmp_path / "zwei" / "c.bmp", (250, 250, 250))
    part, classes = everything(tmp_path, "data.test_size=1")
    assert classes == ("zwei", "Äpfel und Birnen")
    assert len(part) == 2


@pytest.mark.parametrize(
    ("name", "mode", "color", "expected"),
    [
        ("gray.png", "L", 77, [77] * 3),
        ("two.png", "1", 1, [255] * 3),
        ("deep.png", "I;16", 77 * 257, [77] * 3),
        ("deep.tif", "I;16", 77 * 257, [77] * 3),
        ("float.tiff", "F", 0.6, [153] * 3),
        ("alpha.png", "RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("gray_alpha.png", "LA", (50, 255), [50] * 3),
        ("lossless.tif", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("animated.gif", "RGB", (10, 200, 30), [10, 200, 30]),
        ("web.webp", "RGB", (8, 8, 8), [8] * 3),
    ],
)
def test_modes(tmp_path: Path, name: str, mode: str, color: object, expected: list[int]) -> None:
    for folder in ("train/a", "train/b", "test/a"):
        write_flat(tmp_path / folder / name, color, mode)
    part, _ = everything(tmp_path, "data.image_shape=[3,6,8]")
    found = part.resident().images[0].flatten(1)
    assert (found - torch.tensor(expected).unsqueeze(1)).abs().max() <= 3  # WebP is not exact


def test_transparent_pixels_hide_their_color(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # red everywhere, but seen in the middle only
    pixels[3:5, 3:5, 3] = 255
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    image = everything(tmp_path, "data.image_shape=[3,8,8]")[0].resident().images[0]
    assert image[:, 4, 4].tolist() == [200, 0, 0]
    assert image[:, 0, 0].tolist() == [255, 255, 255]


def test_pictures_lie_upright(tmp_path: Path) -> None:
    left_white = Image.new("RGB", (8, 8))
    left_white.paste((255, 255, 255), (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right: the left side goes to the top
    for folder in ("train/a", "train/b", "test/a"):
        (tmp_path / folder).mkdir(parents=True)
        left_white.save(tmp_path / folder / "x.jpg", exif=exif, quality=100)
    image = everything(tmp_path, "data.image_shape=[1,8,8]")[0].resident().images[0, 0].float()
    assert image[:4].mean() > 250
    assert image[4:].mean() < 5


def test_broken_pictures_are_named_or_skipped(tmp_path: Path) -> None:
    two_parts(tmp_path)
    whole = (tmp_path / "train" / "0" / "1.png").read_bytes()
    (tmp_path / "train" / "0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train" / "1" / "none.jpg").write_bytes(b"")
    (tmp_path / "train" / "1" / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="3 of 63 pictures") as raised:
        load(tmp_path)
    for name in ("train/0/cut.png", "train/1/none.jpg", "train/1/text.png", "data.broken=skip"):
        assert name in str(raised.value)
    splits = load(tmp_path, "data.broken=skip", "data.validation_size=0")
    assert len(splits.train) == 60


def test_a_bomb_is_refused_unopened(tmp_path: Path) -> None:
    two_parts(tmp_path)
    small = (tmp_path / "train" / "0" / "1.png").read_bytes()
    for side, size in ((10_000, "100,000,000"), (60_000, "far too many")):
        header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        (tmp_path / "train" / "0" / "bomb.png").write_bytes(bomb)
        with pytest.raises(InputError, match=rf"bomb.png \(it has {size} pixels"):
            load(tmp_path)


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    two_parts(root)
    write_flat(outside / "secret.png", (1, 2, 3))
    (root / "train" / "0" / "link.png").symlink_to(outside / "secret.png")
    (root / "train" / "0" / "loop").symlink_to(root)
    (root / "train" / "2").symlink_to(outside)
    (root / "train" / "0" / "gone.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "train" / "0" / "pipe.png")
    (root / "train" / "0" / "._1.png").write_text("of a Mac")
    (root / "train" / "0" / "copy.png").symlink_to(root / "train" / "0" / "1.png")
    part, classes = everything(root)
    assert len(part) == 61
    assert classes == ("0", "1")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no pictures to learn from"),
        (["x.png"], "has no pictures to learn from"),
        (["a/x.png", "a/y.png"], "has one class, a"),
        (["train/a/x.png", "train/b/x.png", "test/c/x.png"], "classes that it has no training"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        write_flat(tmp_path / name, (1, 1, 1))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_shape=[2,28,28]", r"data.image_shape=\[2, 28, 28\] does not fit"),
        ("data.test_size=0.001", "data.test_size=0.001 makes 0 of the 40"),
        ("data.test_size=40", "data.test_size=40 makes 40 of the 40"),
        ("data.root=/nowhere", "data.root=/nowhere is not a folder"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, override: str, message: str) -> None:
    write_digits(tmp_path, [0, 1] * 20)
    with pytest.raises(InputError, match=message):
        load(tmp_path, override)


def test_thousands_of_classes(tmp_path: Path) -> None:
    for label in range(2000):
        write_flat(tmp_path / "train" / f"c{label}" / "1.png", label % 256, "L", (4, 4))
    write_flat(tmp_path / "test" / "c7" / "1.png", 7, "L", (4, 4))
    splits = load(tmp_path, "data.validation_size=0", "data.image_shape=[1,4,4]")
    assert len(splits.classes) == 2000
    values = splits.train.resident().images[:, 0, 0, 0].tolist()
    names = [int(splits.classes[label][1:]) % 256 for label in splits.train.labels.tolist()]
    assert values == names
    assert splits.classes[int(splits.test.labels)] == "c7"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the pictures that are decoded, by their place in the folder."""
    paths: list[str] = []

    def recording(path: Path, *options: Any) -> NDArray[np.uint8] | Problem:
        paths.append("/".join(path.parts[-3:]))
        return decode_picture(path, *options)

    monkeypatch.setattr(decoding, "decode_picture", recording)
    return paths


def test_only_what_changed_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    two_parts(tmp_path)
    first = everything(tmp_path)[0].resident().images
    assert len(decoded) == len(set(decoded)) == 60
    assert torch.equal(everything(tmp_path)[0].resident().images, first)
    assert len(decoded) == 60
    changed = tmp_path / "train" / "0" / "1.png"
    write_flat(changed, 200, "L", (28, 28))
    (tmp_path / "train" / "1" / "0.png").unlink()
    part, _ = everything(tmp_path)
    assert decoded[60:] == ["train/0/1.png"]
    assert len(part) == 59
    assert int(part.resident().images[0].min()) == 200
    assert torch.equal(part.resident().images[1:], first[2:])


def test_decoding_that_was_cut_off_continues(
    tmp_path: Path, own_cache: Path, decoded: list[str]
) -> None:
    images = two_parts(tmp_path)
    everything(tmp_path)
    decoded.clear()
    (index,) = own_cache.rglob("index.jsonl")
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:21]) + lines[21][:9])  # killed while it wrote a line
    part, _ = everything(tmp_path)
    assert len(decoded) == 40
    assert torch.equal(part.resident().images[:, 0], images)


@pytest.mark.parametrize("damage", ["shorter", "gone", "no index"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, own_cache: Path, damage: str) -> None:
    images = two_parts(tmp_path)
    everything(tmp_path)
    (pixels,) = own_cache.rglob("pixels")
    if damage == "shorter":
        os.truncate(pixels, 5000)
    else:
        (pixels if damage == "gone" else pixels.with_name("index.jsonl")).unlink()
    assert torch.equal(everything(tmp_path)[0].resident().images[:, 0], images)


def test_damaged_small_files_of_the_cache_are_made_again(tmp_path: Path, own_cache: Path) -> None:
    images = two_parts(tmp_path)
    load(tmp_path)
    small = [*own_cache.rglob("*.json")]
    assert len(small) == 4  # the sums of both parts, copies, and pictures without contrast
    for content in (b"", b"null", b"{}", b"[1]", b'["x", [0]]', b"[" * 10**5, b"\xff"):
        for path in small:
            path.write_bytes(content)
        load(tmp_path)
    for path in own_cache.rglob("index.jsonl"):
        path.write_bytes(b'[[], 1, 2, 3]\n["x", 1, 2, {}]\n["y", "1", 2, 3]\n' + path.read_bytes())
    assert torch.equal(everything(tmp_path)[0].resident().images[:, 0], images)


def test_a_finished_cache_serves_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into a cache that holds all pictures, on storage that is read-only."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/cache")
        images = two_parts(Path(folder, "pictures"))
        options = (f"data.root={folder}/pictures", *FOLDER_DATA)
        known, new = (make_config(*options, f"data.image_shape=[1,{n},{n}]").data for n in (28, 9))
        load_splits(known, 0)
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                Path(folder, "cache", "new").touch()
            splits = load_splits(known, 0)
            with pytest.raises(InputError, match="set XDG_CACHE_HOME to another folder"):
                load_splits(new, 0)
        finally:
            os.seteuid(user)
            for path in [Path(folder), *Path(folder).rglob("*")]:
                path.chmod(0o755)
    assert len(splits.train) + len(splits.validation) == len(images)


def test_many_pictures_and_a_broken_one(tmp_path: Path, decoded: list[str]) -> None:
    images = write_digits(tmp_path / "train", [0, 1] * 150)
    write_digits(tmp_path / "test", [0, 1])
    (tmp_path / "train" / "0" / "broken.png").write_text("no")
    part, _ = everything(tmp_path, "data.broken=skip")
    assert torch.equal(part.resident().images[:, 0], images)
    assert len(decoded) == len(set(decoded)) == 301


def test_an_interrupted_decode_ends_its_threads(tmp_path: Path, decoded: list[str]) -> None:
    write_digits(tmp_path, [0, 1] * 500)
    with (tmp_path / "pixels").open("wb") as pixels:
        rows = [(number, f"{number % 2}/{number}.png") for number in range(1000)]
        decoding = decode_all(tmp_path, rows, [1, 28, 28], Fit.pad, pixels.fileno(), 2)
        next(decoding)
        decoding.close()
    assert not [thread for thread in threading.enumerate() if "decoding" in thread.name]
    assert len(decoded) < 1000


@pytest.fixture
def little_space() -> Iterator[None]:
    """Let files have 50 kB at most."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported(tmp_path: Path, little_space: None) -> None:
    write_digits(tmp_path / "train", [0, 1] * 50)
    write_digits(tmp_path / "test", [0, 1])
    with pytest.raises(InputError, match=r"cannot be written.*XDG_CACHE_HOME"):
        everything(tmp_path)


def test_pillow_waits_for_pictures(small_root: Path) -> None:
    script = (
        "import sys, json; from tests.support.configs import make_config;"
        "import dist_mnist.training.run; from dist_mnist.data.splits import load_splits;"
        "load_splits(make_config('data.root=' + sys.argv[1]).data, 0);"
        "print(json.dumps([name for name in ('PIL', 'torchvision') if name in sys.modules]))"
    )
    command = [sys.executable, "-c", script, str(small_root)]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == []
