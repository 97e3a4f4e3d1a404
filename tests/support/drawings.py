"""Digits as people draw them with a mouse or a finger: strokes of a round pen, never two alike."""

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]
Stroke = Sequence[Point]

# The ways to draw each digit: strokes through points, x from the left, y from the top, height 1.
STYLES: dict[int, tuple[tuple[Stroke, ...], ...]] = {
    0: (
        (((0.35, 0), (0.1, 0.2), (0, 0.5), (0.1, 0.85), (0.33, 1), (0.56, 0.85), (0.65, 0.5),
          (0.56, 0.18), (0.35, 0)),),
        (((0.45, 0.03), (0.2, 0.02), (0.02, 0.3), (0.02, 0.65), (0.2, 0.97), (0.5, 0.97),
          (0.7, 0.65), (0.68, 0.25), (0.42, 0)),),
        (((0.5, 0.0), (0.14, 0.1), (0, 0.45), (0.12, 0.9), (0.45, 1), (0.78, 0.75), (0.82, 0.35),
          (0.6, 0.05), (0.4, 0.04)),),
    ),
    1: (
        (((0, 0), (0, 0.5), (0, 1)),),
        (((0.15, 0), (0.08, 0.5), (0, 1)),),
        (((0, 0.25), (0.16, 0.1), (0.25, 0)), ((0.25, 0), (0.25, 0.5), (0.25, 1))),
        (((0, 0.18), (0.1, 0.1), (0.2, 0)), ((0.2, 0), (0.2, 0.5), (0.2, 1)),
         ((0.02, 1), (0.2, 1), (0.4, 1))),
    ),
    2: (
        (((0.02, 0.25), (0.12, 0.05), (0.35, 0), (0.56, 0.12), (0.56, 0.35), (0.35, 0.62), (0, 1)),
         ((0, 1), (0.3, 1), (0.65, 0.98))),
        (((0, 0.2), (0.2, 0.01), (0.5, 0.06), (0.55, 0.3), (0.35, 0.65), (0.1, 0.93), (0.05, 0.8),
          (0.2, 0.78), (0.4, 0.93), (0.68, 0.95)),),
        (((0.05, 0.12), (0.35, 0), (0.6, 0.2), (0.48, 0.5), (0.22, 0.78), (0.02, 0.98)),
         ((0.02, 0.98), (0.35, 0.96), (0.7, 1))),
    ),
    3: (
        (((0.03, 0.12), (0.25, 0), (0.5, 0.1), (0.52, 0.32), (0.22, 0.46)),
         ((0.22, 0.46), (0.52, 0.55), (0.6, 0.78), (0.35, 1), (0, 0.9))),
        (((0, 0.02), (0.3, 0.02), (0.55, 0.02)), ((0.55, 0.02), (0.4, 0.22), (0.22, 0.42)),
         ((0.22, 0.42), (0.5, 0.48), (0.58, 0.75), (0.35, 0.98), (0, 0.92))),
        (((0.08, 0.08), (0.35, 0), (0.52, 0.2), (0.35, 0.42), (0.25, 0.46), (0.45, 0.5),
          (0.6, 0.7), (0.42, 0.97), (0.05, 0.94)),),
    ),
    4: (
        (((0.35, 0), (0.18, 0.3), (0, 0.62)), ((0, 0.62), (0.3, 0.62), (0.66, 0.6)),
         ((0.48, 0.3), (0.48, 0.6), (0.46, 1))),
        (((0.06, 0), (0.03, 0.25), (0.02, 0.5)), ((0.02, 0.5), (0.25, 0.53), (0.6, 0.48)),
         ((0.55, 0), (0.52, 0.5), (0.5, 1))),
        (((0.46, 0), (0.2, 0.35), (0, 0.66)), ((0, 0.66), (0.35, 0.66), (0.7, 0.66)),
         ((0.46, 0), (0.46, 0.5), (0.46, 1))),
    ),
    5: (
        (((0.1, 0.02), (0.06, 0.25), (0.04, 0.45)),
         ((0.04, 0.45), (0.3, 0.36), (0.55, 0.5), (0.57, 0.78), (0.3, 1), (0, 0.92)),
         ((0.1, 0.02), (0.35, 0.02), (0.6, 0))),
        (((0.58, 0), (0.3, 0.02), (0.08, 0.03)), ((0.08, 0.03), (0.06, 0.25), (0.02, 0.44)),
         ((0.02, 0.44), (0.25, 0.38), (0.52, 0.48), (0.55, 0.75), (0.35, 0.98), (0.0, 0.96))),
        (((0.15, 0.05), (0.12, 0.2), (0.08, 0.42)),
         ((0.08, 0.42), (0.35, 0.4), (0.55, 0.6), (0.48, 0.88), (0.22, 1), (0, 0.88)),
         ((0.2, 0.0), (0.4, 0.02), (0.65, 0))),
    ),
    6: (
        (((0.45, 0), (0.2, 0.22), (0.02, 0.6), (0.1, 0.92), (0.33, 1), (0.55, 0.85), (0.52, 0.62),
          (0.3, 0.52), (0.05, 0.68)),),
        (((0.3, 0), (0.08, 0.35), (0.03, 0.75), (0.25, 1), (0.5, 0.92), (0.55, 0.7), (0.35, 0.56),
          (0.1, 0.68)),),
        (((0.6, 0.02), (0.3, 0.08), (0.05, 0.45), (0.05, 0.85), (0.3, 1), (0.56, 0.82),
          (0.45, 0.58), (0.2, 0.58), (0.06, 0.75)),),
    ),
    7: (
        (((0, 0.03), (0.3, 0.02), (0.6, 0)), ((0.6, 0), (0.4, 0.45), (0.25, 1))),
        (((0, 0.02), (0.3, 0), (0.62, 0.03)), ((0.62, 0.03), (0.42, 0.5), (0.2, 1)),
         ((0.18, 0.5), (0.38, 0.49), (0.62, 0.48))),
        (((0, 0.15), (0.02, 0.04), (0.05, 0.02)), ((0.05, 0.02), (0.3, 0.03), (0.58, 0.02)),
         ((0.58, 0.02), (0.4, 0.4), (0.32, 1))),
    ),
    8: (
        (((0.5, 0.1), (0.28, 0), (0.08, 0.12), (0.12, 0.34), (0.32, 0.48), (0.54, 0.64),
          (0.55, 0.88), (0.3, 1), (0.05, 0.88), (0.06, 0.66), (0.3, 0.48), (0.48, 0.32),
          (0.5, 0.1)),),
        (((0.3, 0.46), (0.08, 0.3), (0.1, 0.08), (0.3, 0), (0.5, 0.1), (0.5, 0.32), (0.3, 0.46)),
         ((0.3, 0.46), (0.04, 0.62), (0.04, 0.9), (0.3, 1), (0.56, 0.88), (0.55, 0.62),
          (0.3, 0.46))),
        (((0.55, 0.15), (0.35, 0), (0.12, 0.08), (0.1, 0.28), (0.35, 0.46), (0.5, 0.7),
          (0.42, 0.95), (0.15, 0.98), (0.05, 0.78), (0.2, 0.54), (0.45, 0.34), (0.58, 0.12)),),
    ),
    9: (
        (((0.52, 0.15), (0.3, 0), (0.06, 0.12), (0.05, 0.38), (0.28, 0.5), (0.5, 0.36),
          (0.53, 0.12)), ((0.53, 0.12), (0.5, 0.55), (0.45, 1))),
        (((0.55, 0.1), (0.3, 0), (0.05, 0.2), (0.12, 0.45), (0.38, 0.48), (0.56, 0.25),
          (0.56, 0.08), (0.54, 0.4), (0.5, 0.75), (0.32, 0.98), (0.05, 0.92)),),
        (((0.48, 0.22), (0.3, 0.02), (0.08, 0.1), (0.03, 0.32), (0.2, 0.48), (0.42, 0.38),
          (0.5, 0.18)), ((0.5, 0.18), (0.4, 0.55), (0.22, 1))),
    ),
}  # fmt: skip


def draw_digit(digit: int, seed: int, size: int = 280, pen: float | None = None) -> Image.Image:
    """Draw a digit in black on a white square, somewhere in its middle.

    Args:
        digit: Which one.
        seed: Chooses the style and everything in which a hand differs from another.
        size: The square's side in pixels.
        pen: The pen's width, as a fraction of the digit's height; None for one of 0.04 to 0.16.
    """
    chance = random.Random(f"{digit} {seed}")
    height = size * chance.uniform(0.4, 0.75)
    drawn_pen = chance.uniform(0.04, 0.16)
    width = (drawn_pen if pen is None else pen) * height
    strokes = [_smooth(stroke) for stroke in _by_hand(chance.choice(STYLES[digit]), chance)]
    left, right, top, bottom = (
        extreme(point[axis] for stroke in strokes for point in stroke)
        for axis in (0, 1)
        for extreme in (min, max)
    )
    scale = height / max(bottom - top, right - left)
    middle = [size / 2 + chance.uniform(-0.08, 0.08) * size for _ in range(2)]
    over = 4  # drawn larger, then made smaller, for smooth edges
    picture = Image.new("L", (size * over, size * over), 255)
    pencil = ImageDraw.Draw(picture)
    for stroke in strokes:
        places = [
            (
                over * (middle[0] + (x - (left + right) / 2) * scale),
                over * (middle[1] + (y - (top + bottom) / 2) * scale),
            )
            for x, y in stroke
        ]
        for x, y in places:
            radius = over * width / 2
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return picture.resize((size, size), Image.Resampling.BOX).convert("RGB")


def _by_hand(strokes: Sequence[Stroke], chance: random.Random) -> list[list[Point]]:
    """Move every point a little, then slant, turn and stretch the whole."""
    lean, turn = chance.gauss(0.1, 0.15), math.radians(chance.gauss(0, 6))
    stretch = math.exp(chance.gauss(0, 0.15))
    moved: dict[Point, Point] = {}  # a point that two strokes share stays shared, almost
    result = []
    for stroke in strokes:
        points = []
        for x, y in stroke:
            if (x, y) not in moved:
                moved[x, y] = (x + chance.gauss(0, 0.025), y + chance.gauss(0, 0.025))
            x, y = moved[x, y]
            x, y = x + chance.gauss(0, 0.008), y + chance.gauss(0, 0.008)
            x = (x - lean * y) * stretch
            points.append(
                (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))
            )
        result.append(points)
    return result


def _smooth(points: Sequence[Point], steps: int = 60) -> list[Point]:
    """Return a Catmull-Rom spline through the points."""
    padded = [points[0], *points, points[-1]]
    curve = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for step in range(steps + 1):
            t = step / steps
            x, y = (
                0.5
                * (
                    2 * b[axis]
                    + (c[axis] - a[axis]) * t
                    + (2 * a[axis] - 5 * b[axis] + 4 * c[axis] - d[axis]) * t**2
                    + (3 * b[axis] - a[axis] - 3 * c[axis] + d[axis]) * t**3
                )
                for axis in (0, 1)
            )
            curve.append((x, y))
    return curve
