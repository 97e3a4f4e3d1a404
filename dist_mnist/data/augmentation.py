"""Random changes to a batch of training images, on their own device.

Every image has its own random numbers, so a global batch is changed in the same way at any world
size.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dist_mnist.config.schema import AugmentationConfig
from dist_mnist.data.images import ImageTensors


class Changes(NamedTuple):
    """The random changes of each image in a batch.

    Attributes:
        moves: int64 of shape (2, B): down and right, from 0 for the largest move one way to
            2 * shift_pixels for the largest the other way; (2, 0) if none is moved.
        warps: float32 of shape (4, B), from 0 to below 1: angle, size, slant and stroke width;
            (4, 0) if only the position changes.
    """

    moves: torch.Tensor
    warps: torch.Tensor

    def at(self, places: slice | torch.Tensor) -> "Changes":
        """Return the changes of some of the images, by their places in the batch."""
        return Changes(*(drawn[:, places] if drawn.numel() else drawn for drawn in self))


def draw_changes(config: AugmentationConfig, count: int, device: torch.device) -> Changes:
    """Draw the changes of `count` images from the device's default generator."""
    moves, warps = torch.empty(2, 0, dtype=torch.int64), torch.empty(4, 0)
    if config.shift_pixels:
        moves = torch.randint(2 * config.shift_pixels + 1, (2, count), device=device)
    if config.warps:
        warps = torch.rand(4, count, device=device)
    return Changes(moves, warps)


def augment(
    samples: ImageTensors, indices: torch.Tensor, config: AugmentationConfig, changes: Changes
) -> torch.Tensor:
    """Fetch images and change each of them at random, by as much as the config allows.

    Args:
        samples: With a margin of `config.margin`.
        indices: int64 of shape (B,), B at least 1.
        config: The largest changes; zeros leave the images unchanged.
        changes: From `draw_changes`, for these images.

    Returns:
        uint8 of shape (B, C, H, W).
    """
    if config.changes_nothing:
        return samples.images.index_select(0, indices)
    most, (down, right) = config.shift_pixels, changes.moves
    if not config.warps:
        return window(samples.padded, indices, config.margin, down, right)
    images = samples.images.index_select(0, indices)
    turn, size, slant, thickness = 2 * changes.warps - 1
    if config.rotation_degrees or config.scale or config.slant_degrees:
        degrees, sizes = turn * config.rotation_degrees, 1 + size * config.scale
        images = rotate_and_scale(images, degrees, sizes, slant * config.slant_degrees)
    if config.stroke_width:
        images = change_stroke_width(images, thickness * config.stroke_width)
    if most:
        places = torch.arange(len(images), device=images.device)
        images = window(F.pad(images.contiguous(), [most] * 4), places, most, down, right)
    return images


def window(
    padded: torch.Tensor,
    indices: torch.Tensor,
    margin: int,
    down: torch.Tensor,
    right: torch.Tensor,
) -> torch.Tensor:
    """Fetch images, each moved by whole pixels; its black margin fills the gaps.

    Args:
        padded: uint8 of shape (N, C, H + 2 * margin, W + 2 * margin), contiguous.
        indices: int64 of shape (B,), B at least 1.
        margin: The largest move in each direction, in pixels.
        down: int64 of shape (B,), from 0 for `margin` pixels down to 2 * margin for as many up.
        right: The same along the other axis.

    Returns:
        uint8 of shape (B, C, H, W).
    """
    height, width = (size - 2 * margin for size in padded.shape[2:])
    if padded.device.type != "cpu":
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[indices, :, down, right]
    # A move is only an offset in memory, so an image is a copy of one contiguous stretch; on a CPU
    # that is several times faster than indexing its pixels.
    image, channel, row, _ = padded.stride()
    starts = indices * image + down * row + right
    stretch = image - 2 * margin * row - 2 * margin
    moved = padded.flatten().unfold(0, stretch, 1).index_select(0, starts)
    shape = (len(indices), padded.shape[1], height, width)
    return moved.as_strided(shape, (stretch, channel, row, 1))


def rotate_and_scale(
    images: torch.Tensor, degrees: torch.Tensor, scale: torch.Tensor, slant: torch.Tensor
) -> torch.Tensor:
    """Slant each image, rotate it about its center and scale it, with bilinear interpolation.

    Args:
        images: uint8 of shape (B, C, H, W).
        degrees: float32 of shape (B,).
        scale: float32 of shape (B,); 1.1 makes the picture a tenth larger.
        slant: float32 of shape (B,), in degrees; vertical lines lean to the right by this angle.
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
