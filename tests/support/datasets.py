"""Small data sets in real files, in torchvision's layout."""

import gzip
from pathlib import Path

import torch
from torch.utils.data import Dataset


def write_idx(path: Path, tensor: torch.Tensor, packed: bool = False) -> None:
    """Write a uint8 or int32 tensor in MNIST's file format."""
    kind = {torch.uint8: 8, torch.int32: 12}[tensor.dtype]
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    values = tensor.numpy().astype(tensor.numpy().dtype.newbyteorder(">")).tobytes()
    content = bytes([0, 0, kind, tensor.ndim]) + sizes + values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def make_images(labels: torch.Tensor, num_classes: int, seed: int = 0) -> torch.Tensor:
    """Draw images that a network can learn: a bright bar whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (len(labels), 28, 28), generator=generator)
    rows = 2 + labels * 24 // num_classes
    images[torch.arange(len(labels)), rows] = 255
    return images.to(torch.uint8)


def make_family_files(
    folder: Path, prefix: str, num_classes: int, first_label: int = 0, train: int = 203
) -> None:
    """Write a training and a test set under the names that torchvision looks for."""
    for part, size in (("train", train), ("test" if "emnist" in prefix else "t10k", 101)):
        labels = torch.arange(size) % num_classes
        images = make_images(labels, num_classes, seed=size)
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte", images)
        labels = (labels + first_label).to(torch.uint8)
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte", labels)


def make_small_root(root: Path) -> Path:
    """Write small stand-ins for every data set but MNIST, in torchvision's layout."""
    for name in ("FashionMNIST", "KMNIST"):
        make_family_files(root / name / "raw", "", num_classes=10)
    for split, classes in (
        ("byclass", 62),
        ("bymerge", 47),
        ("balanced", 47),
        ("letters", 26),
        ("digits", 10),
        ("mnist", 10),
    ):
        first_label = 1 if split == "letters" else 0
        make_family_files(root / "EMNIST" / "raw", f"emnist-{split}-", classes, first_label)
    for part in ("train", "test"):
        labels = torch.zeros(150, 8, dtype=torch.int32)
        labels[:, 0] = torch.arange(150) % 10
        folder = root / "QMNIST" / "raw"
        write_idx(folder / f"qmnist-{part}-images-idx3-ubyte", make_images(labels[:, 0], 10))
        write_idx(folder / f"qmnist-{part}-labels-idx2-int", labels)
    return root


class ColorBars(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Color pictures of 64 by 64 pixels, three classes, for trusted_modules.

    Attributes:
        data: uint8 of shape (N, 64, 64, 3).
        targets: int64 of shape (N,).
    """

    classes = ("red", "green", "blue")

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        generator = torch.Generator().manual_seed(int(train))
        self.targets = torch.arange(48 if train else 12) % 3
        self.data = torch.randint(
            0, 60, (len(self.targets), 64, 64, 3), generator=generator, dtype=torch.uint8
        )
        self.data[torch.arange(len(self.targets)), 20:40, :, self.targets] = 255

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[index], self.targets[index]


COLOR_BARS = (
    "trusted_modules=[tests.support.datasets]",
    "data.dataset._target_=tests.support.datasets.ColorBars",
    *("data.name=color_bars", "data.image_shape=[3,64,64]", "data.num_classes=3"),
    *("data.validation_size=6", "trainer.global_batch_size=16", "trainer.device=cpu"),
)
