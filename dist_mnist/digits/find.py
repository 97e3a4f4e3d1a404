"""Finds the digits in any picture, from left to right, and makes them like MNIST."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_mnist.digits.components import label_components
from dist_mnist.digits.ink import find_ink
from dist_mnist.digits.mnist_form import Box, make_like_mnist
from dist_mnist.digits.strokes import with_usual_strokes

EDGE = 0.25  # of full ink: where a stroke ends
LEAST_PIXELS, LEAST_SIDE = 6, 0.025  # of a digit's longer side: pixels; of the picture's side
SPECK_SIDE, SPECK_INK = 0.15, 0.02  # of the largest part's longer side; of the most ink of a part
MOST_PARTS = 60  # the ones with the most ink
LEAST_HEIGHT = 0.4  # of a digit, beside the tallest one
LINE_WIDTH = 3.0  # times its height: wider than any digit
FRAME_SHARE = 0.25  # of the picture's edges
SHEET_SHARE, SHEET_FILLED = 0.15, 0.85  # of the picture's area; of the sheet's box
SHEET_WIDTH, SHEET_MARGIN = 0.35, 0.03  # times its height; of its shorter side
# Pieces of one digit. The gaps are fractions of their height together.
PIECE, PIECE_GAP = 0.5, 0.15  # of that height: a piece; the gap between it and the rest
STACK_GAP = 0.2  # between two pieces, one above the other
OVERLAP, TWIN_OVERLAP = 0.4, 0.7  # of the narrower one's width; the latter for two side by side


class Digit(NamedTuple):
    """A digit in a picture."""

    image: torch.Tensor  # like MNIST's, uint8 of shape (28, 28), white on black
    box: Box  # its left, top, right and bottom edge, in pixels of the upright picture


class _Part(NamedTuple):
    """Connected ink, or several pieces that belong together."""

    box: Box
    ink: float
    labels: tuple[int, ...]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    def __or__(self, other: "_Part") -> "_Part":
        return _Part(
            (
                min(self.box[0], other.box[0]),
                min(self.box[1], other.box[1]),
                max(self.box[2], other.box[2]),
                max(self.box[3], other.box[3]),
            ),
            self.ink + other.ink,
            self.labels + other.labels,
        )


def find_digits(picture: Image.Image) -> list[Digit]:
    """Find the digits in a picture, line by line, from left to right.

    Args:
        picture: In RGB and upright, as `read_picture` returns it.

    Returns:
        The digits; none if nothing stands out from the background.
    """
    ink, shrink = find_ink(picture)
    labels, count = label_components(ink > EDGE)
    pieces = _without_frames(_parts(labels, count, ink), labels)
    sheet = _sheet(pieces, labels)
    if sheet is not None:
        return _inside(picture, _enlarged(sheet, shrink, picture.size))
    parts = _without_lines(_join(_without_specks(pieces, max(ink.shape))))
    tallest = max((part.height for part in parts), default=0)
    digits = _in_reading_order([part for part in parts if part.height >= LEAST_HEIGHT * tallest])
    return [
        Digit(
            image=torch.from_numpy(make_like_mnist(with_usual_strokes(_alone(ink, labels, part)))),
            box=_enlarged(part.box, shrink, picture.size),
        )
        for part in digits
    ]


def _parts(labels: NDArray[np.int64], count: int, ink: NDArray[np.float32]) -> list[_Part]:
    rows, columns = labels.nonzero()
    parts = labels[rows, columns] - 1
    amounts = np.bincount(parts, weights=ink[rows, columns], minlength=count)
    edges = []
    for places in (columns, rows):
        low, high = np.full(count, max(labels.shape)), np.zeros(count, dtype=np.int64)
        np.minimum.at(low, parts, places)
        np.maximum.at(high, parts, places + 1)
        edges.append((low.tolist(), high.tolist()))
    (lefts, rights), (tops, bottoms) = edges
    return [
        _Part((lefts[i], tops[i], rights[i], bottoms[i]), float(amounts[i]), (i + 1,))
        for i in range(count)
    ]


def _sheet(parts: list[_Part], labels: NDArray[np.int64]) -> Box | None:
    """Return the box of a sheet of paper that lies on a table, or None."""
    for part in parts:
        left, top, right, bottom = part.box
        inside = labels[top:bottom, left:right]
        is_large = inside.size >= SHEET_SHARE * labels.size and min(inside.shape) > LEAST_PIXELS
        is_wide = part.width >= SHEET_WIDTH * part.height
        if is_large and is_wide and (inside == part.labels[0]).mean() >= SHEET_FILLED:
            return part.box
    return None


def _inside(picture: Image.Image, box: Box) -> list[Digit]:
    """Find the digits inside a box, without its edge."""
    margin = math.ceil(SHEET_MARGIN * min(box[2] - box[0], box[3] - box[1]))
    left, top = box[0] + margin, box[1] + margin
    digits = find_digits(picture.crop((left, top, box[2] - margin, box[3] - margin)))
    return [
        Digit(image, (x0 + left, y0 + top, x1 + left, y1 + top))
        for image, (x0, y0, x1, y1) in digits
    ]


def _without_frames(parts: list[_Part], labels: NDArray[np.int64]) -> list[_Part]:
    """Leave out parts along the edges of the picture, such as a table around the paper."""
    edges = np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    shares = np.bincount(edges, minlength=len(parts) + 1) / len(edges)
    return [part for part in parts if shares[part.labels[0]] < FRAME_SHARE]


def _without_lines(parts: list[_Part]) -> list[_Part]:
    """Leave out parts much wider than high: the lines of the paper, a minus."""
    return [part for part in parts if part.width < LINE_WIDTH * part.height]


def _without_specks(parts: list[_Part], side: int) -> list[_Part]:
    """Leave out parts that are small beside the largest one, or too small to be a digit."""
    largest = max((max(part.height, part.width) for part in parts), default=0)
    most_ink = max((part.ink for part in parts), default=0.0)
    if largest < max(LEAST_PIXELS, LEAST_SIDE * side):
        return []
    kept = [
        part
        for part in parts
        if max(part.height, part.width) >= SPECK_SIDE * largest or part.ink >= SPECK_INK * most_ink
    ]
    return sorted(kept, key=lambda part: part.ink)[-MOST_PARTS:]


def _join(parts: list[_Part]) -> list[_Part]:
    """Join the strokes of the same digit, the nearest ones first."""
    parts = list(parts)
    while True:
        pairs = [
            (_gap(a, b), i, j)
            for i, a in enumerate(parts)
            for j, b in enumerate(parts[:i])
            if _belong_together(a, b)
        ]
        if not pairs:
            return parts
        _, i, j = min(pairs)
        parts[j] |= parts.pop(i)


def _gap(a: _Part, b: _Part) -> int:
    across, down = _gaps(a, b)
    return max(across, 0) + max(down, 0)


def _gaps(a: _Part, b: _Part) -> tuple[int, int]:
    """Return the gap between two parts in pixels, across and down; negative where they overlap."""
    return (
        max(a.box[0], b.box[0]) - min(a.box[2], b.box[2]),
        max(a.box[1], b.box[1]) - min(a.box[3], b.box[3]),
    )


def _belong_together(a: _Part, b: _Part) -> bool:
    across, down = _gaps(a, b)
    height = (a | b).height
    shorter = min(a.height, b.height)
    if shorter < PIECE * height and _gap(a, b) < PIECE_GAP * height:
        return True
    overlap = TWIN_OVERLAP if -down > PIECE * shorter else OVERLAP
    return -across >= overlap * min(a.width, b.width) and down < STACK_GAP * height


def _in_reading_order(parts: list[_Part]) -> list[_Part]:
    """Sort parts by line, then from left to right; parts that overlap in height share a line."""
    lines: list[list[_Part]] = []
    bottom = -1
    for part in sorted(parts, key=lambda part: part.box[1]):
        if part.box[1] >= bottom:
            lines.append([])
        lines[-1].append(part)
        bottom = max(bottom, part.box[3])
    return [part for line in lines for part in sorted(line, key=lambda part: part.box[0])]


def _alone(ink: NDArray[np.float32], labels: NDArray[np.int64], part: _Part) -> NDArray[np.float32]:
    """Return the ink inside a part's box, without the ink of other parts."""
    left, top, right, bottom = part.box
    inside = labels[top:bottom, left:right]
    return np.where(np.isin(inside, (0, *part.labels)), ink[top:bottom, left:right], 0)


def _enlarged(box: Box, shrink: float, size: tuple[int, int]) -> Box:
    """Convert a box from pixels of the smaller copy to pixels of the picture."""
    left, top, right, bottom = box
    return (
        math.floor(left * shrink),
        math.floor(top * shrink),
        min(size[0], math.ceil(right * shrink)),
        min(size[1], math.ceil(bottom * shrink)),
    )
