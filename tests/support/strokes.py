"""Digits drawn by hand, made from a seed: several ways of writing each one, and many hands.

`draw(seed)` gives the strokes of a pointer: lists of points, in shares of the page's square
canvas, with the origin at the top left. `picture(drawing)` is the page's canvas without a browser:
the same curves and the same pen, black on white.

A hand is a slant, a width, a size, a place, a pen, a speed, and how steady it is. Nothing here was
fitted to a network: the ranges are those of people who draw with a mouse, a pen or a finger.
"""

import io
import itertools
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tests.support.digit_shapes import WAYS, Path, Point

SIDE = 280  # pixels of the picture that the page sends
PENS = (0.03, 0.055, 0.085)  # widths that the page offers, in shares of the canvas's side
CLOSEST = 0.004  # shares of the canvas between two points of a stroke
FINENESS = 4  # subpixels a side, for smooth edges


@dataclass(frozen=True)
class Drawing:
    """One digit as it was drawn.

    Attributes:
        digit: The digit that was meant.
        way: The way of writing it, such as "crossed".
        strokes: From pen down to pen up: points (x, y), from 0 to 1 across the canvas.
        pen: The width of the line as a share of the canvas's side.
    """

    digit: int
    way: str
    strokes: tuple[tuple[Point, ...], ...]
    pen: float


def draw(seed: int, pen: float | None = None) -> Drawing:
    """Draw the digit `seed % 10`, in a way and by a hand that depend on the seed alone.

    `pen` is a share of the canvas's side; None draws with one of `PENS`.
    """
    digit, hand = seed % 10, random.Random(seed)
    way = sorted(WAYS[digit])[int(hand.random() * len(WAYS[digit]))]
    strokes = [_curve(stroke) for stroke in WAYS[digit][way]]
    strokes = _unsteady(strokes, hand)
    usual_pen = PENS[int(hand.random() * len(PENS))]
    pen = usual_pen if pen is None else pen
    placed = _placed(_shaped(strokes, hand), pen, hand)
    density = math.exp(hand.uniform(math.log(5), math.log(40)))  # points for a line of height 1
    height = max(y for line in placed for _, y in line) - min(y for line in placed for _, y in line)
    sampled = [_sampled(line, max(3, round(_length(line) / height * density))) for line in placed]
    shake = hand.uniform(0, 0.004)
    return Drawing(digit, way, tuple(_shaken(line, shake, hand) for line in sampled), pen)


def _curve(pieces: list[Path]) -> Path:
    """Return the pieces of a stroke as one dense line: Catmull-Rom curves through their points."""
    line: Path = []
    for piece in pieces:
        before, after = piece[0], piece[-1]
        points = [before, *piece, after]
        for a, b, c, d in zip(points, points[1:], points[2:], points[3:], strict=False):
            line += [_between(a, b, c, d, step / 8) for step in range(8)]
        line.append(after)
    return line


def _between(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    """Return the point at t, from 0 at b to 1 at c."""
    weights = (
        -0.5 * t + t * t - 0.5 * t**3,
        1 - 2.5 * t * t + 1.5 * t**3,
        0.5 * t + 2 * t * t - 1.5 * t**3,
        -0.5 * t * t + 0.5 * t**3,
    )
    x, y = (sum(w * p[axis] for w, p in zip(weights, (a, b, c, d), strict=True)) for axis in (0, 1))
    return x, y


def _unsteady(strokes: list[Path], hand: random.Random) -> list[Path]:
    """Bend the plane a little, and let strokes begin and end where they should not quite."""
    amount = hand.uniform(0.01, 0.06)
    waves = [[hand.uniform(2, 6), hand.uniform(0, 6.3), hand.gauss(0, amount)] for _ in range(4)]

    def bent(x: float, y: float) -> Point:
        (f, p, a), (g, q, b), (h, r, c), (i, s, d) = waves
        dx = a * math.sin(f * y + p) + b * math.sin(g * x + q)
        dy = c * math.sin(h * x + r) + d * math.sin(i * y + s)
        return x + dx, y + dy

    moved = []
    for number, line in enumerate(strokes):
        dx, dy = (hand.gauss(0, 0.035) if number else 0.0 for _ in range(2))
        first, last = (int(len(line) * max(0.0, hand.gauss(0, 0.012))) for _ in range(2))
        kept = line[first : len(line) - last]
        moved.append([bent(x + dx, y + dy) for x, y in kept])
    return moved


def _shaped(strokes: list[Path], hand: random.Random) -> list[Path]:
    """Stretch, slant and turn: the hand's own habits."""
    width, slant = hand.uniform(0.7, 1.3), hand.gauss(0.1, 0.18)
    slant, turn = max(-0.3, min(0.6, slant)), math.radians(hand.gauss(0, 6))
    cos, sin = math.cos(turn), math.sin(turn)
    shaped = []
    for line in strokes:
        leaning = [(x * width - (y - 0.5) * slant, y) for x, y in line]
        shaped.append([(x * cos - y * sin, x * sin + y * cos) for x, y in leaning])
    return shaped


def _placed(strokes: list[Path], pen: float, hand: random.Random) -> list[Path]:
    """Bring the strokes to a size and a place on the canvas; a broad pen draws no small digit."""
    xs, ys = ([point[axis] for line in strokes for point in line] for axis in (0, 1))
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    room = 1 - pen - 0.02
    size = min(hand.uniform(max(0.25, 5 * pen), 0.9), room) / max(width, height)
    # Near the middle most of the time, but anywhere is possible.
    spread = hand.random()
    left, top = (
        pen / 2 + 0.01 + (room - extent * size) * (0.5 + spread * hand.uniform(-0.5, 0.5))
        for extent in (width, height)
    )
    return [
        [(left + (x - min(xs)) * size, top + (y - min(ys)) * size) for x, y in line]
        for line in strokes
    ]


def _length(line: Path) -> float:
    return sum(math.dist(a, b) for a, b in itertools.pairwise(line))


def _sampled(line: Path, count: int) -> Path:
    """Return `count` points of a line, as far apart as a pointer that slows down at the ends."""
    total, walked, points = _length(line), 0.0, [line[0]]
    marks = [total * (0.5 - 0.5 * math.cos(math.pi * i / (count - 1))) for i in range(1, count)]
    # Half of the way to an even pace: a hand takes little time to get going.
    even = [total * i / (count - 1) for i in range(1, count)]
    wanted = [(a + b) / 2 for a, b in zip(marks, even, strict=True)]
    for a, b in itertools.pairwise(line):
        step = math.dist(a, b)
        while wanted and step > 0 and walked + step >= wanted[0]:
            share = (wanted.pop(0) - walked) / step
            points.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
        walked += step
    return [*points, *([line[-1]] if wanted else [])]


def _shaken(line: Path, amount: float, hand: random.Random) -> tuple[Point, ...]:
    """Add the tremor of a hand, and keep within the canvas."""

    def moved(value: float) -> float:
        return min(1.0, max(0.0, value + hand.gauss(0, amount)))

    return tuple((moved(x), moved(y)) for x, y in line)


def picture(drawing: Drawing) -> Image.Image:
    """Return the picture on the page's canvas: mode L, SIDE x SIDE, black on white."""
    scale = SIDE * FINENESS
    large = Image.new("L", (scale, scale), 255)
    canvas, radius = ImageDraw.Draw(large), drawing.pen * scale / 2
    for stroke in drawing.strokes:
        line = [(x * scale, y * scale) for x, y in smoothed(stroke)]
        canvas.line(line, fill=0, width=round(2 * radius))
        for x, y in line:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def smoothed(stroke: tuple[Point, ...]) -> Path:
    """Return the curve that the page draws: through all points, with corners where it turns a lot.

    Points that are closer to the one before than the page keeps are left out.
    """
    points = [stroke[0]]
    for point in stroke[1:]:
        if math.dist(point, points[-1]) >= CLOSEST:
            points.append(point)
    line = [points[0]]
    for i in range(1, len(points)):
        start, end = points[i - 1], points[i]
        third = math.dist(start, end) / 3
        leaving, arriving = _directions(points, i - 1)[1], _directions(points, i)[0]
        first = (start[0] + third * leaving[0], start[1] + third * leaving[1])
        second = (end[0] - third * arriving[0], end[1] - third * arriving[1])
        line += [_bezier((start, first, second, end), step / 8) for step in range(1, 9)]
    return line


def _directions(points: Path, i: int) -> tuple[Point, Point]:
    """Return the directions in which the line arrives at a point and leaves it."""
    previous, following = points[max(i - 1, 0)], points[min(i + 1, len(points) - 1)]
    before, after = _direction(previous, points[i]), _direction(points[i], following)
    if before[0] * after[0] + before[1] * after[1] > 0.5:
        before = after = _direction(previous, following)
    return before, after


def _direction(start: Point, end: Point) -> Point:
    length = math.dist(start, end) or 1.0
    return (end[0] - start[0]) / length, (end[1] - start[1]) / length


def _bezier(points: tuple[Point, Point, Point, Point], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
    return x, y


def png(drawing: Drawing) -> bytes:
    """Return the picture as the page uploads it."""
    stream = io.BytesIO()
    picture(drawing).save(stream, "PNG")
    return stream.getvalue()
