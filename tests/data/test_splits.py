import gzip
import hashlib
import shutil
import string
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import with_num_classes
from dist_mnist.data import mnist
from dist_mnist.data.images import count_values, normalization_of
from dist_mnist.data.splits import load_part, load_splits, stratified_choice
from tests.support.configs import make_config
from tests.support.datasets import make_family_files, make_images, write_idx
from tests.support.processes import run_ranks


def test_mnist_is_the_original(mnist_root: Path) -> None:
    splits = load_splits(make_config(f"data.root={mnist_root}").data, seed=0)
    assert splits.train.resident().images.shape == (55_000, 1, 28, 28)
    assert splits.train.resident().images.dtype == torch.uint8
    assert splits.validation.labels.shape == (5_000,)
    assert splits.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert splits.normalization.mean == pytest.approx(0.1307, abs=5e-5)
    assert splits.normalization.std == pytest.approx(0.3081, abs=5e-5)


def test_torchvision_reads_what_was_unpacked(mnist_root: Path) -> None:
    from torchvision.datasets import MNIST

    mnist.MNIST(str(mnist_root), train=False)  # torchvision looks for both parts
    ours, theirs = mnist.MNIST(str(mnist_root)), MNIST(str(mnist_root), download=False)
    assert torch.equal(ours.data, theirs.data)
    assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "altered"])
def test_a_damaged_file_is_made_again(mnist_root: Path, tmp_path: Path, damage: str) -> None:
    mnist.MNIST(str(mnist_root), train=False)
    shutil.copytree(mnist_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "altered":
        content[5000] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    data = mnist.MNIST(str(tmp_path), train=False).data
    assert torch.equal(data, mnist.MNIST(str(mnist_root), train=False).data)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == mnist.CHECKSUMS[path.name]


def checksum_of_what_is_loaded(root: str) -> str:
    torch.set_num_threads(1)
    splits = load_splits(make_config(f"data.root={root}").data, seed=0)
    digest = hashlib.sha256()
    for part in (splits.train, splits.validation, splits.test):
        digest.update(part.resident().images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_many_processes_share_an_empty_folder(tmp_path: Path) -> None:
    found = set()
    for attempt in range(2):
        found |= set(run_ranks(4, checksum_of_what_is_loaded, str(tmp_path / str(attempt))))
    assert len(found) == 1
    assert not [path for path in tmp_path.rglob("*") if "ubyte." in path.name]


@pytest.mark.parametrize("size", [0, 1, 7, 50, 333])
def test_validation_is_stratified(size: int) -> None:
    labels = torch.tensor([0] * 100 + [1] * 200 + [2] * 33)[torch.randperm(333)]
    chosen = stratified_choice(labels, size, seed=5)
    assert len(set(chosen.tolist())) == len(chosen) == size
    shares = labels[chosen].bincount(minlength=3) - torch.tensor([100, 200, 33]) * size / 333
    assert bool((shares.abs() <= 1).all())


def test_the_parts_are_disjoint_and_complete(small_root: Path) -> None:
    config = make_config(
        "data=fashion_mnist", f"data.root={small_root}", "data.validation_size=40"
    ).data
    splits = load_splits(config, seed=0)
    everything, _ = load_part(config, train=True)

    def rows(images: torch.Tensor) -> list[bytes]:
        return [image.numpy().tobytes() for image in images]

    parts = rows(splits.train.resident().images) + rows(splits.validation.resident().images)
    assert sorted(parts) == sorted(rows(everything.resident().images))
    other = load_splits(config, seed=1)
    assert rows(other.validation.resident().images) != rows(splits.validation.resident().images)


def test_normalized_mean_and_deviation() -> None:
    images = make_images(torch.arange(500) % 10, 10).unsqueeze(1)
    normalized = normalization_of(count_values(images))(images)
    assert normalized.dtype == torch.float32
    assert float(normalized.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(normalized.double().std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_pixels_without_normalization(small_root: Path) -> None:
    overrides = ("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=0")
    splits = load_splits(make_config(*overrides, "data.normalize=false").data, seed=0)
    pixels = splits.normalization(splits.train.resident().images)
    torch.testing.assert_close(pixels, splits.train.resident().images / 255)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("fashion_mnist", 10),
        ("kmnist", 10),
        ("qmnist", 10),
        ("emnist data.dataset.split=byclass", 62),
        ("emnist data.dataset.split=bymerge", 47),
        ("emnist", 47),
        ("emnist data.dataset.split=letters", 26),
        ("emnist data.dataset.split=digits", 10),
        ("emnist data.dataset.split=mnist", 10),
    ],
)
def test_the_family_is_read_from_a_folder(small_root: Path, name: str, classes: int) -> None:
    config = make_config(*f"data={name}".split(), f"data.root={small_root}").data
    for train in (True, False):
        part, names = load_part(config, train=train)
        assert len(names) == len(set(names)) == classes
        assert part.labels.dtype == torch.int64
        assert int(part.labels.min()) == 0
        assert int(part.labels.max()) == classes - 1
        expected = make_images(part.labels, classes, seed=len(part))
        if name == "qmnist":
            expected = make_images(part.labels, classes)
        if name.startswith("emnist"):
            expected = expected.transpose(1, 2)  # the files hold them mirrored
        assert torch.equal(part.resident().images[:, 0], expected)


def test_emnist_names_its_split_and_counts_its_classes(small_root: Path) -> None:
    overrides = ("data=emnist", "data.dataset.split=letters", "data.validation_size=50")
    config = make_config(*overrides, f"data.root={small_root}")
    assert config.data.name == "emnist_letters"
    splits = load_splits(config.data, seed=0)
    assert "".join(splits.classes) == string.ascii_lowercase
    trained = with_num_classes(config, len(splits.classes))
    assert trained.data.num_classes == trained.model["num_classes"] == 26


def test_archives_in_the_folder_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    make_family_files(raw, "", num_classes=10)
    resources = []
    for path in sorted(raw.iterdir()):
        archive = path.with_name(f"{path.name}.gz")
        archive.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    part, _ = load_part(make_config("data=fashion_mnist", f"data.root={tmp_path}").data, train=True)
    assert len(part) == 203


def test_a_damaged_file_of_the_family_is_named(tmp_path: Path, no_network: None) -> None:
    make_family_files(tmp_path / "KMNIST" / "raw", "", num_classes=10)
    path = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"kmnist cannot be read .* or downloaded") as raised:
        load_part(make_config("data=kmnist", f"data.root={tmp_path}").data, train=True)
    assert "\n" not in str(raised.value)


def test_missing_data_set_names_its_folder(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(InputError, match="put its files"):
        load_part(make_config("data=kmnist", f"data.root={tmp_path}").data, train=True)
    assert not list(tmp_path.glob(".downloading-*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data.root=.*file.* cannot be written"):
        load_part(make_config(f"data.root={tmp_path / 'file'}").data, train=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_classes=5", "data.num_classes=5"),
        ("data.num_classes=12", "data.num_classes=12 .* which has 10"),
        ("data.dataset._target_=torchvision.datasets.FakeData", "data.dataset cannot be built"),
        ("data.dataset._target_=torch.utils.data.TensorDataset", "data.dataset cannot be built"),
        ("data.image_shape=[1,32,32]", "data.image_shape"),
        ("data.validation_size=203", "data.validation_size=203 leaves nothing"),
    ],
)
def test_config_must_fit_the_files(small_root: Path, override: str, message: str) -> None:
    config = make_config("data=fashion_mnist", f"data.root={small_root}", override).data
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        load_splits(config, seed=0)


def test_a_data_set_of_ones_own_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_colours.py").write_text(
        "import torch\n"
        "class Colours(torch.utils.data.Dataset):\n"
        "    def __init__(self, root, train, download):\n"
        "        self.data = torch.zeros(20, 32, 32, 3, dtype=torch.uint8).numpy()\n"
        "        self.targets = [0, 1] * 10\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(
        "data.dataset._target_=my_colours.Colours",
        "data.image_shape=[3,32,32]",
        "data.num_classes=2",
        f"data.root={tmp_path}",
    ).data
    part, names = load_part(config, train=True, trusted_modules=["my_colours"])
    assert part.resident().images.shape == (20, 3, 32, 32)
    assert names == ("0", "1")
    with pytest.raises(InputError, match="trusted_modules"):
        load_part(config, train=True)


def test_torchvision_reads_our_idx_files(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file

    images = make_images(torch.arange(10), 10)
    write_idx(tmp_path / "images", images)
    assert torch.equal(read_image_file(str(tmp_path / "images")), images)
