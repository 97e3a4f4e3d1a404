"""A step on a GPU, without one: it waits for nothing, mixes no devices, and launches little."""

from pathlib import Path

import pytest

from tests.support import pretended_gpu
from tests.support.processes import run_ranks

pytestmark = pytest.mark.skipif(
    pretended_gpu.set_up is None, reason="needs torch 2.10, for a device in Python"
)

# The most operations of a step: forward, backward, optimizer and all around them. Each is launched
# on a GPU, so a step of more takes longer, no matter how little it computes.
BUDGETS = {
    "model=mlp augmentation=none": 36,
    "model=mlp": 37,
    "model=cnn": 47,
    "model=cnn augmentation=affine": 75,
    "model=cnn optimizer=sgd": 45,
    "model=mlp model.dropout=0.2 trainer.gradient_clip_norm=1": 65,
    "model=mlp loss=mse trainer.micro_batch_size=20": 119,
    "model=resnet": 147,
    "model=mlp trainer.reproducible=true": 280,
}


def seen_launches(root: Path) -> dict[str, tuple[list[str], list[str]]]:
    seen = {name: pretended_gpu.launches(root, *name.split()) for name in BUDGETS}
    return {name: (launches.launched, launches.waits) for name, launches in seen.items()}


@pytest.fixture(scope="module")
def seen(small_root: Path) -> dict[str, tuple[list[str], list[str]]]:
    # In a process of its own: to all that follows in it, the device would be there, too.
    (found,) = run_ranks(1, seen_launches, small_root)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BUDGETS)
def test_step_launches_little(name: str, seen: dict[str, tuple[list[str], list[str]]]) -> None:
    launched, waits = seen[name]
    assert waits == []
    assert len(launched) <= BUDGETS[name], launched
    assert len(launched) > 30  # it was a step
