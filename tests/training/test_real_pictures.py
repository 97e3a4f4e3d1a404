"""Real digits as pictures in a folder: the same bits as from MNIST's own files, and in color."""

from pathlib import Path

import pytest

from dist_mnist.data.mnist import MNIST
from tests.support.colored_digits import colored_digits
from tests.support.picture_folders import assert_same_training, write_images
from tests.support.runs import run_once

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures", "own_cache")]


def test_all_of_mnist_as_png_files(mnist_root: Path, tmp_path: Path) -> None:
    for train, name in ((True, "train"), (False, "test")):
        digits = MNIST(str(mnist_root), train)
        write_images(tmp_path / "pictures" / name, digits.data, digits.targets.tolist())
    options = ["model=mlp", "trainer.max_steps=30", "data.validation_size=5000"]
    run_once([*options, f"data.root={mnist_root}", f"run_dir={tmp_path}/a"])
    folder = ["data=image_folder", "data.image_shape=[1,28,28]"]
    run_once([*folder, *options, f"data.root={tmp_path / 'pictures'}", f"run_dir={tmp_path}/b"])
    assert_same_training(tmp_path / "a", tmp_path / "b")


def test_color_is_used(mnist_root: Path, tmp_path: Path) -> None:
    for train, name, count in ((True, "train", 4000), (False, "test", 1000)):
        images, labels = colored_digits(str(mnist_root), train, count)
        write_images(tmp_path / name, images, labels.tolist())

    def accuracy(channels: int) -> float:
        return run_once(
            [
                "data=image_folder",
                f"data.root={tmp_path}",
                f"data.image_shape=[{channels},28,28]",
                f"run_dir={tmp_path / 'runs' / str(channels)}",
                "trainer.epochs=6",
                "trainer.global_batch_size=64",
            ]
        )

    in_color, in_gray = accuracy(3), accuracy(1)
    assert in_color > 0.9
    assert in_gray < in_color - 0.2
