"""Several networks that answer as one."""

import pytest
import torch
from torch import nn

from dist_mnist.commands.evaluate import ensemble
from dist_mnist.config.errors import InputError
from dist_mnist.data.images import Normalization
from dist_mnist.models.classifier import Classifier

IMAGES = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)


def classifier(seed: int, classes: str = "abc") -> Classifier:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, len(classes))).eval()
    return Classifier(model, Normalization(0.1 * seed, 0.3), torch.float32, tuple(classes))


def test_probabilities_are_the_mean() -> None:
    members = [classifier(seed) for seed in (1, 2, 3)]
    together = ensemble(members)
    expected = torch.stack([member(IMAGES) for member in members]).mean(dim=0)
    torch.testing.assert_close(together(IMAGES), expected)
    torch.testing.assert_close(together.logits(IMAGES).exp(), expected)
    assert together.classes == ("a", "b", "c")


def test_one_network_answers_as_itself() -> None:
    alone = classifier(1)
    torch.testing.assert_close(ensemble([alone])(IMAGES), alone(IMAGES))


def test_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="the same classes"):
        ensemble([classifier(1), classifier(2, "xyz")])
