"""The training in one file of plain PyTorch computes the same bits as the package."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dist_mnist.distributed.session import session
from dist_mnist.record import checkpoint
from dist_mnist.training.run import run
from tests import by_hand
from tests.support.configs import CHECKOUT, make_config
from tests.support.processes import run_ranks, torchrun

OPTIONS = {"trainer.max_steps": 6, "trainer.epochs": 1, "seed": 1}
TYPED = [f"{key}={value}" for key, value in OPTIONS.items()]


def train_by_hand() -> tuple[dict[str, torch.Tensor], int]:
    by_hand.RANK, by_hand.WORLD_SIZE = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    if by_hand.WORLD_SIZE > 1:
        dist.init_process_group("gloo")
    return by_hand.train(by_hand.OPTIONS | OPTIONS)


def train_by_package(run_dir: str, root: str) -> int:
    config = make_config(*TYPED, f"run_dir={run_dir}", f"data.root={root}")
    with session("cpu", timeout_seconds=60) as world:
        return run(config, world).test.correct


@pytest.mark.parametrize(
    "size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3))]
)
def test_weights_have_the_same_bits(size: int, mnist_root: Path, tmp_path: Path) -> None:
    correct = run_ranks(size, train_by_package, str(tmp_path), str(mnist_root))
    expected = checkpoint.load(tmp_path / "checkpoints" / "last.safetensors")["model"]
    answers = run_ranks(size, train_by_hand)
    assert [right for _, right in answers] == correct
    weights, _ = answers[0]
    assert [*map(torch.equal, weights.values(), expected.values())] == [True] * len(expected)


@pytest.mark.slow
def test_the_command_prints_the_same_accuracy(mnist_root: Path, tmp_path: Path) -> None:
    package = [*TYPED, "tracking=disabled", f"data.root={mnist_root}", f"run_dir={tmp_path}"]
    ours = torchrun(4, *package, "trainer.device=cpu").stdout.splitlines()[-1]
    theirs = torchrun(4, *TYPED, module="tests.by_hand", cwd=CHECKOUT).stdout.splitlines()[-1]
    assert theirs.startswith("test accuracy 0.")
    assert ours.startswith(f"{theirs} loss ")


def test_the_file_can_be_read_at_one_sitting() -> None:
    text = Path(by_hand.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert "import dist_mnist" not in text
    assert "from dist_mnist" not in text
