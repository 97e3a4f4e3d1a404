"""The arithmetic of GPUs is chosen on purpose, which shows even where there is none."""

from pathlib import Path

import pytest
import torch

from dist_mnist.commands.evaluate import load_candidate
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.training.build import build_training_state
from tests.support.configs import SMALL_DATA, SOLO, make_config
from tests.support.runs import run_once


def allows_tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True), ("auto", True)]
)
def test_tf32_is_a_choice(precision: str, allowed: bool, small_root: Path) -> None:
    torch.backends.cudnn.deterministic = False
    config = make_config(
        *(*SMALL_DATA, f"data.root={small_root}", "model=linear"), f"trainer.precision={precision}"
    )
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    assert allows_tf32() == (allowed, allowed)
    assert torch.backends.cudnn.deterministic  # a run that continues has the same bits
    assert state.dtype is (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.usefixtures("no_pictures")
def test_evaluation_multiplies_as_told(small_root: Path, tmp_path: Path) -> None:
    run = [*SMALL_DATA, f"data.root={small_root}", "model=linear", f"run_dir={tmp_path}"]
    run_once([*run, "trainer.max_steps=1", "trainer.precision=fp32"])
    best = tmp_path / "checkpoints" / "best.safetensors"
    with session("cpu", 10) as world:
        for precision, allowed in (("tf32", True), ("fp32", False)):
            load_candidate(best, {"trainer": {"precision": precision}}, world).evaluate(world)
            assert allows_tf32() == (allowed, allowed)
