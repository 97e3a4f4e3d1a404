"""Random changes to a batch of training images, on the device the images are on.

They draw from the device's default generator, which every step seeds for itself.
"""

import math

import torch
import torch.nn.functional as F

from dist_mnist.config import AugmentationConfig


def augment(images: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """Change each image of a batch at random, by as much as the config allows.

    Args:
        images: uint8 of shape (B, C, H, W).
        config: How far; with zeros the images come back as they are.

    Returns:
        uint8 of the same shape.
    """
    if config.rotation_degrees or config.scale:
        images = random_rotation_and_scale(images, config.rotation_degrees, config.scale)
    if config.shift_pixels:
        images = random_shift(images, config.shift_pixels)
    return images


def random_shift(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Move each image by up to `pixels` whole pixels along both axes; zeros come in from outside.

    Args:
        images: uint8 of shape (B, C, H, W).
        pixels: The farthest move in each direction.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels, pixels, pixels, pixels))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(0, 2 * pixels + 1, (2, count), device=images.device)
    return windows[torch.arange(count, device=images.device), :, down, right]


def random_rotation_and_scale(images: torch.Tensor, degrees: float, scale: float) -> torch.Tensor:
    """Turn each image about its centre and scale it, with bilinear interpolation.

    Args:
        images: uint8 of shape (B, C, H, W).
        degrees: The farthest turn either way.
        scale: The largest change of size; 0.1 is from 0.9 to 1.1 times.
    """
    turn, size = torch.rand((2, len(images)), device=images.device).mul(2).sub(1)
    angle = turn * math.radians(degrees)
    # The grid says where each output pixel comes from: a larger image comes from a smaller step.
    cosine, sine = angle.cos() / (1 + size * scale), angle.sin() / (1 + size * scale)
    zero = torch.zeros_like(angle)
    matrix = torch.stack((cosine, -sine, zero, sine, cosine, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(torch.uint8)
