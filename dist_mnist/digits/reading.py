"""Reads pictures with a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from PIL import Image, ImageOps

from dist_mnist.config.errors import InputError
from dist_mnist.digits.find import Digit, find_digits
from dist_mnist.models.classifier import Classifier

SIDE = 28


@dataclass(frozen=True)
class Reading:
    """The digits of a picture as a network reads them."""

    label: str | None  # the class names of all digits, from left to right; None without a digit
    confidence: float | None  # the probability that all of them are right; None without a digit
    digits: tuple[Digit, ...]  # the network's input
    labels: tuple[str, ...]  # the class name of each digit
    confidences: tuple[float, ...]  # the probability of each label


def read(classifier: Classifier, picture: Image.Image, plain: bool = False) -> Reading:
    """Read the digits in a picture.

    Args:
        plain: Skip the search: the whole picture is one image.
    """
    digits = find_images(classifier, picture, plain)
    if not digits:
        return Reading(None, None, (), (), ())
    best = classifier(stack(digits)).max(dim=1)
    labels = tuple(classifier.classes[index] for index in best.indices.tolist())
    confidences = tuple(best.values.tolist())
    between = "" if all(len(label) == 1 for label in labels) else " "
    return Reading(between.join(labels), prod(confidences), tuple(digits), labels, confidences)


def find_images(classifier: Classifier, picture: Image.Image, plain: bool = False) -> list[Digit]:
    """Return a network's input: each digit in a picture.

    A network that was trained on a folder of pictures gets the whole picture, resized as those
    were; then the image is uint8 of shape (C, H, W).
    """
    if classifier.fit is not None:
        return [Digit(classifier.fitted(picture), (0, 0, *picture.size))]
    return [_whole(picture)] if plain else find_digits(picture)


def stack(digits: Sequence[Digit]) -> torch.Tensor:
    """Return the images of at least one digit as one tensor, uint8 (N, C, H, W)."""
    images = torch.stack([digit.image for digit in digits])
    return images if images.ndim == 4 else images.unsqueeze(1)


def shown(digit: Digit) -> Image.Image:
    """Return the image of a digit as a picture."""
    image = digit.image if digit.image.ndim == 2 else digit.image.movedim(0, -1).squeeze(-1)
    return Image.fromarray(image.contiguous().numpy())


def _whole(picture: Image.Image) -> Digit:
    """Return the whole picture as one image, light on dark as in MNIST and its family."""
    gray = picture.convert("L")
    edges = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)).copy()
    edges[1:-1, 1:-1] = 0
    if edges.sum() > 127 * 4 * (SIDE - 1):
        gray = ImageOps.invert(gray)
    small = gray.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Digit(torch.from_numpy(np.array(small)), (0, 0, *picture.size))


def check_reads_pictures(classifier: Classifier) -> None:
    """Check that a network accepts the images that pictures become.

    Raises:
        InputError: It does not.
    """
    if classifier.fit is not None:
        return
    try:
        classifier(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8))
    except Exception as error:
        raise InputError(
            f"the checkpoint's network cannot read digits: it does not take images of {SIDE} x "
            f"{SIDE} gray pixels."
        ) from error
