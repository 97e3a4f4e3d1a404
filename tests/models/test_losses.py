import pytest
import torch
import torch.nn.functional as F

from dist_mnist.config.errors import InputError
from dist_mnist.models.build import build_loss
from dist_mnist.models.losses import (
    CrossEntropy,
    NegativeLogLikelihood,
    OneHotMeanSquaredError,
)
from tests.support.configs import make_config

OUTPUTS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 9, 9, 5])


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 1.0])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    ours = CrossEntropy(10, smoothing)
    theirs = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
    found = []
    for loss in (ours, theirs):
        outputs = OUTPUTS.clone().requires_grad_()
        values = loss(outputs, LABELS)
        values.sum().backward()
        found.append((values.detach(), outputs.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5])
def test_odd_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        CrossEntropy(10, smoothing)


def test_loss_of_the_batch_is_refused() -> None:
    config = make_config("loss._target_=torch.nn.CrossEntropyLoss", "~loss.num_classes")
    with pytest.raises(InputError, match=r"set loss\.reduction=none"):
        build_loss(config)


def test_nll_takes_logits_too() -> None:
    loss = NegativeLogLikelihood()
    expected = F.cross_entropy(OUTPUTS, LABELS, reduction="none")
    torch.testing.assert_close(loss(OUTPUTS, LABELS), expected)
    torch.testing.assert_close(loss(F.log_softmax(OUTPUTS, 1), LABELS), expected)


def test_mse_takes_one_hot_targets() -> None:
    targets = torch.eye(10)[LABELS]
    values = OneHotMeanSquaredError()(OUTPUTS, LABELS)
    assert values.shape == (6,)
    torch.testing.assert_close(values.mean(), F.mse_loss(OUTPUTS, targets))
    assert OneHotMeanSquaredError()(targets, LABELS).sum() == 0


@pytest.mark.parametrize("name", ["nll", "cross_entropy", "mse"])
def test_every_loss_gives_one_value_per_sample(name: str) -> None:
    loss = build_loss(make_config(f"loss={name}"))
    assert loss(OUTPUTS, LABELS).shape == (6,)
