"""Digits that only their color tells from their ground: made from the MNIST that ships."""

import torch

from dist_mnist.data.mnist import MNIST

# Red goes up by as much as green goes down for the same luminance: 0.299 R + 0.587 G.
CONTRAST = torch.tensor([60.0, -60 * 0.299 / 0.587, 0.0])
TEXTURE, PATCH = 60, 4  # brightness, and pixels


def colored_digits(root: str, train: bool, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first digits, reddish on greenish ground or the other way round, and their labels.

    The brightness of both varies in patches, by far more than between a digit and its ground.

    Returns:
        uint8 of shape (count, 28, 28, 3), and int64 of shape (count,).
    """
    digits = MNIST(root, train)
    generator = torch.Generator().manual_seed(int(train))
    ink = digits.data[:count, :, :, None] / 255 * 2 - 1
    sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2 - 1
    patches = torch.rand(count, 28 // PATCH, 28 // PATCH, generator=generator) - 0.5
    texture = patches.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[..., None] * TEXTURE
    colored = 128 + texture + sign * ink * CONTRAST
    return colored.round().clamp(0, 255).to(torch.uint8), digits.targets[:count]
