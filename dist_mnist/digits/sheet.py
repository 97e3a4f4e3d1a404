"""Draws pictures beside the digits that a network saw in them and its answers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dist_mnist.record.files import write_atomically

PICTURE_SIDE, ZOOM, GAP, LINE = 200, 4, 8, 18  # in pixels; ZOOM is a factor
BACKGROUND, INK, QUIET, FRAME = "white", "black", "#666666", "#d1682b"


class Seen(NamedTuple):
    """One image as the network saw it, and its answer."""

    image: Image.Image  # the network's input
    box: tuple[int, int, int, int]  # its left, top, right and bottom edge, in pixels of the picture
    answer: str  # a line to write below it


class Row(NamedTuple):
    """One picture and the images in it."""

    title: str
    picture: Image.Image
    seen: tuple[Seen, ...]


def make_row(title: str, picture: Image.Image, seen: Sequence[Seen]) -> Row:
    """Return a row with a small copy of its picture, so that many rows fit into memory."""
    scale = min(1.0, PICTURE_SIDE / max(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    small = picture.resize((size[0], size[1]))
    pencil = ImageDraw.Draw(small)
    for part in seen:
        left, top, right, bottom = (round(edge * scale) for edge in part.box)
        pencil.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
    return Row(title, small, tuple(seen))


def draw_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Draw one row below the other into a PNG file.

    Raises:
        InputError: It cannot be written.
    """
    heights, width = [], PICTURE_SIDE
    for row in rows:
        sides = [ZOOM * part.image.height + LINE for part in row.seen]
        heights.append(2 * GAP + LINE + max([row.picture.height, *sides]))
        images = sum(ZOOM * part.image.width + GAP for part in row.seen)
        width = max(width, PICTURE_SIDE + 2 * GAP + images)
    sheet = Image.new("RGB", (width, max(1, sum(heights))), BACKGROUND)
    pencil, top = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        _draw_row(sheet, pencil, row, top)
        top += height
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    write_atomically(path, encoded.getbuffer())


def _draw_row(sheet: Image.Image, pencil: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    font = ImageFont.load_default(12)
    pencil.text((GAP, top + GAP), row.title, fill=QUIET, font=font)
    top += GAP + LINE
    sheet.paste(row.picture, (GAP, top))
    left = PICTURE_SIDE + 2 * GAP
    for part in row.seen:
        size = ZOOM * part.image.width, ZOOM * part.image.height
        image = part.image.resize(size, Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        pencil.text((left, top + image.height + 2), part.answer, fill=INK, font=font)
        left += image.width + GAP
