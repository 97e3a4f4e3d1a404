"""A captured step computes the bits of the step itself.

There is no GPU here, so another capture stands in: it repeats the call with the tensors, and the
options of the optimizer, that were there when it was captured, as a graph does.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.splits import load_splits
from dist_mnist.training import build, evaluation, final_test
from dist_mnist.training import run as run_module
from dist_mnist.training.build import build_training_state
from dist_mnist.training.cuda_graph import (
    WARM_UP_STEPS,
    GraphedCompute,
    capture_on_gpu,
    objection,
)
from dist_mnist.training.loop import fit
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.resume import checkpoint_content, restore
from dist_mnist.training.state import TrainingState
from tests.support.configs import SMALL_DATA, SOLO, make_config

# 153 samples: 7 steps of 20 and one of 13 an epoch. Rates are powers of two, which a tensor of
# float32 holds exactly.
RUN = (
    *(*SMALL_DATA, "trainer.epochs=3", "trainer.max_steps=18", "optimizer.lr=0.0078125"),
    *("scheduler=step_decay", "scheduler.factor=0.5"),
)
LAUNCHES = 18 - 2 - WARM_UP_STEPS

Call = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class StandIn:
    """A stand-in for a CUDA graph; see above."""

    def __init__(self, optimizer: torch.optim.Optimizer, call: Call) -> None:
        self.groups, self.call, self.launches = optimizer.param_groups, call, 0
        self.captured = [dict(group) for group in self.groups]
        self.results = torch.zeros(20), torch.zeros(20, 10)

    def replay(self) -> None:
        self.launches += 1
        now = [dict(group) for group in self.groups]
        self.set_options(self.captured)
        for place, result in zip(self.results, self.call(), strict=True):
            place.copy_(result)
        self.set_options(now)

    def set_options(self, options: list[dict[str, Any]]) -> None:
        for group, chosen in zip(self.groups, options, strict=True):
            group.update(chosen)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """Let graphs be captured here; each capture is added to the list."""
    made: list[StandIn] = []

    def capture(optimizer: torch.optim.Optimizer, call: Call) -> Any:
        made.append(StandIn(optimizer, call))
        return made[-1].replay, made[-1].results

    monkeypatch.setattr(build, "objection", lambda *_: None)
    monkeypatch.setattr(build, "capture_on_gpu", capture)
    return made


def trained(root: Path, *overrides: str) -> TrainingState:
    config = make_config(*RUN, f"data.root={root}", *overrides)
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    fit(state, Recorder())
    return state


@cache
def plain_mlp(root: Path) -> TrainingState:
    """Train without a graph, once for all tests."""
    return trained(root, "model=mlp")


def has_same_bits(a: TrainingState, b: TrainingState) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "overrides",
    [
        "model=cnn",
        "model=mlp model.dropout=0.3 augmentation=affine",
        "model=mlp trainer.micro_batch_size=7 trainer.gradient_clip_norm=0.5",
        "model=mlp optimizer=sgd",
    ],
)
def test_graph_has_the_bits_of_the_step(
    overrides: str, small_root: Path, stand_ins: list[StandIn]
) -> None:
    plain = trained(small_root, *overrides.split())
    assert not stand_ins
    graphed = trained(small_root, *overrides.split(), "trainer.cuda_graph=true")
    assert [graph.launches for graph in stand_ins] == [LAUNCHES]
    assert has_same_bits(plain, graphed)
    assert plain.progress.epoch_totals == graphed.progress.epoch_totals
    assert plain.progress.best_accuracy == graphed.progress.best_accuracy


def test_stale_inputs_are_noticed(
    small_root: Path, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    plain = plain_mlp(small_root)
    capture = vars(build)["capture_on_gpu"]

    def capture_stale(optimizer: torch.optim.Optimizer, call: Any) -> Any:
        state, images, labels, size = call.args
        return capture(optimizer, partial(call.func, state, images.clone(), labels.clone(), size))

    monkeypatch.setattr(build, "capture_on_gpu", capture_stale)
    assert not has_same_bits(plain, trained(small_root, "model=mlp", "trainer.cuda_graph=true"))


def test_rates_are_read_anew(
    small_root: Path, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that is a number would be that of the capture for ever."""
    plain = plain_mlp(small_root)
    monkeypatch.setattr(build, "keep_learning_rates_in_place", lambda *_: None)
    assert not has_same_bits(plain, trained(small_root, "model=mlp", "trainer.cuda_graph=true"))


def test_rates_and_seeds_come_first(small_root: Path) -> None:
    config = make_config(*RUN, f"data.root={small_root}", "model=linear")
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    compute, seen = state.compute, []

    def note(*arguments: Any) -> Any:
        seen.append((state.optimizer.param_groups[0]["lr"], torch.initial_seed()))
        return compute(*arguments)

    state.compute = note
    fit(state, Recorder())
    assert seen == [
        (0.0078125 * 0.5 ** (step // 8), keyed_seed(config.seed, "step", step, 0))
        for step in range(18)
    ]


def test_size_of_the_global_batch_decides() -> None:
    # Rank 1 of 3 has 30 samples of 91, and 30 of 89: with another weight each.
    sizes, launches = [], []

    def compute(images: torch.Tensor, labels: torch.Tensor, size: int) -> Any:
        sizes.append(size)
        return images.sum(1), images

    def capture(call: Any) -> Any:
        return lambda: launches.append(91), call()

    graphed = GraphedCompute(compute, 91, capture)
    share = torch.zeros(30, 4), torch.zeros(30, dtype=torch.int64)
    for _ in range(WARM_UP_STEPS + 4):
        for size in (91, 89):
            graphed(*share, size)
    assert len(launches) == 4
    assert sizes.count(89) == WARM_UP_STEPS + 4
    assert sizes.count(91) == WARM_UP_STEPS + 1  # and while it is captured


def test_results_stay_as_they_are() -> None:
    def capture(call: Any) -> Any:
        results = call()
        return lambda: [result.add_(1) for result in results], results

    graphed = GraphedCompute(lambda *_: (torch.zeros(2), torch.zeros(2, 3)), 2, capture)
    inputs = torch.zeros(2, 4), torch.zeros(2)
    found = [graphed(*inputs, 2) for _ in range(WARM_UP_STEPS + 3)]
    assert [losses.tolist() for losses, _ in found[-3:]] == [[1, 1], [2, 2], [3, 3]]
    assert [int(outputs.sum()) for _, outputs in found[-3:]] == [6, 12, 18]


@pytest.mark.usefixtures("no_pictures")
def test_graph_is_gone_after_the_training(
    small_root: Path, tmp_path: Path, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is there, destroying its process group would wait for ever (pytorch#115388)."""
    found = []
    score = evaluation.score_of

    def score_later(*arguments: Any) -> Any:
        graph = weakref.ref(stand_ins.pop())
        found.append(graph() is None)
        return score(*arguments)

    monkeypatch.setattr(final_test, "score_of", score_later)
    overrides = ["model=mlp", f"run_dir={tmp_path}", f"data.root={small_root}"]
    gc.collect()
    gc.disable()
    try:
        run_module.run(make_config(*RUN, *overrides, "trainer.cuda_graph=true"), SOLO)
    finally:
        gc.enable()
    assert found == [True]


def test_graph_needs_a_gpu(small_root: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.cuda_graph=true cannot be used: .* on cpu"):
        trained(small_root, "trainer.cuda_graph=true")
    with pytest.raises(InputError, match=r"cuda_graph=True is not allowed: .* repeat"):
        make_config("trainer.cuda_graph=true", "trainer.reproducible=true")


@pytest.mark.parametrize(
    ("optimizer", "is_scaled", "told"),
    [
        (torch.optim.AdamW(([torch.zeros(1)]), fused=True), False, None),
        (torch.optim.SGD(([torch.zeros(1)]), fused=True), False, None),
        (torch.optim.AdamW(([torch.zeros(1)]), fused=True), True, "with fp16"),
        (torch.optim.AdamW([torch.zeros(1)]), False, "a fused optimizer"),
        (torch.optim.RMSprop([torch.zeros(1)]), False, "a fused optimizer"),
        (torch.optim.Adagrad(([torch.zeros(1)]), fused=True), False, "a fused optimizer"),
    ],
)
def test_what_cannot_be_captured(
    optimizer: torch.optim.Optimizer, is_scaled: bool, told: str | None
) -> None:
    found = objection(optimizer, torch.device("cuda"), is_scaled)
    assert found == told if told is None else told in (found or "")


def test_a_failed_capture_tells_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    @contextmanager
    def capture(graph: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        modes.append(capture_error_mode)
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr("torch.cuda.graph", capture)
    monkeypatch.setattr("torch.cuda.CUDAGraph", object)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: None)

    def compute() -> Any:
        raise ValueError("a number was read")

    with pytest.raises(InputError, match="network and loss: a number was read; set it to false"):
        capture_on_gpu(torch.optim.SGD([torch.zeros(1)]), compute)
    assert modes == ["thread_local"]

    def fill() -> Any:
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        capture_on_gpu(torch.optim.SGD([torch.zeros(1)]), fill)


def test_choices_of_python_are_not_captured(small_root: Path, stand_ins: list[StandIn]) -> None:
    odd = ("model=mlp", "model._target_=tests.support.networks.Odd", "+model.how=unused")
    trusted = "trusted_modules=[tests.support.networks]"
    for options in ((*odd, trusted), ("trainer.find_unused_parameters=true",)):
        with pytest.raises(InputError, match="may skip layers, and a graph repeats the choice"):
            trained(small_root, *options, "trainer.cuda_graph=true")


def test_rates_are_numbers_in_a_checkpoint(small_root: Path, stand_ins: list[StandIn]) -> None:
    state = trained(small_root, "model=mlp", "trainer.cuda_graph=true")
    content = checkpoint_content(state)
    assert content["optimizer"]["param_groups"][0]["lr"] == state.learning_rate
    config = make_config(*RUN, f"data.root={small_root}", "model=mlp", "trainer.cuda_graph=true")
    again = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    place = again.optimizer.param_groups[0]["lr"]
    restore(again, content)
    assert isinstance(place, torch.Tensor)
    assert again.optimizer.param_groups[0]["lr"] is place
