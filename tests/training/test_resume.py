"""A run that continues, and the things that must not change until then."""

from pathlib import Path

import pytest

from dist_mnist.config.errors import InputError
from tests.support.configs import SMALL_DATA
from tests.support.datasets import make_family_files
from tests.support.runs import run_once

RUN = (*SMALL_DATA, "trainer.epochs=1", "model=mlp")


@pytest.mark.parametrize("normalize", [True, False])
def test_other_pixels_are_refused(
    normalize: bool, small_root: Path, darker_root: Path, tmp_path: Path
) -> None:
    run = [*RUN, f"run_dir={tmp_path}", f"data.normalize={normalize}"]
    run_once([*run, f"data.root={small_root}", "trainer.max_steps=3"])
    with pytest.raises(InputError, match=r"checksum of the training samples was \d+ and is"):
        run_once([*run, f"data.root={darker_root}"])
    run_once([*run, f"data.root={small_root}"])


def test_more_samples_are_refused(small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "more"
    make_family_files(root / "FashionMNIST" / "raw", "", num_classes=10, train=300)
    run = [*RUN, f"run_dir={tmp_path / 'run'}"]
    run_once([*run, f"data.root={small_root}", "trainer.max_steps=3"])
    with pytest.raises(InputError, match="training samples was 203 and is 300"):
        run_once([*run, f"data.root={root}"])
