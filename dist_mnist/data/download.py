"""Finds the files of a data set, or downloads them once, however many processes ask."""

import errno
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch.utils.data import Dataset

from dist_mnist.config.errors import BuildError, InputError, one_line
from dist_mnist.config.schema import DataConfig
from dist_mnist.config.targets import instantiate
from dist_mnist.record.files import FULL_DISK, cannot_write

ARCHIVES = (".gz", ".xz", ".zip")
DOWNLOAD_TIMEOUT_SECONDS = 30  # otherwise a network that drops packets would hang for minutes


def open_dataset(config: DataConfig, train: bool, trusted_modules: Sequence[str] = ()) -> Any:
    """Build the data set object that `config.dataset` names; download its files if necessary.

    Files are downloaded to a temporary folder and then moved into place, so that a process that
    reads without the lock finds a whole file or none. Archives in the folder are used.

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
        return build(root, download=False)
    except BuildError as error:
        if isinstance(error.__cause__, TypeError):
            raise  # wrong arguments; the files do not matter
        # Otherwise they are missing or damaged, or another process is just downloading them.
    with _lock(root):
        try:
            return build(root, download=False)
        except BuildError as missing:
            _download(build, root, config, missing)
            return build(root, download=False)


def _lock(root: Path) -> AbstractContextManager[object]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return FileLock(root / ".downloading.lock").acquire()
    except OSError as error:
        raise InputError(
            f"data.root={root} cannot be written ({error.strerror}): "
            f"set data.root to a folder that can be written, or that holds the files."
        ) from error


def _download(
    build: Callable[..., Any], root: Path, config: DataConfig, missing: BuildError
) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as folder:
            temporary = Path(folder)
            _copy_archives(root, temporary)
            build(temporary, download=True)
            _move_files(temporary, root)
    except (BuildError, OSError) as error:
        if getattr(error.__cause__ or error, "errno", None) in FULL_DISK:
            raise cannot_write(root, OSError(errno.ENOSPC, "")) from error
        reasons = one_line(missing.__cause__), one_line(error.__cause__ or error)
        raise InputError(
            f"{config.name} cannot be read from data.root={root} ({reasons[0]}) or downloaded "
            f"({reasons[1]}): put its files, or the archives they come in, into "
            f"{root / config.dataset['_target_'].rpartition('.')[2] / 'raw'}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _copy_archives(source: Path, target: Path) -> None:
    """Copy the archives; torchvision would overwrite a linked one if its checksum is wrong."""
    for archive in source.glob("*/raw/*"):
        if archive.suffix in ARCHIVES:
            copy = target / archive.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(archive, copy)


def _move_files(source: Path, target: Path) -> None:
    for file in source.glob("*/raw/*"):
        if file.is_file() and file.suffix not in ARCHIVES:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, place)
