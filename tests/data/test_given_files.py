"""A user's files, in any folder and packed in any way, and downloads that are kept."""

import gzip
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data import mnist
from dist_mnist.data.splits import load_part, load_splits
from tests.support.configs import make_config
from tests.support.datasets import make_family_files, make_images, write_idx

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, compresslevel=1, mtime=7),
    ".xz": lzma.compress,
}
pytestmark = pytest.mark.usefixtures("no_network")


def give(folder: Path, packing: str, prefix: str = "") -> None:
    """Write the four files of a data set, packed anew, into a folder."""
    make_family_files(folder, prefix, num_classes=10)
    for path in [*folder.iterdir()]:
        content = path.read_bytes()
        path.unlink()
        path.with_name(path.name + packing).write_bytes(PACK[packing](content))


def count(name: str, root: Path, *overrides: str) -> list[int]:
    config = make_config(f"data={name}", f"data.root={root}", *overrides).data
    return [len(load_part(config, train)[0]) for train in (True, False)]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_files_are_known_by_their_content(tmp_path: Path, packing: str, place: str) -> None:
    give(tmp_path / place, packing)
    assert count("fashion_mnist", tmp_path) == [203, 101]
    assert not list(tmp_path.glob(".downloading-*"))


def test_names_with_a_dot_are_known_too(tmp_path: Path) -> None:
    give(tmp_path, ".gz")
    for path in [*tmp_path.iterdir()]:
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert count("kmnist", tmp_path) == [203, 101]


def test_only_requested_split_is_unpacked(tmp_path: Path) -> None:
    give(tmp_path, ".gz", "emnist-digits-")
    give(tmp_path / "other", ".gz", "emnist-mnist-")
    for path in (tmp_path / "other").iterdir():
        shutil.move(path, tmp_path)
    assert count("emnist", tmp_path, "data.dataset.split=digits") == [203, 101]
    assert not list((tmp_path / "EMNIST" / "raw").glob("emnist-mnist-*"))


def test_read_only_folder(tmp_path: Path) -> None:
    give(tmp_path, ".gz")
    (tmp_path / ".downloading.lock").mkdir()  # root may write anywhere, but not into this
    before = sorted(tmp_path.rglob("*"))
    assert count("fashion_mnist", tmp_path) == [203, 101]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "longer", "labels for images", "bomb"])
def test_mislabeled_files_are_ignored(tmp_path: Path, damage: str) -> None:
    give(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "longer":
        path.write_bytes(gzip.compress(content + b"x"))
    elif damage == "bomb":
        path.write_bytes(gzip.compress(content[:4] + b"\xff" * 12 + bytes(1000)))
    else:
        write_idx(path, make_images(torch.arange(9), 10)[:, 0, 0], packed=True)
    with pytest.raises(InputError, match=r"put its files, .*FashionMNIST/raw, or set data.root"):
        count("fashion_mnist", tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


SHIPPED = Path(mnist.__file__).parent
DEBIANS = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
needs_fashion = pytest.mark.skipif(
    not DEBIANS.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (SHIPPED, "fashion_mnist"),
        (SHIPPED, "kmnist"),
        pytest.param(DEBIANS, "kmnist", marks=needs_fashion),
    ],
)
def test_files_of_another_data_set_are_left_alone(tmp_path: Path, source: Path, name: str) -> None:
    for path in source.glob("*.gz"):
        shutil.copy(path, tmp_path)
    with pytest.raises(InputError, match=f"{name} cannot be read from data.root="):
        count(name, tmp_path)


@needs_fashion
def test_real_fashion_mnist(tmp_path: Path) -> None:
    for path in DEBIANS.glob("*.gz"):
        shutil.copy(path, tmp_path)
    data = make_config("data=fashion_mnist", f"data.root={tmp_path}").data
    splits = load_splits(data, seed=0)
    assert round(splits.normalization.mean, 3) == 0.286
    assert round(splits.normalization.std, 3) == 0.353
    assert (len(splits.validation), len(splits.test)) == (5000, 10000)


OWN = """
import bz2
import torch
from pathlib import Path

class Own(torch.utils.data.Dataset):
    file = "{file}"

    def __init__(self, root, train, download):
        path = Path(root, self.file)
        if download:
            with Path(__file__).with_name("downloads").open("a") as log:
                log.write("x")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bz2.compress(bytes(20 * 784)))
        content = bytearray(bz2.decompress(path.read_bytes()))
        self.data = torch.frombuffer(content, dtype=torch.uint8).view(20, 28, 28)
        self.targets = [0, 1] * 10
"""


@pytest.mark.parametrize("file", ["own-batches/deep/part_1", "own.bz2", "Own/raw/own.bz2"])
def test_what_is_downloaded_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    name = f"own_{sum(file.encode())}"  # modules are imported once
    (tmp_path / f"{name}.py").write_text(OWN.replace("{file}", file))
    monkeypatch.syspath_prepend(tmp_path)
    target, root = f"data.dataset._target_={name}.Own", tmp_path / "root"
    config = make_config(target, "data.num_classes=2", f"data.root={root}").data
    for _ in range(3):
        assert len(load_part(config, train=True, trusted_modules=[name])[0]) == 20
    assert (tmp_path / "downloads").read_text() == "x"
    assert (root / file).exists()


def test_other_data_sets_name_their_folder(tmp_path: Path) -> None:
    config = make_config(
        *("data.dataset._target_=torchvision.datasets.CIFAR10", "data.image_shape=[3,32,32]"),
        f"data.root={tmp_path}",
    ).data
    with pytest.raises(InputError, match=r"put its files into .*, as torchvision.datasets.CIFAR10"):
        load_part(config, train=True)
