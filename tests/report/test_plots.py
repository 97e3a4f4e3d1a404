from pathlib import Path

import pytest
import torch
from PIL import Image

from dist_mnist.record.journal import Journal
from dist_mnist.report.plots import (
    draw_confusion,
    draw_curves,
    draw_examples,
    draw_mistakes,
)


def draw(folder: Path, wrong: int, accuracy: float = 0.9) -> list[Path]:
    journal = Journal(folder)
    for step in (10, 20):
        journal.write({"kind": "step", "step": step, "train/loss": 0.5, "train/accuracy": 0.8})
    line = {"kind": "epoch", "epoch": 1, "step": 20}
    journal.write({**line, "validation/loss": 0.4, "validation/accuracy": accuracy})
    journal.close()
    images = torch.randint(0, 256, (wrong, 1, 28, 28), dtype=torch.uint8)
    confusion = torch.eye(10, dtype=torch.int64) * 10
    for index in range(wrong):
        confusion[index % 10, (index + 1) % 10] += 1
    return [
        draw_curves(folder),
        draw_confusion(folder, confusion, [str(digit) for digit in range(10)]),
        draw_mistakes(folder, images, ["1 taken for 7\n50 % sure"] * wrong),
    ]


def test_every_picture_is_a_small_png(tmp_path: Path) -> None:
    for path in draw(tmp_path, wrong=24):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 400
            assert len(set(picture.convert("L").tobytes())) > 10  # something is drawn on it
        assert path.stat().st_size < 200_000


def test_network_without_mistakes(tmp_path: Path) -> None:
    assert all(path.stat().st_size > 0 for path in draw(tmp_path, wrong=0, accuracy=1.0))


def test_many_classes_can_be_drawn(tmp_path: Path) -> None:
    confusion = torch.eye(62, dtype=torch.int64)
    path = draw_confusion(tmp_path, confusion, [chr(65 + index) for index in range(62)])
    with Image.open(path) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_lie_in_rows_of_twenty(tmp_path: Path, channels: int) -> None:
    images = torch.randint(0, 256, (45, channels, 28, 28), dtype=torch.uint8)
    with Image.open(draw_examples(tmp_path, images)) as sheet:
        assert sheet.size == (20 * 28, 3 * 28)
        left, top = 3 * 28, 2 * 28  # of number 43
        cut = sheet.crop((left, top, left + 28, top + 28))
    pixels = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(28, 28, channels)
    assert torch.equal(pixels, images[43].permute(1, 2, 0))


def test_large_examples_become_small_squares(tmp_path: Path) -> None:
    images = torch.full((2, 1, 100, 200), 200, dtype=torch.uint8)
    with Image.open(draw_examples(tmp_path, images)) as sheet:
        assert sheet.size == (20 * 48, 48)
        assert sheet.getpixel((10, 10)) == 200
        assert sheet.getpixel((10, 40)) == 0
