"""Finds the files of a data set, or downloads them once, however many processes ask."""

import errno
import inspect
import pkgutil
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import BuildError, InputError, one_line
from dist_mnist.config.targets import instantiate
from dist_mnist.data.idx import unpack_idx_files
from dist_mnist.data.mnist import CHECKSUMS
from dist_mnist.record.files import FULL_DISK, cannot_write
from dist_mnist.record.locks import lock_patiently

ARCHIVES = (".gz", ".xz", ".bz2", ".zip", ".tar", ".tgz")
# Data sets whose files have the same names, by the folders that torchvision keeps them in, and the
# SHA-256 of their unpacked files.
SAME_NAMES = {
    "MNIST": CHECKSUMS.values(),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
DOWNLOAD_TIMEOUT_SECONDS = 30  # otherwise a network that drops packets would hang for minutes

Build = Callable[[Path, bool], Any]  # the folder, and whether to download missing files into it


def open_dataset(config: DataConfig, train: bool, trusted_modules: Sequence[str] = ()) -> Any:
    """Build the data set that `config.dataset` names; unpack or download its files if necessary.

    Files of MNIST's family may be packed by anyone with gzip or xz, and lie in the folder itself.

    Returns:
        The data set, with the attributes `data` and `targets`.

    Raises:
        InputError: The files are missing or damaged and cannot be downloaded, or the folder cannot
            be written.
    """

    def build(root: Path, download: bool) -> Any:
        return instantiate(
            "data.dataset",
            config.dataset,
            Dataset,
            trusted_modules=trusted_modules,
            root=str(root),
            train=train,
            download=download,
        )

    root = Path(config.root)
    try:
        return build(root, False)
    except BuildError as error:
        if isinstance(error.__cause__, (TypeError, MemoryError)):
            raise  # wrong arguments, or too little memory; the files do not matter
        # Otherwise they are missing or damaged, or another process is just downloading them.
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = lock_patiently(root / ".downloading.lock")
    except OSError as error:
        with suppress(BuildError, OSError), tempfile.TemporaryDirectory() as folder:
            _unpack_given(root, Path(folder), config)
            if any(Path(folder).iterdir()):
                return build(Path(folder), False)
        raise InputError(
            f"data.root={root} cannot be written ({error.strerror}): "
            f"set data.root to a folder that can be written, or that holds the files."
        ) from error
    with lock:
        try:
            return build(root, False)
        except BuildError as missing:
            return _download(build, root, config, missing)


def _download(build: Build, root: Path, config: DataConfig, missing: BuildError) -> Any:
    """Unpack or download the files into a temporary folder, move them into place and open them.

    So a process that reads without the lock finds a whole file or none.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as folder:
            temporary = Path(folder)
            _unpack_given(root, temporary, config)
            for archive in root.glob("*/raw/*"):
                if archive.suffix in ARCHIVES:
                    copy = temporary / archive.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    # Not a link: torchvision overwrites an archive whose checksum is wrong.
                    shutil.copy(archive, copy)
            build(temporary, True)
            return _move(build, temporary, root)
    except (BuildError, OSError) as error:
        if getattr(error.__cause__ or error, "errno", None) in FULL_DISK:
            raise cannot_write(root, OSError(errno.ENOSPC, "")) from error
        reasons = one_line(missing.__cause__), one_line(error.__cause__ or error)
        raw = _raw_folder(config)
        place = f", or the archives they come in, into {root / raw}" if raw else f" into {root}"
        otherwise = (
            "or set data.root to the folder that has them"
            if raw
            else f"as {config.dataset['_target_']} looks for them"
        )
        raise InputError(
            f"{config.name} cannot be read from data.root={root} ({reasons[0]}) or downloaded "
            f"({reasons[1]}): put its files{place}, {otherwise}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _move(build: Build, source: Path, target: Path) -> Any:
    """Move a data set and open it; archives are moved only if it does not open without them."""
    for are_archives in (False, True):
        for path in sorted(source.rglob("*")):
            if path.is_file() and (path.suffix in ARCHIVES) is are_archives:
                place = target / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        with suppress(BuildError):
            return build(target, False)
    return build(target, False)


def _unpack_given(root: Path, target: Path, config: DataConfig) -> None:
    """Unpack the files of a data set of MNIST's family in a user's folder, in either place."""
    raw = _raw_folder(config)
    if raw:
        name, split = raw.parent.name, config.dataset.get("split")
        part = f"-{split}-" if split else ""
        others = {digest for other, s in SAME_NAMES.items() if other != name for digest in s}
        for folder in (root / raw, root):
            unpack_idx_files(folder, target / raw, part, others)


def _raw_folder(config: DataConfig) -> Path | None:
    """Return where torchvision keeps a data set below data.root, if it is of MNIST's family."""
    from torchvision.datasets import MNIST  # MNIST itself needs no torchvision

    dataset = pkgutil.resolve_name(config.dataset["_target_"])  # allowed, since it was called
    if inspect.isclass(dataset) and issubclass(dataset, MNIST):
        return Path(dataset.__name__, "raw")
    return None
