"""Photos of written numbers: pen on paper, in the light of a room, through a cheap camera."""

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from tests.support.strokes import draw, picture

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """The scene in front of a camera, and the camera.

    Attributes:
        paper: Its color.
        ink: Its color.
        light: How much darker the dark side is, from 0 to 1.
        shadow: How much of the light somebody's shadow takes, from 0 to 1.
        blur: The deviation of the lens in pixels.
        noise: The deviation of the sensor, of 255.
        quality: Of the JPEG file.
    """

    paper: Color = (225, 220, 205)
    ink: Color = (40, 45, 80)
    light: float = 0.35
    shadow: float = 0.0
    blur: float = 1.0
    noise: float = 6.0
    quality: int = 30


SCENES = {
    "paper": Scene(),
    "scan": Scene(light=0, blur=0.5, noise=0, quality=95),
    "worst jpeg": Scene((255, 255, 255), (0, 0, 0), light=0, noise=0, quality=10),
    "window": Scene(light=0.7),
    "night": Scene(noise=20),
    "shadow": Scene(light=0.2, shadow=0.4),
    "chalk": Scene((50, 80, 60), (230, 230, 220)),
    "red on blue": Scene((120, 150, 220), (210, 60, 70)),
    "equally bright": Scene((200, 120, 120), (60, 160, 190), light=0.2),
    "pencil": Scene((240, 240, 235), (150, 150, 150), light=0.2, noise=4),
    "unfocused": Scene(blur=4),
}


def write_number(number: str, seed: int, size: tuple[int, int] = (900, 400)) -> NDArray[np.float64]:
    """Return the ink of digits side by side, each by a different hand: float64 (H, W), 0 to 1.

    `size` is the width and height in pixels.
    """
    width, height = size
    cell = int(min(0.8 * width / len(number), 0.85 * height))
    paper = Image.new("L", size)
    top, left = (height - cell) // 2, (width - cell * len(number)) // 2
    for place, digit in enumerate(number):
        drawing = draw(10 * (seed * 100 + place) + int(digit))
        ink = ImageOps.invert(picture(drawing))
        hand = random.Random(f"{number} {seed} {place}")
        side = round(cell * hand.uniform(0.4, 0.75))
        ink = ImageOps.contain(ink.crop(ink.getbbox()), (side, side))
        x, y = (cell * (0.5 + hand.uniform(-0.08, 0.08)) - extent / 2 for extent in ink.size)
        paper.paste(ink, (left + place * cell + round(x), top + round(y)))
    return np.asarray(paper) / 255


def take_photo(ink: NDArray[np.float64], scene: Scene, seed: int) -> bytes:
    """Return a JPEG file of writing on paper."""
    chance = np.random.default_rng(seed)
    height, width = ink.shape
    y, x = np.mgrid[:height, :width]
    x, y = x / width - 0.5, y / height - 0.5
    angle = chance.uniform(0, 2 * math.pi)
    light = 1 - scene.light * (0.5 + x * math.cos(angle) + y * math.sin(angle))
    light -= 0.3 * scene.light * (x**2 + y**2)
    edge = x * math.cos(angle + 1) + y * math.sin(angle + 1) - chance.uniform(-0.2, 0.2)
    light *= 1 - scene.shadow / (1 + np.exp(-60 * edge))
    colors = np.array(scene.paper) * (1 - ink[..., None]) + np.array(scene.ink) * ink[..., None]
    grain = chance.normal(0, 3, (height // 4, width // 4)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize((width, height)))
    seen = _to_image(colors * light[..., None] + grain[..., None])
    seen = seen.filter(ImageFilter.GaussianBlur(scene.blur))
    noisy = np.asarray(seen) + chance.normal(0, scene.noise, (height, width, 3))
    content = io.BytesIO()
    _to_image(noisy).save(content, "JPEG", quality=scene.quality)
    return content.getvalue()


def _to_image(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
