"""Random changes to a batch of training images, on their own device.

Every image has its own random numbers, so a global batch is changed in the same way however many
processes share it.
"""

import math

import torch
import torch.nn.functional as F

from dist_mnist.config.schema import AugmentationConfig

NUMBERS_PER_IMAGE = 6  # down, right, turn, size, slant, thickness


def augment(
    images: torch.Tensor, config: AugmentationConfig, numbers: torch.Tensor
) -> torch.Tensor:
    """Change each image of a batch at random, by as much as the config allows.

    Args:
        images: uint8 of shape (B, C, H, W).
        config: How far to change them; zeros leave the images as they are.
        numbers: float32 of shape (NUMBERS_PER_IMAGE, B), uniform from 0 to below 1.

    Returns:
        uint8 of the same shape.
    """
    down, right, turn, size, slant, thickness = numbers
    if config.rotation_degrees or config.scale or config.slant_degrees:
        images = rotate_and_scale(
            images,
            (2 * turn - 1) * config.rotation_degrees,
            1 + (2 * size - 1) * config.scale,
            (2 * slant - 1) * config.slant_degrees,
        )
    if config.stroke_width:
        images = change_stroke_width(images, (2 * thickness - 1) * config.stroke_width)
    if config.shift_pixels:
        choices = 2 * config.shift_pixels + 1
        images = shift(
            images, config.shift_pixels, (down * choices).long(), (right * choices).long()
        )
    return images


def shift(images: torch.Tensor, most: int, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Move each image by whole pixels; zeros fill the gaps.

    Args:
        images: uint8 of shape (B, C, H, W), B at least 1.
        most: The largest move in each direction, in pixels.
        down: int64 of shape (B,), from 0 for `most` pixels down to 2 * most for as many up.
        right: The same along the other axis.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images.contiguous(), (most, most, most, most))
    if images.device.type != "cpu":
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count, device=images.device), :, down, right]
    # A move is only an offset in memory, so each image is one copy of one contiguous stretch, which
    # on a CPU is several times faster than looking up its pixels.
    image, channel, row, _ = padded.stride()
    starts = torch.arange(0, count * image, image) + down * row + right
    stretch = image - 2 * most * row - 2 * most
    moved = padded.flatten().unfold(0, stretch, 1).index_select(0, starts)
    return moved.as_strided((count, channels, height, width), (stretch, channel, row, 1))


def rotate_and_scale(
    images: torch.Tensor, degrees: torch.Tensor, scale: torch.Tensor, slant: torch.Tensor
) -> torch.Tensor:
    """Slant each image, rotate it about its center and scale it, with bilinear interpolation.

    Args:
        images: uint8 of shape (B, C, H, W).
        degrees: float32 of shape (B,).
        scale: float32 of shape (B,); 1.1 makes the picture a tenth larger.
        slant: float32 of shape (B,), in degrees; vertical lines lean to the right by so many.
    """
    angle, lean = degrees * (math.pi / 180), (slant * (math.pi / 180)).tan()
    # The grid says where each output pixel comes from: a larger picture needs smaller steps.
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    zero = torch.zeros_like(angle)
    across = (cosine, cosine * lean - sine, zero)
    down = (sine, sine * lean + cosine, zero)
    matrix = torch.stack((*across, *down), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(torch.uint8)


def change_stroke_width(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Make the bright strokes of each image thicker or thinner.

    Args:
        images: uint8 of shape (B, C, H, W).
        change: float32 of shape (B,), from -1 to 1: how far each pixel goes to the brightest of the
            nine around it, or to the darkest if this is negative.
    """
    pixels = images.float()
    thick = F.max_pool2d(pixels, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-pixels, 3, stride=1, padding=1)
    change = change.view(-1, 1, 1, 1)
    changed = (
        pixels + change.clamp(min=0) * (thick - pixels) + change.clamp(max=0) * (pixels - thin)
    )
    return changed.round_().to(torch.uint8)
