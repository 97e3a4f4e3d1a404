"""One whole run: its directory, its data, the training, the test at the end, the pictures."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config, plain_config
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed import signals, whereabouts
from dist_mnist.distributed.gradients import (
    World,
    all_reduce_max,
    barrier,
    broadcast_object,
    is_restart,
)
from dist_mnist.distributed.whereabouts import Phase
from dist_mnist.record import checkpoint
from dist_mnist.record import pictures as report
from dist_mnist.record.console import describe, log_to_file, result_line
from dist_mnist.record.directory import choose_run_directory, lock_run_directory, write_config
from dist_mnist.record.journal import Journal, Line
from dist_mnist.record.recorder import Recorder
from dist_mnist.record.tracker import Table
from dist_mnist.record.wandb_run import start_tracking
from dist_mnist.training.build import TrainingState, build_training_state, load_weights, restore
from dist_mnist.training.finite import NonFiniteError
from dist_mnist.training.loop import evidence, fit, score
from dist_mnist.training.progress import Evaluation

logger = logging.getLogger(__name__)


def run(config: Config, world: World, overrides: Sequence[str] = ()) -> Evaluation:
    """Train as the config says, or go on where its run directory left off, and test the result.

    Every rank must call it; rank 0 writes.

    Args:
        config: What to train.
        world: This process.
        overrides: What was given on the command line, to be written down.

    Returns:
        The answers of the best checkpoint to the test set, the same on every rank.

    Raises:
        InputError: Something in the config cannot be used; nothing was overwritten.
    """
    signals.obey()
    started = perf_counter()
    splits = load_splits(config.data, config.seed, config.trusted_modules).to(world.device)
    whereabouts.enter(0, Phase.START_UP, "start-up")  # from here on all ranks go together
    state = build_training_state(config, world, splits)
    run_dir = choose_run_directory(config, world)
    timeout = config.trainer.timeout_seconds
    with lock_run_directory(run_dir, config.resume, timeout) if world.is_main else nullcontext():
        step_lines = _resume(state, run_dir)
        with (
            _ending_together(world),
            _recorder(state, run_dir, overrides, step_lines) as recorder,
        ):
            logger.info("%s\nrun directory: %s\n", describe(state), run_dir)
            fit(state, recorder)
            test = _test(state, run_dir, recorder)
            if recorder:
                recorder.tracker.finish(exit_code=0)
            logger.info(result_line(test, perf_counter() - started, run_dir))
    return test


@contextmanager
def _ending_together(world: World) -> Iterator[None]:
    """Let no rank end before rank 0 has saved: torchrun would see it, and end rank 0 as well."""
    try:
        yield
    except signals.AgreedStop:
        whereabouts.leave()
        barrier(world)
        raise


def _resume(state: TrainingState, run_dir: Path) -> int:
    """Restore the directory's newest checkpoint, as rank 0 finds it, on every rank.

    Returns:
        How many lines of steps the journal had when it was saved.
    """
    found = checkpoint.newest(run_dir) if state.world.is_main else None
    (was_started,) = all_reduce_max(state.world, [is_restart()])  # only some agents may count it
    if found is None and state.world.is_main and was_started:
        logger.warning(
            "this launch was started before, and run_dir=%s holds no checkpoint: it begins anew. "
            "If it had saved one, it was under another run_dir, or on storage that this machine "
            "does not see.",
            run_dir,
        )
    found = broadcast_object(state.world, found)
    if found is None:
        return 0
    restore(state, found)
    lines = found.get("journal_step_lines")
    return lines if isinstance(lines, int) else 0


@contextmanager
def _recorder(
    state: TrainingState, run_dir: Path, overrides: Sequence[str], step_lines: int
) -> Iterator[Recorder | None]:
    """Open what rank 0 writes to; end the wandb run as failed where something goes wrong."""
    if not state.world.is_main:
        yield None
        return
    config = state.config
    write_config(run_dir, config, overrides)
    with log_to_file(run_dir), closing(Journal(run_dir)) as journal:
        lines = _cut_back(journal, state, step_lines)
        tracker = start_tracking(config.tracking, run_dir, plain_config(config), lines)
        recorder = Recorder(run_dir, journal, tracker, config.trainer.keep_checkpoints)
        try:
            yield recorder
        except BaseException as error:
            _leave(error, state, recorder)
            raise


def _cut_back(journal: Journal, state: TrainingState, step_lines: int) -> list[Line]:
    """Set the journal back to where the state is; return what is left of it."""
    step, steps_per_epoch = state.progress.step, len(state.order)
    # An epoch that was cut short is trained to its end, unless there is nothing left to train.
    is_over = step >= state.last_step
    if is_over:
        logger.info("already finished with step %d: testing it again", step)
    elif step:
        logger.info("continuing after step %d of %d", step, state.last_step)
    finished_epochs = -(-step // steps_per_epoch) if is_over else step // steps_per_epoch
    lines = journal.cut_back(step, finished_epochs)
    lost = step_lines + step // steps_per_epoch - len(lines)
    if lost > 0:
        logger.warning(
            "%s has lost %d of the lines that it had when step %d was saved: pictures and wandb "
            "will lack them.",
            *(journal.path, lost, step),
        )
    return lines


def _leave(error: BaseException, state: TrainingState, recorder: Recorder) -> None:
    """Write down what cuts a run short, and end the wandb run."""
    if isinstance(error, NonFiniteError):
        recorder.save_evidence({**evidence(state, error.step), "reason": str(error)}, error.step)
    is_stopped = isinstance(error, signals.Stopped)
    if is_stopped:
        logger.info(
            "stopped by %s after step %d: run_dir=%s goes on from there",
            *(error, state.progress.step, recorder.run_dir),
        )
    recorder.tracker.finish(exit_code=signals.STOPPED if is_stopped else 1)


def _test(state: TrainingState, run_dir: Path, recorder: Recorder | None) -> Evaluation:
    """Look at the test set, this once, with the best checkpoint."""
    step = state.progress.step
    whereabouts.enter(step, Phase.TEST, f"the test after step {step}")
    best = run_dir / "checkpoints" / "best.pt"
    weights = _best_weights(state, best) if recorder else None
    weights = broadcast_object(state.world, weights)
    if weights is not None:
        load_weights(state.model, weights)
    state.splits = state.splits.without_train()  # room for the pictures
    started = perf_counter()
    test = score(state, state.splits.test)
    whereabouts.leave()
    assert test is not None
    if recorder:
        _report(state, test, perf_counter() - started, recorder)
        recorder.tracker.keep(best)
    return test


def _best_weights(state: TrainingState, path: Path) -> dict[str, torch.Tensor] | None:
    try:
        weights: dict[str, torch.Tensor] = checkpoint.load(path)["model"]
        load_weights(state.model, weights)  # or another network's best one would stop every rank
    except InputError as error:
        logger.warning("%s Testing the last state instead.", error)
        return None
    return weights


def _report(state: TrainingState, test: Evaluation, seconds: float, recorder: Recorder) -> None:
    """Draw the pictures and record them with the test's line."""
    step, classes = state.progress.step, state.splits.classes
    images = state.splits.test.images.cpu()
    mistakes = test.worst_mistakes(report.MISTAKES_SHOWN)
    pictures = report.draw_all(recorder.run_dir, test, images, classes)
    table = Table(
        ["image", "label", "prediction", "confidence"],
        [
            [images[m.index, 0], classes[m.label], classes[m.prediction], m.confidence]
            for m in mistakes
        ],
    )
    recorder.record(
        {
            "kind": "test",
            "epoch": -(-step // len(state.order)),
            "step": step,
            "test/loss": test.loss,
            "test/accuracy": test.accuracy,
            "test/correct": test.correct,
            "test/count": test.count,
            "seconds": round(seconds, 3),
            "test/confusion": test.confusion(len(classes)).tolist(),
            "test/mistakes": [asdict(mistake) for mistake in mistakes],
        },
        {**{f"plots/{path.stem}": path for path in pictures}, "test/worst_mistakes": table},
    )
