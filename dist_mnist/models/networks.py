"""The networks. Each maps images of shape (B, C, H, W) to logits of shape (B, classes)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn


class MLP(nn.Module):
    """Fully connected layers with ReLU in between; without a hidden layer, softmax regression.

    Args:
        image_shape: Channels, height and width.
        hidden_sizes: The width of each hidden layer.
        dropout: The fraction of hidden values that training sets to zero.
        log_probabilities: Whether to end in log-softmax, as networks for the NLL loss do.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        hidden_sizes: Sequence[int] = (64, 64, 64),
        dropout: float = 0.0,
        log_probabilities: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(image_shape)
        for hidden_size in hidden_sizes:
            layers += [nn.Linear(width, hidden_size), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden_size
        layers.append(nn.Linear(width, num_classes))
        if log_probabilities:
            layers.append(nn.LogSoftmax(dim=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits, or log-probabilities, (B, num_classes)."""
        return self.layers(images)  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """A plain convolutional network: no padding, max-pooling after every layer except the last.

    A layer with a stride above 1 already shrinks its output, so it is not pooled.

    Args:
        image_shape: Channels, height and width.
        channels: Output channels of each convolution.
        kernel_sizes: The width and height of each convolution's kernel.
        strides: The stride of each convolution; None for 1 everywhere.
        dropout: The fraction of features that training sets to zero before the linear layer.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64),
        kernel_sizes: Sequence[int] = (5, 3, 3),
        strides: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, height, side = image_shape
        if height != side:
            raise ValueError(f"images must be square, not {height} by {side}")
        strides = strides or [1] * len(channels)
        if not len(channels) == len(kernel_sizes) == len(strides):
            raise ValueError(
                f"channels={channels}, kernel_sizes={kernel_sizes} and strides={strides} "
                f"must have the same length"
            )
        for index, out in enumerate(channels):
            kernel, stride = kernel_sizes[index], strides[index]
            layers.append(nn.Conv2d(inputs, out, kernel, stride, bias=False))
            side = (side - kernel) // stride + 1
            if stride == 1 and index < len(channels) - 1:
                # Before batch norm, which then has only a quarter of the values to normalize.
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [nn.BatchNorm2d(out), nn.ReLU()]
            inputs = out
        if side < 1:
            raise ValueError(f"images of {height} pixels are too small for {len(channels)} layers")
        layers.append(nn.Flatten())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(inputs * side**2, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        return self.layers(images)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        return torch.relu(self.residual(features) + self.shortcut(features))


class ResNet(nn.Module):
    """A residual network for small images: stages of blocks, each at half the resolution.

    Args:
        image_shape: Channels, height and width.
        channels: Output channels of each stage.
        blocks_per_stage: Residual blocks in each stage.
        dropout: The fraction of features that training sets to zero before the linear layer.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (64, 128, 256),
        blocks_per_stage: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = channels[0]
        stem = [nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        blocks: list[nn.Module] = [*stem, nn.ReLU()]
        for stage, out in enumerate(channels):
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(width, out, stride))
                width = out
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        pooled = self.features(images).mean(dim=(2, 3))
        return self.head(self.dropout(pooled))  # type: ignore[no-any-return]
