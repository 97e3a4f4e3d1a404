"""A picture of pictures: each one beside what the network saw in it, and its answer."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dist_mnist.record.files import write_atomically

PICTURE_SIDE, ZOOM, GAP, LINE = 200, 4, 8, 18  # pixels; pixels for each of a digit's; pixels
BACKGROUND, INK, QUIET, FRAME = "white", "black", "#666666", "#d1682b"


class Seen(NamedTuple):
    """One image as the network saw it, and its answer.

    Attributes:
        image: As many pixels as the network got.
        box: Where it is in the picture: left, top, right, bottom.
        answer: A line to write below it.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    answer: str


class Row(NamedTuple):
    """One picture with everything that was seen in it."""

    title: str
    picture: Image.Image
    seen: tuple[Seen, ...]


def make_row(title: str, picture: Image.Image, seen: Sequence[Seen]) -> Row:
    """Return a row with a small copy of its picture, so that many of them fit into memory."""
    scale = min(1.0, PICTURE_SIDE / max(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    small = picture.resize((size[0], size[1]))
    pencil = ImageDraw.Draw(small)
    for one in seen:
        left, top, right, bottom = (round(edge * scale) for edge in one.box)
        pencil.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
    return Row(title, small, tuple(seen))


def draw_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Draw one row below the other into a PNG file.

    Raises:
        InputError: It cannot be written.
    """
    heights = [_height(row) for row in rows]
    width = max([_width(row) for row in rows], default=PICTURE_SIDE)
    sheet = Image.new("RGB", (width, max(1, sum(heights))), BACKGROUND)
    pencil, top = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        _draw_row(sheet, pencil, row, top)
        top += height
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    write_atomically(path, encoded.getbuffer())


def _height(row: Row) -> int:
    sides = [ZOOM * one.image.height + LINE for one in row.seen]
    return 2 * GAP + LINE + max([row.picture.height, *sides])


def _width(row: Row) -> int:
    return PICTURE_SIDE + 2 * GAP + sum(ZOOM * one.image.width + GAP for one in row.seen)


def _draw_row(sheet: Image.Image, pencil: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    font = ImageFont.load_default(12)
    pencil.text((GAP, top + GAP), row.title, fill=QUIET, font=font)
    top += GAP + LINE
    sheet.paste(row.picture, (GAP, top))
    left = PICTURE_SIDE + 2 * GAP
    for one in row.seen:
        size = ZOOM * one.image.width, ZOOM * one.image.height
        image = one.image.resize(size, Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        pencil.text((left, top + image.height + 2), one.answer, fill=INK, font=font)
        left += image.width + GAP
