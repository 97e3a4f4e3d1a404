"""Several networks that answer as one."""

from collections.abc import Sequence

import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.data.images import Normalization
from dist_mnist.models.classifier import Classifier


class MeanOfNetworks(nn.Module):
    """The logarithm of the mean of what several networks take for the probabilities.

    Args:
        classifiers: Each normalizes the images in its own way.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(classifier.model for classifier in classifiers)
        self.normalizations = [classifier.normalization for classifier in classifiers]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) from 0 to 1 to log-probabilities (B, classes)."""
        answers = [
            network((images - own.mean) / own.std).float().log_softmax(dim=1)
            for network, own in zip(self.networks, self.normalizations, strict=True)
        ]
        return torch.stack(answers).logsumexp(dim=0) - torch.tensor(len(answers)).log()


def ensemble(classifiers: Sequence[Classifier]) -> Classifier:
    """Return a classifier whose probabilities are the mean of those of others.

    Args:
        classifiers: At least one, with the same classes, on the same device.

    Raises:
        InputError: They have not the same classes.
    """
    first = classifiers[0]
    if any(classifier.classes != first.classes for classifier in classifiers):
        raise InputError("ensemble=true needs checkpoints with the same classes; these differ.")
    return Classifier(
        model=MeanOfNetworks(classifiers).eval(),
        normalization=Normalization(0.0, 1.0),
        dtype=first.dtype,
        classes=first.classes,
    )
