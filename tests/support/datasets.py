"""Small data sets in real files, in torchvision's layout."""

import gzip
from pathlib import Path

import torch


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
