"""A folder of pictures as a data set: torchvision's ImageFolder layout, decoded once."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dist_mnist.config.data_schema import Broken, Fit, number_of
from dist_mnist.config.errors import InputError
from dist_mnist.data.cache import fingerprint, remember
from dist_mnist.data.mapped import MappedImages, PixelSums, sum_pixels
from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.splits import stratified_choice
from dist_mnist.folder.files import (
    Classes,
    PictureFile,
    class_of,
    find_classes,
    find_pictures,
    list_pictures,
    printable,
)
from dist_mnist.folder.parts import Parts, find_parts, log_parts
from dist_mnist.folder.store import Stored, store_pictures
from dist_mnist.folder.suspicious import log_copies, log_faint

logger = logging.getLogger(__name__)

BROKEN_SHOWN = 20
NUMBER = re.compile("([0-9]+)")


class ImageFolder(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training or the test pictures of a folder, decoded and mapped into memory.

    A class is named like its folder, and classes are sorted by name. A folder with trees in
    `train/` and in `test/` or `val/`, or in folders of similar names, has these parts; of one tree,
    the same share of each class becomes the test set.

    Args:
        download: Has no effect.
        image_shape: Channels (1 or 3), height and width of all pictures.
        fit: The treatment of a picture of another aspect: pad, crop or stretch.
        broken: The treatment of unreadable pictures: refuse or skip.
        test_size: The size of the test set of one tree: a number of pictures, a share below 1, or
            None for the whole tree.
        seed: Determines the test set of one tree.

    Attributes:
        samples: The pictures and their labels.
        classes: The names of the classes.

    Raises:
        InputError: The folder has no pictures, fewer than two classes or broken pictures, or the
            decoded pictures cannot be stored.
    """

    def __init__(
        self, root: str, train: bool, download: bool, image_shape: Sequence[int], **options: Any
    ) -> None:
        del download
        if len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape) < 1:
            raise InputError(
                f"data.image_shape={list(image_shape)} does not fit pictures: set it to "
                f"[1,height,width] for grayscale, or [3,height,width] for RGB."
            )
        folder = Path(root)
        if not folder.is_dir():
            raise InputError(f"data.root={root} is not a folder: name the one with the pictures.")
        parts = find_parts(folder)
        trees = [parts.train] if train or parts.test is None else [parts.test]
        trees += [parts.validation] if train and parts.validation else []
        pictures = find_pictures(folder, *trees)
        names = [*pictures] if trees == [parts.train] else find_classes(folder, parts.train)
        _check_classes(root, names, pictures, train)
        files, labels = _in_order(names, pictures)
        stored = store_pictures(folder, trees[0], files, image_shape, Fit(options["fit"]))
        _report_broken(root, stored, len(files), Broken(options["broken"]))
        kept = (stored.rows >= 0).nonzero().flatten()
        if parts.test is None:
            kept = kept[_cut(root, labels[kept], train, options)]
        self.samples = MappedImages(stored.pixels, stored.rows[kept], labels[kept])
        self.classes = tuple(map(printable, names))
        self.samples.sums = _sums(stored.folder, self.samples)
        if parts.validation and train:
            given = [file.path.startswith(f"{parts.validation}/") for file in files]
            self.samples.validates = torch.tensor(given)[kept]
        if train:
            used = [files[place] for place in kept.tolist()]
            log_parts(folder, parts)
            log_faint(folder, stored.folder, self.samples, used)
            log_copies(folder, stored.folder, _places(folder, parts, pictures, used))


def _sums(cache: Path, samples: MappedImages) -> PixelSums:
    """Return the sums over all pixels, from a file if they were summed before."""
    path = cache / f"sums-{fingerprint(samples.rows.numpy().tobytes())}.json"
    return PixelSums(**remember(path, lambda: sum_pixels(samples)._asdict()))


def _places(
    folder: Path, parts: Parts, pictures: Classes, trained: Sequence[PictureFile]
) -> dict[PictureFile, tuple[bool, str]]:
    """Return the part and the class of each picture, of the training trees and of the test tree."""
    in_training = {*trained}
    places = {
        file: (file in in_training, name) for name, files in pictures.items() for file in files
    }
    tested = [] if parts.test is None else list_pictures(folder, parts.test)
    return places | {file: (False, class_of(file.path, str(parts.test))) for file in tested}


def _check_classes(root: str, names: Sequence[str], pictures: Classes, train: bool) -> None:
    unknown = [name for name in pictures if name not in names]
    if unknown:
        raise InputError(
            f"data.root={root} has pictures of {len(unknown)} classes that it has no training "
            f"pictures of, such as {printable(unknown[0])}: move or remove them."
        )
    if train and len(names) < 2:
        raise InputError(
            f"data.root={root} has one class, {printable(names[0])}: a classifier needs at "
            f"least two classes; make a folder for each."
        )


def _in_order(names: Sequence[str], pictures: Classes) -> tuple[list[PictureFile], torch.Tensor]:
    """Return all pictures with their labels, in the order of the file names.

    Numbers count as numbers, so a data set that was exported as numbered files keeps its order.
    """
    numbered = [
        (file, label) for label, name in enumerate(names) for file in pictures.get(name, [])
    ]
    numbered.sort(key=lambda entry: _natural(entry[0].path))
    return [file for file, _ in numbered], torch.tensor([label for _, label in numbered])


def _natural(path: str) -> tuple[list[str | int], str]:
    parts = NUMBER.split(path.rpartition("/")[2])  # every second part is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path


def _report_broken(root: str, stored: Stored, count: int, broken: Broken) -> None:
    problems = [f"{printable(path)} ({why})" for path, why in stored.problems.items()]
    if not problems:
        return
    for problem in problems:
        logger.info("broken: %s", problem)
    if broken is Broken.skip:
        logger.info("data.broken=skip: left out %d of %d pictures", len(problems), count)
        return
    more = len(problems) - BROKEN_SHOWN
    raise InputError(
        f"{len(problems)} of {count} pictures in data.root={root} cannot be used: "
        f"{'; '.join(problems[:BROKEN_SHOWN])}{f'; and {more} more' if more > 0 else ''}; repair "
        f"or remove them, or set data.broken=skip."
    )


def _cut(root: str, labels: torch.Tensor, train: bool, options: Mapping[str, Any]) -> torch.Tensor:
    """Return the ascending places of one part of a single tree."""
    size = options["test_size"]
    count = len(labels) if size is None else number_of(size, len(labels))
    if not 0 < count < len(labels) + (size is None and not train):
        raise InputError(
            f"data.test_size={size} makes {count} of the {len(labels)} pictures in data.root="
            f"{root} the test set: leave some for each part."
        )
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[stratified_choice(labels, count, keyed_seed(options["seed"], "test split"))] = True
    return (is_test != train).nonzero().flatten()
