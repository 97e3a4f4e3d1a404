"""Losses in addition to torch's own. Each returns one value per sample, of shape (B,).

The loop sums the values and divides by the size of the global batch, so the gradient is the exact
mean, whatever the shares of the processes.
"""

import torch
import torch.nn.functional as F
from torch import nn


class NegativeLogLikelihood(nn.Module):
    """The negative log-probability of each label.

    Accepts log-probabilities or logits: log-softmax does not change log-probabilities.
    """

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map float outputs (B, classes) and int64 labels (B,) to losses (B,)."""
        return F.nll_loss(F.log_softmax(outputs, dim=1), labels, reduction="none")


class OneHotMeanSquaredError(nn.Module):
    """The mean over the classes of (output - one-hot target) squared."""

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map float outputs (B, classes) and int64 labels (B,) to losses (B,)."""
        targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        return F.mse_loss(outputs, targets, reduction="none").mean(dim=1)
