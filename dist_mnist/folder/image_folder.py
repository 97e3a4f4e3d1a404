"""A folder of pictures as a data set: torchvision's ImageFolder layout, decoded once."""

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dist_mnist.config.data_schema import Broken, Fit, number_of
from dist_mnist.config.errors import InputError
from dist_mnist.data.cache import remember
from dist_mnist.data.mapped import MappedImages, PixelSums, sum_pixels
from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.splits import stratified_choice
from dist_mnist.folder.files import (
    Classes,
    PictureFile,
    find_classes,
    find_pictures,
    find_test_tree,
    printable,
)
from dist_mnist.folder.store import Stored, store_pictures

logger = logging.getLogger(__name__)

BROKEN_SHOWN = 20
NUMBER = re.compile("([0-9]+)")


class ImageFolder(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training or the test pictures of a folder, decoded and mapped into memory.

    A class is named like its folder, and classes are sorted by name. A folder with a tree in
    `train/` and another one in `test/` (or `val/`) has these parts; otherwise it is one tree, and
    the same share of each class becomes the test set.

    Args:
        download: Has no effect.
        image_shape: Channels (1 or 3), height and width of all pictures.
        fit: The treatment of a picture of another aspect: pad, crop or stretch.
        broken: The treatment of unreadable pictures: refuse or skip.
        test_size: The size of the test set of one tree: a number of pictures, or a share below 1.
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
        folder, fit = Path(root), Fit(options["fit"])
        if not folder.is_dir():
            raise InputError(f"data.root={root} is not a folder: name the one with the pictures.")
        tested = find_test_tree(folder)
        part = "" if tested is None else "train" if train else tested
        pictures = find_pictures(folder, part)
        names = find_classes(folder, "train") if part == tested else [*pictures]
        _check_classes(root, names, pictures)
        files, labels = _in_order(names, pictures)
        stored = store_pictures(folder, part, files, image_shape, fit)
        _report_broken(root, stored, len(files), Broken(options["broken"]))
        rows, labels = stored.rows[stored.rows >= 0], labels[stored.rows >= 0]
        if tested is None:
            rows, labels = _cut(root, rows, labels, train, options)
        self.samples = MappedImages(stored.pixels, rows, labels)
        # The sums over all pixels are in a file, too, since they take a pass through the pictures.
        digest = hashlib.blake2b(rows.numpy().tobytes(), digest_size=8).hexdigest()
        sums = remember(
            stored.folder / f"sums-{digest}.json", lambda: sum_pixels(self.samples)._asdict()
        )
        self.samples.sums = PixelSums(**sums)
        self.classes = tuple(map(printable, names))


def _check_classes(root: str, names: Sequence[str], pictures: Classes) -> None:
    unknown = [name for name in pictures if name not in names]
    if unknown:
        raise InputError(
            f"data.root={root} has test pictures of {len(unknown)} classes that it has no training "
            f"pictures of, such as {printable(unknown[0])}: move or remove them."
        )
    if len(names) < 2:
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


def _cut(
    root: str, rows: torch.Tensor, labels: torch.Tensor, train: bool, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and labels of one part of a single tree."""
    size = options["test_size"]
    count = number_of(size, len(rows))
    if not 0 < count < len(rows):
        raise InputError(
            f"data.test_size={size} makes {count} of the {len(rows)} pictures in data.root={root} "
            f"the test set: leave some for each part."
        )
    is_test = torch.zeros(len(rows), dtype=torch.bool)
    is_test[stratified_choice(labels, count, keyed_seed(options["seed"], "test split"))] = True
    chosen = ~is_test if train else is_test
    return rows[chosen], labels[chosen]
