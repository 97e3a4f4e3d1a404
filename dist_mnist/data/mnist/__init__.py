"""MNIST, shipped with the package, so it needs no network.

The four gzipped files in this folder are the originals (LeCun, Cortes, Burges). They are unpacked
into the data folder in torchvision's own layout, `MNIST/raw/`, so that other programs can use them.
"""

import gzip
import hashlib
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dist_mnist.record.locks import lock_patiently

# SHA-256 of each decompressed file.
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class MNIST(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training or the test set, with the interface of `torchvision.datasets.MNIST`.

    Attributes:
        data: Images, uint8 of shape (N, 28, 28), white on black.
        targets: Labels, int64 of shape (N,).
        classes: The ten digits' names.

    Raises:
        OSError: As in `read_verified`.
    """

    classes = tuple("0123456789")

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        folder = Path(root) / "MNIST" / "raw"
        part = "train" if train else "t10k"
        # The checksums cover the headers, so the sizes need no parsing.
        images = read_verified(folder, f"{part}-images-idx3-ubyte")
        labels = read_verified(folder, f"{part}-labels-idx1-ubyte")
        self.data = torch.frombuffer(images, dtype=torch.uint8, offset=16).view(-1, 28, 28)
        self.targets = torch.frombuffer(labels, dtype=torch.uint8, offset=8).long()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[index], self.targets[index]


def read_verified(folder: Path, name: str) -> bytearray:
    """Return one of the four files, after unpacking it if it is missing or not the original.

    Every process verifies the bytes that it returns, so it does not matter which process unpacked
    the file. One process at a time unpacks, into a temporary file that is renamed into place.

    Raises:
        OSError: The file is missing and its folder cannot be written, or the file in the package is
            damaged.
    """
    path = folder / name
    content = _read_if_original(path)
    if content is None:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_patiently(folder / ".unpacking.lock"):
            content = _read_if_original(path) or _unpack(path)
    return content


def _read_if_original(path: Path) -> bytearray | None:
    try:
        # Read into the memory that the tensors will use: a copy would take 47 MB.
        content = bytearray(path.stat().st_size)
        with path.open("rb") as file:
            file.readinto(content)
    except FileNotFoundError:
        return None
    return content if _is_original(path.name, content) else None


def _is_original(name: str, content: bytearray) -> bool:
    return hashlib.sha256(content).hexdigest() == CHECKSUMS[name]


def _unpack(path: Path) -> bytearray:
    packed = Path(__file__).parent / f"{path.name}.gz"
    content = bytearray(gzip.decompress(packed.read_bytes()))
    if not _is_original(path.name, content):
        raise OSError(f"{packed} is damaged: reinstall dist_mnist")
    temporary = path.with_name(f".{path.name}.tmp")  # one name: one process has the lock
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return content
