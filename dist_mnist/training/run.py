"""One whole run: its directory, its data, the training, the test at the end, the pictures."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.overrides import to_copy
from dist_mnist.config.schema import Config, plain_config, with_num_classes
from dist_mnist.data.splits import DataSplits, load_splits
from dist_mnist.distributed import signals, watchdog
from dist_mnist.distributed.agreement import require_same
from dist_mnist.distributed.gradients import explaining_unused
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import ending_together
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.models.build import load_weights
from dist_mnist.models.transfer import describe_transfer, read_weights, take_weights
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_result, log_to_console
from dist_mnist.record.directory import choose_run_directory, lock_run_directory
from dist_mnist.report import plots as pictures
from dist_mnist.tracking.tracker import Media, Table
from dist_mnist.training.build import build_training_state, describe
from dist_mnist.training.evaluation import Evaluation, numbers, score
from dist_mnist.training.loop import fit
from dist_mnist.training.recorder import Launch, Position, Recorder, open_recorder
from dist_mnist.training.scores import MOST_MISTAKES, calibration
from dist_mnist.training.state import TrainingState, resume

logger = logging.getLogger(__name__)

EXAMPLES_OF_A_CELL, MOST_EXAMPLES = 8, 400  # of the confusion matrix, in the report
MOST_CLASSES = 100  # of which each is compared with each


class Result(NamedTuple):
    """A run's directory, and the best checkpoint's score on the test set."""

    run_dir: Path
    test: Evaluation


def train(config: Config) -> Result:
    """Train as a config says, in this process: for notebooks and scripts.

    The same run as `python -m dist_mnist`, which can be continued with the same `run_dir`.

    Args:
        config: As `compose_config` returns it.

    Raises:
        InputError: Something in the config cannot be used; nothing was overwritten.
    """
    with session(config.trainer.device, config.trainer.timeout_seconds) as world:
        log_to_console(world.is_main)
        return run(config, world)


def run(config: Config, world: World, overrides: Sequence[str] = ()) -> Result:
    """Train as the config says, or continue its run directory, and test the result.

    Every rank must call it; rank 0 writes.

    Args:
        config: The config of the run.
        world: This process.
        overrides: What was given on the command line, to be written down.

    Returns:
        The run directory and the score, the same on every rank.

    Raises:
        InputError: Something in the config cannot be used; nothing was overwritten.
        AgreedStop: A signal asked the run to stop; its last step is in a checkpoint.
    """
    signals.raise_if_stopped()
    started = perf_counter()
    splits = load_splits(config.data, config.seed, config.trusted_modules, world).to(world.device)
    config = with_num_classes(config, len(splits.classes))
    watchdog.enter(Phase.START_UP, 0)  # from here on, ranks wait for each other
    if world.size > 1:  # the facts take 10 ms to collect
        require_same(world, _shared_facts(config, world, splits))
    state = build_training_state(config, world, splits)
    del splits  # what the state has of it is padded
    run_dir = choose_run_directory(config, world)
    timeout = config.trainer.timeout_seconds
    with lock_run_directory(run_dir, config.resume, timeout) if world.is_main else nullcontext():
        resume(state, run_dir)
        taken = _take_weights(state)
        launch = Launch(overrides, describe(state), world.size)
        with ending_together(world), _recorder(state, run_dir, launch) as recorder:
            logger.info("%s\n%srun directory: %s\n", launch.description, taken, run_dir)
            _fit(state, run_dir, recorder)
            state.end_training()
            test = _test(state, run_dir, recorder)
            recorder.finish(run_dir / "checkpoints" / "best.safetensors")
            log_result(numbers("test", test), perf_counter() - started, run_dir)
    return Result(run_dir, test)


def _shared_facts(config: Config, world: World, splits: DataSplits) -> dict[str, Any]:
    """Return what must be alike on all ranks: everything but paths and tracking."""
    plain = plain_config(config)
    own = {
        "run_dir": None,
        "tracking": None,
        "data": {**plain["data"], "root": None},
        # What rank 0 reads there, all ranks get.
        "transfer": {**plain["transfer"], "checkpoint": config.transfer.checkpoint is not None},
    }
    return {
        **{**plain, **own},
        "the device": world.device.type,
        **splits.fingerprint,
        "the version of dist_mnist": __version__,
        "the version of torch": str(torch.__version__),
    }


def _take_weights(state: TrainingState) -> str:
    """Give a new run the weights that `transfer.checkpoint` names, as rank 0 reads them.

    A run that continues has its own weights already, and needs that file no more.

    Returns:
        What was taken from it and what was not, in a few lines; nothing without such a file.

    Raises:
        InputError: It cannot be read, or nothing in it fits.
    """
    transfer, world = state.config.transfer, state.world
    if transfer.checkpoint is None or state.progress.step:
        return ""
    read = read_weights(Path(transfer.checkpoint)) if world.is_main else {}
    weights = broadcast_object(world, read)
    found = take_weights(state.model, weights)
    listed = describe_transfer(found, state.model, weights, transfer.freeze)
    return f"weights of {transfer.checkpoint}\n{listed}\n"


def _recorder(state: TrainingState, run_dir: Path, launch: Launch) -> Any:
    """Return a context manager: what rank 0 writes to, or nothing on the other ranks."""
    if not state.world.is_main:
        return nullcontext(Recorder())
    progress, finished_epochs = state.progress, state.epoch
    lines = progress.step_lines + finished_epochs
    if state.is_over:  # an epoch that was cut short stays, since it will not be trained to its end
        finished_epochs = math.ceil(progress.step / len(state.order))
    position = Position(progress.step, finished_epochs, lines)
    return open_recorder(run_dir, state.config, launch, position)


def _fit(state: TrainingState, run_dir: Path, recorder: Recorder) -> None:
    if state.is_over:
        logger.info("already finished with step %d: testing it again", state.progress.step)
    elif state.progress.step:
        logger.info("continuing after step %d of %d", state.progress.step, state.last_step)
    try:
        with explaining_unused(state.model):
            fit(state, recorder)
    except signals.Stopped as stop:
        logger.info(
            "stopped by %s after step %d: start again with %s to continue",
            *(stop, state.progress.step, to_copy("run_dir", str(run_dir))),
        )
        raise


def _test(state: TrainingState, run_dir: Path, recorder: Recorder) -> Evaluation:
    """Score the best checkpoint on the test set, this once, and record it with pictures."""
    watchdog.enter(Phase.TEST, state.progress.step)
    weights = _best_weights(state, run_dir) if state.world.is_main else None
    weights = broadcast_object(state.world, weights)
    if weights is not None:
        load_weights(state.model, weights)
    state.splits = state.splits.without_train()  # makes room for the pictures
    started = perf_counter()
    test = score(state, state.splits.test)
    seconds = perf_counter() - started
    watchdog.pause()
    if state.world.is_main:
        examples = test.examples(
            len(state.splits.classes), MOST_MISTAKES, EXAMPLES_OF_A_CELL, MOST_EXAMPLES
        )
        media = _draw(state, test, examples, run_dir)
        recorder.record(_test_line(state, test, examples, seconds), media)
    return test


def _best_weights(state: TrainingState, run_dir: Path) -> dict[str, torch.Tensor] | None:
    try:
        content = checkpoint.load(run_dir / "checkpoints" / "best.safetensors")
        weights: dict[str, torch.Tensor] = content["model"]
        load_weights(state.model, weights)  # if they do not fit, no rank must get them
    except InputError as error:
        logger.warning("%s Testing the last state instead.", error)
        return None
    return weights


def _test_line(
    state: TrainingState, test: Evaluation, examples: list[list[Any]], seconds: float
) -> dict[str, Any]:
    step, classes = state.progress.step, len(state.splits.classes)
    return {
        "kind": "test",
        "epoch": math.ceil(step / len(state.order)),
        "step": step,
        **numbers("test", test),
        "seconds": round(seconds, 3),
        **({"test/confusion": test.confusion(classes).tolist()} if classes <= MOST_CLASSES else {}),
        "test/mistakes": [asdict(mistake) for mistake in test.worst_mistakes(MOST_MISTAKES)],
        "test/examples": examples,
        "test/calibration": calibration(test).rows(),
        "classes": list(state.splits.classes),
    }


def _draw(
    state: TrainingState, test: Evaluation, examples: list[list[Any]], run_dir: Path
) -> Media:
    """Draw the pictures of the run; return those, and a table of mistakes, for the trackers.

    The work is done by now, so a run that cannot have its pictures ends well without them.
    """
    classes, samples = state.splits.classes, state.splits.test
    worst = test.worst_mistakes(MOST_MISTAKES)
    places = torch.tensor([m.index for m in worst], dtype=torch.int64)
    images = samples[places.to(samples.labels.device)][0].cpu()
    mistakes = [replace(mistake, index=place) for place, mistake in enumerate(worst)]
    shown = test.most_confused(MOST_CLASSES, len(classes))
    confusion = test.confusion_among(shown, len(classes))
    try:
        chosen = torch.tensor([index for index, *_ in examples], dtype=torch.int64)
        pictures.draw_examples(run_dir, samples[chosen.to(samples.labels.device)][0].cpu())
        drawn = pictures.draw_all(run_dir, confusion, mistakes, images, classes, shown.tolist())
    except Exception as error:
        drawn = []
        logger.warning("the run is complete, but without its pictures: %s", one_line(error)[:300])
    images = images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)
    rows = [
        [images[m.index], classes[m.label], classes[m.prediction], m.confidence] for m in mistakes
    ]
    table = Table(["image", "label", "prediction", "confidence"], rows)
    return {f"plots/{path.stem}": path for path in drawn} | {"test/worst_mistakes": table}
