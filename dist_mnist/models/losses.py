"""Losses beside torch's own. Each gives one value per sample, shape (B,), and sums nothing.

The loop adds the values up and divides by the global batch, so the gradient is the exact mean
whatever the shares of the processes.
"""

import torch
import torch.nn.functional as F
from torch import nn


class NegativeLogLikelihood(nn.Module):
    """The negative log-probability of each label.

    Takes log-probabilities or logits: log-softmax leaves log-probabilities as they are.
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
