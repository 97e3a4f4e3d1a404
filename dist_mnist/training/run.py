"""One whole run: its data, its directory, the training, and the test at the end.

The order matters: nothing is written before the ranks agree and the directory is locked, and every
rank learns of a mistake before any rank waits for another.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from dist_mnist.config.overrides import to_copy
from dist_mnist.config.schema import Config, with_num_classes
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed import signals, watchdog
from dist_mnist.distributed.agreement import require_same_run
from dist_mnist.distributed.gradients import explaining_unused
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import ending_together
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.models.transfer import describe_transfer, take_weights
from dist_mnist.models.weights_file import Weights, read_weights
from dist_mnist.record.console import log_result, log_to_console
from dist_mnist.record.directory import choose_run_directory, lock_run_directory
from dist_mnist.training.build import build_training_state
from dist_mnist.training.description import describe
from dist_mnist.training.evaluation import Evaluation, journal_values
from dist_mnist.training.final_test import final_test
from dist_mnist.training.loop import fit
from dist_mnist.training.memory import explaining_memory
from dist_mnist.training.recorder import Recorder, Start, open_recorder
from dist_mnist.training.resume import resume
from dist_mnist.training.state import TrainingState

logger = logging.getLogger(__name__)


class Result(NamedTuple):
    """A run's directory, and the best checkpoint's score on the test set."""

    run_dir: Path
    test: Evaluation


def train(config: Config) -> Result:
    """Train in this process: for notebooks and scripts.

    It is the same run as `python -m dist_mnist`, which can be continued with the same `run_dir`.

    Raises:
        InputError: Something in the config cannot be used; nothing was overwritten.
    """
    with session(config.trainer.device, config.trainer.timeout_seconds) as world:
        log_to_console(world.is_main)
        return run(config, world)


def run(config: Config, world: World, overrides: Sequence[str] = ()) -> Result:
    """Train, or continue the run in `run_dir`, and test the result.

    Every rank must call it; rank 0 writes.

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
    if world.size > 1:  # collecting the values takes 10 ms
        require_same_run(world, config, splits.fingerprint)
    state = build_training_state(config, world, splits)
    del splits  # the state has a padded copy
    run_dir = choose_run_directory(config, world)
    timeout = config.trainer.timeout_seconds
    with lock_run_directory(run_dir, config.resume, timeout) if world.is_main else nullcontext():
        resume(state, run_dir)
        transferred = _transfer_weights(state)
        description = describe(state)
        start = _start(state, overrides, description)
        with (
            ending_together(world),
            _recorder(state, run_dir, start) as recorder,
            explaining_unused(state.model),
        ):
            logger.info("%s\n%srun directory: %s\n", description, transferred, run_dir)
            _fit(state, run_dir, recorder)
            state.end_training()
            test = final_test(state, run_dir, recorder)
            recorder.finish(run_dir / "checkpoints" / "best.safetensors")
            log_result(journal_values("test", test), perf_counter() - started, run_dir)
    return Result(run_dir, test)


def _transfer_weights(state: TrainingState) -> str:
    """Give a new run the weights in `transfer.checkpoint`, which rank 0 reads.

    A run that continues has its own weights already and does not need that file any more.

    Returns:
        A few lines that say which tensors were taken; empty without such a file.

    Raises:
        InputError: It cannot be read, or nothing in it fits.
    """
    transfer, world = state.config.transfer, state.world
    if transfer.checkpoint is None or state.progress.step:
        return ""
    path, classes = Path(transfer.checkpoint), state.splits.classes
    read = read_weights(path, state.model, classes) if world.is_main else Weights({}, [])
    weights = broadcast_object(world, read)
    transferred = take_weights(state.model, weights.tensors)
    listed = describe_transfer(transferred, state.model, weights, transfer.freeze)
    return f"weights of {transfer.checkpoint}\n{listed}\n"


def _start(state: TrainingState, overrides: Sequence[str], description: str) -> Start:
    progress = state.progress
    lines = progress.step_lines + state.epoch
    # The line of an epoch that max_steps cut short is kept: that epoch will not be finished.
    epochs = state.epochs_begun if state.is_over else state.epoch
    return Start(overrides, description, state.world.size, progress.step, epochs, lines)


def _recorder(
    state: TrainingState, run_dir: Path, start: Start
) -> AbstractContextManager[Recorder]:
    if not state.world.is_main:
        return nullcontext(Recorder())
    return open_recorder(run_dir, state.config, state.plain_config, start)


def _fit(state: TrainingState, run_dir: Path, recorder: Recorder) -> None:
    if state.is_over:
        logger.info("already finished at step %d: testing again", state.progress.step)
    elif state.progress.step:
        logger.info("continuing after step %d of %d", state.progress.step, state.last_step)
    batch_size = state.config.trainer.global_batch_size
    advice = f"lower trainer.global_batch_size={batch_size}, or set trainer.micro_batch_size"
    try:
        with explaining_memory(advice):
            fit(state, recorder)
    except signals.Stopped as stop:
        logger.info(
            "stopped by %s after step %d: start again with %s to continue",
            *(stop, state.progress.step, to_copy("run_dir", str(run_dir))),
        )
        raise
