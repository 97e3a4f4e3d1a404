"""Pictures as people have them are decoded; the rest is refused in a sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import read_picture


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


def colors() -> Image.Image:
    picture = Image.new("RGB", (40, 20), (200, 30, 30))
    picture.paste((20, 40, 220), (20, 0, 40, 20))
    return picture


def png(width: int, height: int) -> bytes:
    """Return a gray PNG file that claims this size, with no pixels in it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(b""), b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_formats(form: str, tmp_path: Path) -> None:
    content = encoded(colors(), form)
    (tmp_path / "file").write_bytes(content)
    for source in (content, tmp_path / "file"):
        picture = read_picture(source)
        assert (picture.mode, picture.size) == ("RGB", (40, 20))
        pixels = np.asarray(picture).astype(int)
        assert abs(pixels[10, 5] - (200, 30, 30)).max() < 20
        assert abs(pixels[10, 35] - (20, 40, 220)).max() < 20


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "red"), (3, "blue"), (6, "red"), (8, "blue")]
)
def test_exif_orientation(orientation: int, corner: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(encoded(colors(), "JPEG", exif=exif, quality=95))
    assert picture.size == ((40, 20) if orientation in (1, 3) else (20, 40))
    red, _, blue = np.asarray(picture)[2, 2]
    assert ("red" if red > blue else "blue") == corner


@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_ink_on_nothing_stays_visible(ink: int, mode: str) -> None:
    layers = np.zeros((20, 20, 2), dtype=np.uint8)
    layers[5:15, 8:12] = (ink, 255)
    picture = Image.fromarray(layers, "LA").convert(mode)
    pixels = np.asarray(read_picture(encoded(picture, "PNG"))).astype(int)
    assert abs(pixels[10, 10] - pixels[0, 0]).min() == 255


def test_round_corners_get_the_paper_color() -> None:
    picture = Image.new("RGBA", (20, 20), (240, 230, 90, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    pixels = np.asarray(read_picture(encoded(picture, "PNG")))
    assert pixels[0, 0].tolist() == [240, 230, 90]


def test_sixteen_bits_keep_their_range() -> None:
    values = np.zeros((10, 10), dtype=np.uint16)
    values[4:6] = 65535
    values[8] = 32896
    pixels = np.asarray(read_picture(encoded(Image.fromarray(values), "PNG")))
    assert pixels[[0, 5, 8], 0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is not a picture that can be read: it must be PNG, JPEG"),
        (b"hello", "the file is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the file is not a picture"),
        (png(9000, 9000), "the file has 81,000,000 pixels, and at most"),
        (png(60000, 60000), "the file has far too many pixels"),
        (png(10, 10), "the file is a damaged picture"),
        (encoded(colors(), "JPEG")[:-200], "the file is a damaged picture"),
    ],
    ids=["empty", "text", "svg", "large", "bomb", "no-content", "torn"],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_picture(content)


def test_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder without pictures"):
        read_picture(tmp_path)
