"""Finds the files of a data set, or downloads them once, however many processes ask."""

import errno
import inspect
import pkgutil
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
KNOWN = {
    "MNIST": CHECKSUMS.values(),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
DOWNLOAD_TIMEOUT_SECONDS = 30  # otherwise a network that drops packets would hang for minutes


def open_dataset(config: DataConfig, train: bool, trusted_modules: Sequence[str] = ()) -> Any:
    """Build the data set object that `config.dataset` names; download its files if necessary.

    Files are downloaded to a temporary folder and then moved into place, so that a process that
    reads without the lock finds a whole file or none. Whatever is downloaded is kept. Archives in
    the folder are used; those of MNIST's family may be packed anew, and lie in the folder itself.

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
        if isinstance(error.__cause__, (TypeError, MemoryError)):
            raise  # wrong arguments, or too little memory; the files do not matter
        # Otherwise they are missing or damaged, or another process is just downloading them.
    return _open_or_download(build, root, config)


def _open_or_download(build: Callable[..., Any], root: Path, config: DataConfig) -> Any:
    try:
        lock = _lock(root)
    except InputError:
        built = _open_given(build, root, config)
        if built is None:
            raise
        return built
    with lock:
        try:
            return build(root, download=False)
        except BuildError as missing:
            return _download(build, root, config, missing)


def _lock(root: Path) -> AbstractContextManager[object]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return lock_patiently(root / ".downloading.lock")
    except OSError as error:
        raise InputError(
            f"data.root={root} cannot be written ({error.strerror}): "
            f"set data.root to a folder that can be written, or that holds the files."
        ) from error


def _open_given(build: Callable[..., Any], root: Path, config: DataConfig) -> Any | None:
    """Open files of MNIST's family in a folder that cannot be written, if it has them."""
    with tempfile.TemporaryDirectory(prefix="dist_mnist-") as folder:
        try:
            _unpack_given(root, Path(folder), config)
            has_any = any(Path(folder).iterdir())
            return build(Path(folder), download=False) if has_any else None
        except (BuildError, OSError):
            return None


def _download(
    build: Callable[..., Any], root: Path, config: DataConfig, missing: BuildError
) -> Any:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as folder:
            temporary = Path(folder)
            _unpack_given(root, temporary, config)
            _copy_archives(root, temporary)
            build(temporary, download=True)
            return _move(build, temporary, root)
    except (BuildError, OSError) as error:
        if getattr(error.__cause__ or error, "errno", None) in FULL_DISK:
            raise cannot_write(root, OSError(errno.ENOSPC, "")) from error
        reasons = one_line(missing.__cause__), one_line(error.__cause__ or error)
        raise InputError(
            f"{config.name} cannot be read from data.root={root} ({reasons[0]}) or downloaded "
            f"({reasons[1]}): {_advice(root, config)}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _advice(root: Path, config: DataConfig) -> str:
    folder = _raw_folder(root, config)
    if folder is None:
        return f"put its files into {root}, as {config.dataset['_target_']} looks for them"
    return (
        f"put its files, or the archives they come in, into {folder}, "
        f"or set data.root to the folder that has them"
    )


def _raw_folder(root: Path, config: DataConfig) -> Path | None:
    """Return where torchvision keeps a data set's files, if it is one of MNIST's family."""
    from torchvision.datasets import MNIST  # MNIST itself needs no torchvision

    found = pkgutil.resolve_name(config.dataset["_target_"])  # allowed, since it was called
    if inspect.isclass(found) and issubclass(found, MNIST):
        return root / found.__name__ / "raw"
    return None


def _unpack_given(source: Path, target: Path, config: DataConfig) -> None:
    """Unpack the files that a folder has of a data set of MNIST's family, in either place."""
    split = config.dataset.get("split")
    part = f"-{split}-" if split else ""
    source_folder, target_folder = _raw_folder(source, config), _raw_folder(target, config)
    if source_folder and target_folder:
        own = target_folder.parent.name
        others = [one for name, sums in KNOWN.items() if name != own for one in sums]
        unpack_idx_files(source_folder, target_folder, part, others)
        unpack_idx_files(source, target_folder, part, others)


def _copy_archives(source: Path, target: Path) -> None:
    """Copy the archives; torchvision would overwrite a linked one if its checksum is wrong."""
    for archive in source.glob("*/raw/*"):
        if archive.suffix in ARCHIVES:
            copy = target / archive.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(archive, copy)


def _move(build: Callable[..., Any], source: Path, target: Path) -> Any:
    """Move a data set into place and open it there; archives only if it does not open without."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    archives = [path for path in files if path.suffix in ARCHIVES]
    _move_files([path for path in files if path not in archives], source, target)
    try:
        return build(target, download=False)
    except BuildError:
        if not archives:
            raise
    _move_files(archives, source, target)
    return build(target, download=False)


def _move_files(files: Sequence[Path], source: Path, target: Path) -> None:
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, place)
