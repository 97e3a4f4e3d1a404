"""Decodes the pictures people have: upright, in RGB, without transparency."""

import io
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dist_mnist.config.errors import InputError, one_line

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 2**26  # more than a phone's camera takes; 200 MB once they are decoded
DEEP_MODES = ("I", "F")  # more than 8 bits a pixel; those of 16 bits begin with I, too
# Tags of TIFF 6.0 (Adobe 1992), and a value.
BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION, MAX_SAMPLE_VALUE = 258, 262, 281
WHITE_IS_ZERO = 0
_opening = Lock()  # catch_warnings changes the filters of all threads


def read_picture(source: bytes | Path, name: str = "the file") -> Image.Image:
    """Decode a picture, or the first one of an animation.

    Args:
        source: A file, or its content.
        name: The name of the content in messages; a file is named by its path.

    Returns:
        The picture in RGB, upright as its EXIF data says. Transparent areas are filled with a
        contrasting color.

    Raises:
        InputError: It cannot be read, is not a picture in one of the `FORMATS`, is damaged, or has
            more than `MOST_PIXELS`.
    """
    name = str(source) if isinstance(source, Path) else name
    content = _read(source) if isinstance(source, Path) else source
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_size(picture.width * picture.height, name)
        picture.load()
    except InputError:
        raise
    except Image.DecompressionBombError:
        _check_size(None, name)
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not a picture that can be read: it must be PNG, JPEG, BMP, WebP, GIF or "
            f"TIFF."
        ) from None
    except Exception as error:  # a file from elsewhere may hold anything
        raise InputError(f"{name} is a damaged picture: {one_line(error)}.") from error
    with suppress(Exception):  # damaged EXIF data is ignored
        ImageOps.exif_transpose(picture, in_place=True)
    try:
        return _opaque(_eight_bits(picture))
    except Exception as error:  # a palette or a color profile may be damaged, too
        raise InputError(f"{name} is a damaged picture: {one_line(error)}.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder without pictures.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_size(pixels: int | None, name: str) -> None:
    """Refuse a picture before it is decoded; None for more pixels than Pillow would count."""
    if pixels is None or pixels > MOST_PIXELS:
        size = "far too many" if pixels is None else f"{pixels:,}"
        raise InputError(
            f"{name} has {size} pixels, and at most {MOST_PIXELS:,} are decoded: make it smaller."
        )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture of 16 or 32 bits a pixel in 8.

    A TIFF may say which value is the largest, and that 0 is white. Otherwise whole numbers up to
    65535 count as 16 bits, and fractions up to 1 as shares of white. Other numbers have no known
    range, so theirs is stretched to 0 to 255.
    """
    if not picture.mode.startswith(DEEP_MODES):
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    bits = _tag(picture, BITS_PER_SAMPLE) or 16
    assumed = 2**bits - 1 if bits < 16 else 1.0 if picture.mode == "F" else 65535.0
    most = float(_tag(picture, MAX_SAMPLE_VALUE) or assumed)
    if low >= 0 and high <= most:
        low, high = 0.0, most
    scaled = (values - low) * (255 / max(high - low, 1e-9))
    if _tag(picture, PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    return Image.fromarray((scaled + 0.5).clip(0, 255).astype(np.uint8))


def _tag(picture: Image.Image, number: int) -> Any:
    """Return the first value of a TIFF tag, or None."""
    value = getattr(picture, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _opaque(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, with a contrasting color behind transparent areas.

    A drawing gets black or white behind it, whichever is farther from its color. A mostly opaque
    picture, such as one with round corners, gets its own median color.
    """
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    picture = picture.convert("RGBA")
    pixels = np.asarray(picture)
    seen = pixels[pixels[..., 3] > 127]
    color = np.median(seen[:, :3], axis=0) if len(seen) else np.zeros(3)
    if 2 * len(seen) <= picture.width * picture.height:
        color = np.full(3, 0 if color.mean() > 127 else 255)
    red, green, blue = (int(value) for value in color)
    paper = Image.new("RGBA", picture.size, (red, green, blue, 255))
    return Image.alpha_composite(paper, picture).convert("RGB")
