"""What a network reads in a picture."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from PIL import Image, ImageOps

from dist_mnist.config.errors import InputError
from dist_mnist.data.digits import Digit, find_digits
from dist_mnist.models.classifier import Classifier

SIDE = 28


@dataclass(frozen=True)
class Reading:
    """What a network reads in a picture.

    Attributes:
        label: The names of the classes of all digits, from left to right; None if there is none.
        confidence: The probability that all of them are right; None if there is none.
        digits: What the network saw.
        labels: The name of each digit's class.
        confidences: The probability of each.
    """

    label: str | None
    confidence: float | None
    digits: tuple[Digit, ...]
    labels: tuple[str, ...]
    confidences: tuple[float, ...]


def read(classifier: Classifier, picture: Image.Image, plain: bool = False) -> Reading:
    """Read the digits in a picture.

    Args:
        classifier: Takes images of 28 x 28 gray pixels; see `check_reads_digits`.
        picture: In RGB and upright, as `read_picture` returns it.
        plain: Look for no digits: the whole picture is one image, made small.
    """
    digits = [_whole(picture)] if plain else find_digits(picture)
    if not digits:
        return Reading(None, None, (), (), ())
    images = torch.stack([digit.image for digit in digits]).unsqueeze(1)
    best = classifier(images).max(dim=1)
    labels = tuple(classifier.classes[index] for index in best.indices.tolist())
    confidences = tuple(best.values.tolist())
    between = "" if all(len(label) == 1 for label in labels) else " "
    return Reading(between.join(labels), prod(confidences), tuple(digits), labels, confidences)


def _whole(picture: Image.Image) -> Digit:
    """Return the whole picture as one image, light on dark as in MNIST and its family."""
    gray = picture.convert("L")
    edges = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)).copy()
    edges[1:-1, 1:-1] = 0
    if edges.sum() > 127 * 4 * (SIDE - 1):
        gray = ImageOps.invert(gray)
    small = gray.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Digit(torch.from_numpy(np.array(small)), (0, 0, *picture.size))


def check_reads_digits(classifier: Classifier) -> None:
    """Try whether a network takes the images that digits are made into.

    Raises:
        InputError: It does not.
    """
    try:
        classifier(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8))
    except Exception as error:
        raise InputError(
            f"the checkpoint's network cannot read digits: it does not take images of {SIDE} x "
            f"{SIDE} gray pixels."
        ) from error
