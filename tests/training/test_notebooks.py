"""What notebooks leave behind: other defaults of torch, other checkpoints, weights that are NaN."""

from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.models.classifier import load_classifier
from dist_mnist.training.run import train
from tests.support.configs import SMALL_DATA, make_config
from tests.support.runs import assert_equal, result, run_once

pytestmark = pytest.mark.usefixtures("no_pictures")


def overrides(root: Path, run_dir: Path, *more: str) -> list[str]:
    small = (*SMALL_DATA, "model=linear", "trainer.epochs=1", f"data.root={root}")
    return [*small, f"run_dir={run_dir}", *more]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_defaults_do_not_matter(small_root: Path, tmp_path: Path, device: str) -> None:
    run_once(overrides(small_root, tmp_path / "plain"))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(device)
    try:
        train(make_config(*overrides(small_root, tmp_path / "other")))
        images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8, device="cpu")
        answers = load_classifier(tmp_path / "other")(images)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_default_device().type == device
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert answers.dtype is torch.float32
    plain, other = result(tmp_path / "plain"), result(tmp_path / "other")
    assert_equal(plain[0]["model"], other[0]["model"])
    assert plain[1] == other[1]


def test_checkpoints_of_another_version_are_not_started_over(
    small_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    (tmp_path / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(InputError, match=r"another version or program, such as last\.pt"):
        run_once(overrides(small_root, tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


def test_weights_that_are_nan_at_the_start_are_named(small_root: Path, tmp_path: Path) -> None:
    weights = {
        "layers.1.weight": torch.full((10, 784), torch.nan),
        "layers.1.bias": torch.zeros(10),
    }
    torch.save(weights, tmp_path / "weights.pt")
    transfer = f"transfer.checkpoint={tmp_path / 'weights.pt'}"
    with pytest.raises(
        InputError, match=r"begins with weights .* such as layers\.1\.weight: check"
    ):
        run_once(overrides(small_root, tmp_path / "run", transfer))
