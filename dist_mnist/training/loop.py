"""The training loop: fit -> train_epoch -> train_step."""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from dist_mnist.data.augmentation import NUMBERS_PER_IMAGE, augment
from dist_mnist.data.sampler import DistributedBatchSampler
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.data.splits import ImageTensors
from dist_mnist.distributed import signals, whereabouts
from dist_mnist.distributed.gradients import without_sync
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.distributed.whereabouts import Phase
from dist_mnist.models.precision import autocast
from dist_mnist.record.console import HEADER, epoch_row
from dist_mnist.record.recorder import Recorder
from dist_mnist.training.build import TrainingState, checkpoint_content
from dist_mnist.training.evaluation import evaluate
from dist_mnist.training.finite import NonFiniteError
from dist_mnist.training.progress import Evaluation, RunningMetrics, Totals
from dist_mnist.training.shards import SHARDS, learn_in_shards

logger = logging.getLogger(__name__)


def fit(state: TrainingState, recorder: Recorder | None) -> None:
    """Train from where the state is to its last step. Every rank must call it.

    Args:
        state: What to train; a fresh or a restored one.
        recorder: Takes the journal's lines and the checkpoints; None on ranks other than 0.

    Raises:
        NonFiniteError: A loss or a gradient is not finite; the checkpoints are good ones.
        AgreedStop: A signal has reached one of the ranks; all have stopped after the same step.
    """
    if state.progress.step < state.last_step:
        logger.info("%s\n%s", HEADER, "-" * len(HEADER))
    started, first_step = perf_counter(), state.progress.step
    stop = StopAgreement(state.world)
    with signals.held():
        while state.progress.step < state.last_step:
            epoch = state.progress.step // len(state.order)
            train_epoch(state, epoch, recorder, stop)
            line = _finish_epoch(state, epoch, recorder)
            step = state.progress.step
            whereabouts.enter(step, Phase.END_OF_EPOCH, f"the end of the epoch, step {step}")
            seconds_per_step = (perf_counter() - started) / (state.progress.step - first_step)
            left = seconds_per_step * (state.last_step - state.progress.step)
            logger.info(epoch_row(line, state.config.trainer.epochs, left))
            if stop.now():
                raise stop.error()


def train_epoch(
    state: TrainingState, epoch: int, recorder: Recorder | None, stop: StopAgreement | None = None
) -> None:
    """Train to the end of an epoch, or to the last step where that comes first.

    Args:
        state: What to train; its step may be in the middle of the epoch.
        epoch: From 0.
        recorder: As in `fit`.
        stop: Tells when a signal has come.

    Raises:
        NonFiniteError: As `fit`.
        AgreedStop: As `fit`, with a checkpoint of the last step made.
    """
    trainer, progress = state.config.trainer, state.progress
    metrics = RunningMetrics(state.world, progress.epoch_totals)
    started = perf_counter() - progress.epoch_seconds
    state.waiting.begin()
    state.parallel_model.train()
    for batch_size, images, labels in _batches(state, epoch):
        train_step(state, images, labels, batch_size, metrics)
        progress.step += 1
        at_end = progress.step == state.last_step or progress.step % len(state.order) == 0
        logs = progress.step % trainer.log_every_steps == 0
        stops = stop is not None and not at_end and stop.after_step()
        is_due = trainer.checkpoint_every_steps and (
            progress.step % trainer.checkpoint_every_steps == 0
        )
        saves = stops or (is_due and not at_end)
        if logs or saves or at_end:
            progress.epoch_totals = metrics.reduced()
            progress.epoch_seconds = perf_counter() - started
            _count_skipped_steps(state)
        if saves or at_end:
            _check_weights(state)
        if logs:
            _log_step(state, epoch, recorder)
        if saves and recorder:
            recorder.save(checkpoint_content(state), progress.step, is_best=False)
        if stop and stops:
            raise stop.error()
        if at_end:
            break


def train_step(
    state: TrainingState,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    metrics: RunningMetrics,
) -> None:
    """Make one optimizer step on the exact mean gradient of a global batch.

    Args:
        state: What to train.
        images: This rank's share, uint8 of shape (share, C, H, W); the share may be empty.
        labels: int64 of shape (share,).
        batch_size: The number of samples in the global batch, over all ranks.
        metrics: Counts what the network scores.
    """
    config, world = state.config, state.world
    step = state.progress.step
    whereabouts.enter(step + 1, Phase.STEP, f"step {step + 1}")
    for group, learning_rate in zip(
        state.optimizer.param_groups, state.learning_rates, strict=True
    ):
        group["lr"] = learning_rate * state.schedule(step)
    if config.trainer.reproducible:
        learn = partial(_learn_shard, state, batch_size, metrics)
        learn_in_shards(state.model, world, images, labels, batch_size, learn, state.waiting)
    else:
        _learn_share(state, images, labels, batch_size, metrics)
    _apply_gradients(state)


def _learn_share(
    state: TrainingState,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    metrics: RunningMetrics,
) -> None:
    """Leave the mean gradient of the global batch in every parameter."""
    config, world = state.config, state.world
    # DDP takes the mean over the ranks of each rank's gradient: weighted so, it is the sum over
    # all samples divided by their number, however unevenly the ranks share them.
    weight = world.size / batch_size
    if len(labels) > 0:
        images = _augmented(state, images, batch_size, world.rank, world.size)
    else:  # still needed in the all-reduce, with a gradient of nothing
        images, labels = state.splits.train.images[:2], state.splits.train.labels[:2]
        weight = 0.0
    seed_device(world.device, keyed_seed(config.seed, "step", state.progress.step, world.rank))
    pieces = [(images, labels)]
    if size := config.trainer.micro_batch_size:
        pieces = list(zip(images.split(size), labels.split(size), strict=True))
    for index, (some_images, some_labels) in enumerate(pieces):
        last = index == len(pieces) - 1
        with nullcontext() if last else without_sync(state.parallel_model):
            losses, outputs = _add_gradients(state, some_images, some_labels, weight)
        if weight:
            metrics.update(losses, outputs, some_labels)


def _learn_shard(
    state: TrainingState,
    batch_size: int,
    metrics: RunningMetrics,
    shard: int,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Add a shard's part in the mean gradient of the global batch to every parameter."""
    config, device = state.config, state.world.device
    images = _augmented(state, images, batch_size, shard, SHARDS)
    seed_device(device, keyed_seed(config.seed, "step", state.progress.step, shard))
    losses, outputs = _add_gradients(state, images, labels, 1 / batch_size)
    metrics.update(losses, outputs, labels)


def _augmented(
    state: TrainingState, images: torch.Tensor, batch_size: int, part: int, parts: int
) -> torch.Tensor:
    """Change one part's images by its share of random numbers for the whole global batch."""
    config, world = state.config, state.world
    if config.augmentation.changes_nothing:
        return images
    seed_device(world.device, keyed_seed(config.seed, "augmentation", state.progress.step))
    numbers = torch.rand(NUMBERS_PER_IMAGE, batch_size, device=world.device)
    return augment(images, config.augmentation, numbers[:, part::parts])


def _add_gradients(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `weight` times the gradient of the summed loss; return the losses and the outputs."""
    images = state.splits.normalization(images)
    with autocast(state.world.device, state.dtype):
        outputs = state.parallel_model(images)
    losses = state.loss(outputs.float(), labels)
    step = state.progress.step + 1
    whereabouts.enter(step, Phase.GRADIENTS, f"the gradients of step {step}")
    # The gradient of weight * losses.sum(), without computing that; and of nothing finite where a
    # loss is not, so that every rank comes to know of it.
    state.scaler.scale(losses).backward(torch.add(weight, losses.detach(), alpha=0.0))
    return losses.detach(), outputs.detach()


def _apply_gradients(state: TrainingState) -> None:
    """Step the optimizer and clear the gradients.

    Raises:
        NonFiniteError: A gradient is not finite, and the step is not made.
    """
    state.finite_check.look()
    if state.finite_check.asks_every_step and state.finite_check.steps_not_made():
        raise _non_finite(state, state.progress.step)
    clip = state.config.trainer.gradient_clip_norm
    if clip is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    # What zero_grad does, without telling a profiler, which a small network's step would feel.
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _count_skipped_steps(state: TrainingState) -> None:
    """Count what the gradient scaler has skipped; without one, no step may be missing."""
    progress, count = state.progress, state.finite_check.steps_not_made()
    if state.scaler.is_enabled():
        progress.skipped_steps += count
        if not math.isfinite(progress.epoch_totals.loss_sum):
            raise _non_finite(state, progress.step - 1, "by")
    elif count:
        raise _non_finite(state, progress.step - count)


def _check_weights(state: TrainingState) -> None:
    """See that what is about to be saved is worth it."""
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        raise _non_finite(state, state.progress.step - 1, "by")


def _non_finite(state: TrainingState, steps_made: int, when: str = "in") -> NonFiniteError:
    rate = state.learning_rates[0] * state.schedule(steps_made)
    scale = state.scaler.get_scale()
    return NonFiniteError(
        f"a loss, gradient or weight is not finite {when} step {steps_made + 1} (learning rate "
        f"{rate:g}, loss scale {scale:g}): lower optimizer.lr, or set trainer.gradient_clip_norm.",
        steps_made + 1,
    )


def evidence(state: TrainingState, step: int) -> dict[str, Any]:
    """Return what is needed to look into a step that was not finite.

    A checkpoint, of the weights before the step where the optimizer has not made it, and beside it
    the step's global batch (`indices` into the training part, `images`, `labels`) and, where they
    are still there, the norms of the gradients (`gradient_norms`).

    Args:
        state: As it was when the error was raised.
        step: The step, from 1.
    """
    epoch, batch = divmod(step - 1, len(state.order))
    whole = replace(state.world, rank=0, size=1)
    indices = next(
        iter(DistributedBatchSampler(state.order, whole, state.config.seed, epoch, batch))
    )
    images, labels = state.splits.train[indices]
    norms = {
        name: float(parameter.grad.norm())
        for name, parameter in state.model.named_parameters()
        if parameter.grad is not None
    }
    batch_content = {"indices": indices, "images": images, "labels": labels}
    return {**checkpoint_content(state), **batch_content, "gradient_norms": norms}


def score(state: TrainingState, dataset: ImageTensors) -> Evaluation | None:
    """Evaluate the model on one of the state's sets; None where the set is empty."""
    if len(dataset) == 0:
        return None
    step = state.progress.step
    whereabouts.enter(step, Phase.EVALUATION, f"the evaluation after step {step}")
    return evaluate(
        state.model,
        state.loss,
        dataset,
        state.splits.normalization,
        state.world,
        state.config.trainer.evaluation_batch_size,
        state.dtype,
    )


def _batches(state: TrainingState, epoch: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield what is left of an epoch: each global batch's size and this rank's share of it."""
    first = state.progress.step - epoch * len(state.order)
    sampler = DistributedBatchSampler(state.order, state.world, state.config.seed, epoch, first)
    shares = tqdm(
        sampler,
        desc=f"epoch {epoch + 1}",
        initial=first,
        total=len(state.order),
        unit="step",
        leave=False,
        disable=not (state.world.is_main and sys.stderr.isatty()),
    )
    for batch, share in enumerate(shares, start=first):
        yield state.order.batch_size(batch), *state.splits.train[share]


def _log_step(state: TrainingState, epoch: int, recorder: Recorder | None) -> None:
    progress = state.progress
    recent = progress.epoch_totals - progress.logged_totals
    progress.logged_totals = progress.epoch_totals
    if recorder:
        recorder.record(
            {
                "kind": "step",
                "epoch": epoch + 1,
                "step": progress.step,
                "train/loss": _rounded(recent.loss),
                "train/accuracy": _rounded(recent.accuracy),
                **_pace(state),
            }
        )


def _epoch_line(
    state: TrainingState, epoch: int, validation: Evaluation | None, shares: list[float]
) -> dict[str, Any]:
    totals = state.progress.epoch_totals
    return {
        "kind": "epoch",
        "epoch": epoch + 1,
        "step": state.progress.step,
        "train/loss": _rounded(totals.loss),
        "train/accuracy": _rounded(totals.accuracy),
        "validation/loss": _rounded(validation.loss) if validation else None,
        "validation/accuracy": _rounded(validation.accuracy) if validation else None,
        "validation/correct": validation.correct if validation else 0,
        "validation/count": validation.count if validation else 0,
        "seconds": round(state.progress.epoch_seconds, 3),
        **_pace(state),
        **_shares(shares if state.world.device.type == "cpu" else []),
        **({"skipped_steps": state.progress.skipped_steps} if state.scaler.is_enabled() else {}),
    }


def _shares(shares: list[float]) -> dict[str, float]:
    """Return which rank the others waited for; on GPUs that is not known."""
    if not shares:
        return {}
    slowest = max(range(len(shares)), key=lambda rank: shares[rank])
    return {
        "slowest_rank": slowest,
        "slowest_rank_share": round(shares[slowest], 4),
        "mean_rank_share": round(sum(shares) / len(shares), 4),
    }


def _pace(state: TrainingState) -> dict[str, float]:
    seconds = state.progress.epoch_seconds
    return {
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "images_per_second": round(state.progress.epoch_totals.count / seconds, 1),
    }


def _rounded(value: float) -> float:
    """Drop the digits in which sums differ that were added up in another order."""
    return round(value, 7)


def _finish_epoch(state: TrainingState, epoch: int, recorder: Recorder | None) -> dict[str, Any]:
    """Validate, record and save; return the epoch's journal line.

    The best state is the finished epoch that validates best. An epoch that `max_steps` cut short is
    no rival for a finished one, or the result would depend on where a run was interrupted; it only
    stands in while there is none. Without a validation part the last state is the best.
    """
    progress = state.progress
    shares = state.waiting.computing_shares(state.world)
    validation = score(state, state.splits.validation)
    line = _epoch_line(state, epoch, validation, shares)
    is_finished = progress.step % len(state.order) == 0
    accuracy = validation.accuracy if validation else 0.0
    best = progress.best_accuracy
    is_best = validation is None or best is None or (is_finished and accuracy >= best)
    if is_finished:
        progress.epoch_totals = progress.logged_totals = Totals()
        progress.epoch_seconds = 0.0
        progress.best_accuracy = accuracy if is_best else best
    if recorder:
        recorder.record(line)
        recorder.save(checkpoint_content(state), progress.step, is_best)
    return line
