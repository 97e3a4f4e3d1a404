"""The training loop: fit -> train_epoch -> step. Read it from top to bottom, then step.py."""

import logging
import math
from time import perf_counter
from typing import Any

import torch

from dist_mnist.distributed import signals, watchdog
from dist_mnist.distributed.stopping import StopAgreement, agreed_stop
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.record.console import HEADER, epoch_row
from dist_mnist.training.evaluation import journal_values, validate
from dist_mnist.training.progress import RunningMetrics, Totals, epoch_line, step_line
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.resume import checkpoint_content
from dist_mnist.training.selection import criterion, is_best
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import non_finite_error, set_train_mode

logger = logging.getLogger(__name__)


def fit(state: TrainingState, recorder: Recorder) -> None:
    """Train from where the state is to its last step; every rank must call it.

    Raises:
        NonFiniteError: A loss, a gradient or a weight is not finite; the checkpoints are good.
        AgreedStop: One of the ranks got a signal; all of them have stopped after the same step.
    """
    if not state.is_over:
        logger.info("%s\n%s", HEADER, "-" * len(HEADER))
    started, first_step = perf_counter(), state.progress.step
    stop = StopAgreement(state.world)
    with signals.deferred():
        while not state.is_over:
            train_epoch(state, recorder, stop)
            line = finish_epoch(state, recorder)
            seconds_per_step = (perf_counter() - started) / (state.progress.step - first_step)
            seconds_left = seconds_per_step * (state.last_step - state.progress.step)
            logger.info(epoch_row(line, state.config.trainer.epochs, seconds_left))
            watchdog.enter(Phase.END_OF_EPOCH, state.progress.step)
            if stop.now():
                raise agreed_stop()


def train_epoch(state: TrainingState, recorder: Recorder, stop: StopAgreement) -> None:
    """Train to the end of the epoch, or to the last step if that comes first.

    It continues from the middle of an epoch if `state` is there.

    Raises:
        NonFiniteError: As in `fit`.
        AgreedStop: As in `fit`; the last step is in a checkpoint.
    """
    trainer, progress, epoch = state.config.trainer, state.progress, state.epoch
    state.metrics = RunningMetrics(state.world, progress.epoch_totals)
    started = perf_counter() - progress.epoch_seconds
    set_train_mode(state)
    for batch in state.batches():
        state.step(batch)
        progress.step += 1
        at_end = progress.step == state.last_step or progress.step % len(state.order) == 0
        logs = progress.step % trainer.log_every_steps == 0
        stops = not at_end and stop.after_step()
        every = trainer.checkpoint_every_steps
        saves = stops or (not at_end and every is not None and progress.step % every == 0)
        if logs or saves or at_end:
            progress.epoch_totals = state.metrics.reduced()
            progress.epoch_seconds = perf_counter() - started
            _check_skipped_steps(state)
        if saves or at_end:
            _check_weights(state)
        if logs:
            recorder.record(step_line(progress, epoch + 1, state.learning_rate))
        if saves:
            recorder.save(checkpoint_content(state), progress.step, is_best=False)
        if stops:
            raise agreed_stop()


def finish_epoch(state: TrainingState, recorder: Recorder) -> dict[str, Any]:
    """Validate, record and save; return the epoch's journal line."""
    progress = state.progress
    validation = validate(state)
    accuracy = criterion(validation, state.config.data.balance)
    is_finished = progress.step % len(state.order) == 0
    line = epoch_line(
        progress, state.epochs_begun, state.learning_rate, journal_values("validation", validation)
    )
    best = is_best(progress, accuracy, is_finished)
    if is_finished:
        progress.epoch_totals = progress.logged_totals = Totals()
        progress.epoch_seconds = 0.0
        progress.best_accuracy = (accuracy or 0.0) if best else progress.best_accuracy
    recorder.record(line)
    recorder.save(checkpoint_content(state), progress.step, best)
    return line


def _check_skipped_steps(state: TrainingState) -> None:
    """Count the steps that the gradient scaler skipped; without one, a skip is an error."""
    progress, count = state.progress, state.finite_check.skipped_steps()
    if state.scaler.is_enabled():
        progress.skipped_steps += count
        if not math.isfinite(progress.epoch_totals.loss_sum):
            raise non_finite_error(state, progress.step - 1, "by")
    elif count:
        raise non_finite_error(state, progress.step - count)


def _check_weights(state: TrainingState) -> None:
    """Refuse to save weights that are not finite."""
    finite = [parameter.isfinite().all() for parameter in state.model.parameters()]
    if not bool(torch.stack(finite).all()):  # waits for the device once
        raise non_finite_error(state, state.progress.step - 1, "by")
