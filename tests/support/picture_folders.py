"""Folders of pictures in real files, and the options that a run with them has."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from tests.support.datasets import make_images
from tests.support.runs import assert_equal, result

FOLDER_DATA = (
    "data=image_folder",
    "data.image_shape=[1,28,28]",
    "trainer.global_batch_size=20",
    "trainer.device=cpu",
)


def write_digits(folder: Path, labels: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Write images that a network can learn as numbered PNG files, a folder a class; return them.

    Args:
        folder: Gets the classes' folders, whose names are the labels.
        labels: The label of each image.
        seed: Of the noise in the images.
    """
    images = make_images(torch.tensor(labels), 10, seed)
    write_images(folder, images, labels)
    return images


def write_images(folder: Path, images: torch.Tensor, labels: Sequence[int]) -> None:
    """Write images, uint8 of shape (N, H, W), as numbered PNG files, a folder a class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)


def write_flat(
    path: Path, color: object, mode: str = "RGB", size: tuple[int, int] = (8, 6)
) -> None:
    """Write a picture of one color; the ending of the name tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]


def assert_same_training(run_of_arrays: Path, run_of_pictures: Path) -> None:
    """Compare the runs of a data set and of the same one as pictures, bit for bit."""
    (a, lines_a), (b, lines_b) = result(run_of_arrays), result(run_of_pictures)
    for key in ("model", "optimizer", "data", "normalization"):
        assert_equal(a[key], b[key])
    for line in (lines_a[-1], lines_b[-1]):
        del line["classes"]  # the names of folders
    assert lines_a == lines_b
