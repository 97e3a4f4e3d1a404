import pytest
import torch
import torch.nn.functional as F

from dist_mnist.models.losses import NegativeLogLikelihood, OneHotMeanSquaredError
from tests.support.configs import make_config

OUTPUTS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 9, 9, 5])


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
    from dist_mnist.models.build import build_loss

    loss = build_loss(make_config(f"loss={name}"))
    assert loss(OUTPUTS, LABELS).shape == (6,)
