"""The network that answers, and what it is told to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import read_picture
from dist_mnist.digits.find import Digit
from dist_mnist.digits.reading import check_reads_pictures, find_images
from dist_mnist.models.classifier import Classifier, find_checkpoint, load_classifier
from dist_mnist.serve.answers import SURE, Model

MOST_DIGITS = 100  # in one picture


@dataclass(frozen=True)
class Network:
    """A classifier, and where it is from.

    Attributes:
        classifier: On the CPU.
        checkpoint: Its file, or None for the one in the package.
    """

    classifier: Classifier
    checkpoint: Path | None

    def describe(self) -> Model:
        """Return what the API says about it."""
        model = self.classifier.model
        return Model(
            network=type(model).__name__,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            classes=[*self.classifier.classes],
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            sure_from=SURE,
        )


def load_network(checkpoint: str | None, trusted_modules: Sequence[str]) -> Network:
    """Load the network that a checkpoint holds, or the one in the package.

    Args:
        checkpoint: As `find_checkpoint` takes it.
        trusted_modules: Modules of your own that the checkpoint's network may come from.

    Raises:
        InputError: It cannot be used, or does not read images of 28 x 28 gray pixels.
    """
    path = find_checkpoint(checkpoint)
    classifier = load_classifier(path, trusted_modules=trusted_modules)
    torch.set_num_threads(1)  # for a few small images, more threads cost more than they bring
    check_reads_pictures(classifier)
    return Network(classifier, None if checkpoint is None else path)


def find(network: Network, content: bytes) -> list[Digit]:
    """Return what the network sees of an uploaded picture: at least one digit, in reading order.

    Raises:
        InputError: It is no picture, has no digit, or more than `MOST_DIGITS`.
    """
    digits = find_images(network.classifier, read_picture(content))
    if not digits:
        raise InputError("there is no digit in the picture.")
    if len(digits) > MOST_DIGITS:
        raise InputError(
            f"there are {len(digits)} digits in the picture, and at most {MOST_DIGITS} are read."
        )
    return digits
