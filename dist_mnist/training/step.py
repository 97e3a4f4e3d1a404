"""One optimizer step on the exact mean gradient of a global batch."""

from contextlib import nullcontext

import torch

from dist_mnist.data.augmentation import NUMBERS_PER_IMAGE, augment
from dist_mnist.data.images import Batch
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.gradients import require_averaged, without_sync
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.models.precision import autocast
from dist_mnist.training.finite import NonFiniteError
from dist_mnist.training.state import TrainingState


def step(state: TrainingState, batch: Batch) -> None:
    """Make one optimizer step; every rank must call it with its share of the batch.

    DDP averages the ranks' gradients. With the weight `world.size / batch.size` that average is the
    sum over all samples divided by their number, however unevenly they are shared.

    Raises:
        NonFiniteError: A gradient is not finite; the step was not made.
        RuntimeError: A parameter had no part in the step, and DDP did not look for such ones; the
            step was not made.
    """
    world = state.world
    watchdog.enter(Phase.STEP, state.progress.step + 1)
    set_learning_rates(state)
    if len(batch.labels) > 0:
        images, labels = augmented(state, batch, world.rank, world.size), batch.labels
        weight = world.size / batch.size
    else:  # the all-reduce needs a gradient from every rank: that of any two samples, times 0
        images, labels = state.splits.train.images[:2], state.splits.train.labels[:2]
        weight = 0.0
    seed_step(state, world.rank)
    pieces = [(images, labels)]
    if size := state.config.trainer.micro_batch_size:
        pieces = list(zip(images.split(size), labels.split(size), strict=True))
    for index, (some_images, some_labels) in enumerate(pieces, start=1):
        is_last = index == len(pieces)
        with nullcontext() if is_last else without_sync(state.parallel_model):
            add_gradients(state, some_images, some_labels, weight)
    require_averaged(state.parallel_model)
    apply_gradients(state)


def set_learning_rates(state: TrainingState) -> None:
    """Set the learning rate of every parameter group for the step that is about to be made."""
    factor = state.schedule(state.progress.step)
    for group, learning_rate in zip(
        state.optimizer.param_groups, state.learning_rates, strict=True
    ):
        group["lr"] = learning_rate * factor


def augmented(state: TrainingState, batch: Batch, part: int, parts: int) -> torch.Tensor:
    """Return the batch's images, changed at random.

    Args:
        state: Its config says how far they are changed.
        batch: Every `parts`-th sample of the global batch, from number `part` on.
        part: From 0.
        parts: The number of parts that the global batch is split into.
    """
    config, device = state.config, state.world.device
    if config.augmentation.changes_nothing:
        return batch.images
    # Every part draws the numbers of the whole batch, so they do not depend on the number of parts.
    seed_device(device, keyed_seed(config.seed, "augmentation", state.progress.step))
    numbers = torch.rand(NUMBERS_PER_IMAGE, batch.size, device=device)
    return augment(batch.images, config.augmentation, numbers[:, part::parts])


def seed_step(state: TrainingState, part: int) -> None:
    """Seed what the network draws in this step, such as dropout, for one part of the batch."""
    seed = keyed_seed(state.config.seed, "step", state.progress.step, part)
    seed_device(state.world.device, seed)


def add_gradients(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor, weight: float
) -> None:
    """Add `weight` times the gradient of the summed loss to every parameter's gradient.

    Args:
        state: Whose parameters.
        images: uint8 of shape (B, C, H, W).
        labels: int64 of shape (B,).
        weight: With 0 the samples do not count in the metrics either.
    """
    images = state.splits.normalization(images)
    with autocast(state.world.device, state.dtype):
        outputs = state.parallel_model(images)
    losses = state.loss(outputs.float(), labels)
    watchdog.enter(Phase.GRADIENTS, state.progress.step + 1)
    # The gradient of weight * losses.sum(), without computing the sum. If a loss is not finite,
    # neither is its gradient, so that every rank gets to know.
    state.scaler.scale(losses).backward(torch.add(weight, losses.detach(), alpha=0.0))
    if weight:
        state.metrics.update(losses.detach(), outputs.detach(), labels)


def apply_gradients(state: TrainingState) -> None:
    """Step the optimizer and clear the gradients.

    Raises:
        NonFiniteError: A gradient is not finite; the step was not made.
    """
    check = state.finite_check
    check.check()
    if check.waits_every_step and check.skipped_steps():
        raise non_finite_error(state, state.progress.step)
    clip = state.config.trainer.gradient_clip_norm
    if clip is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    # The same as zero_grad, but without its profiler hook, which slows a small network down.
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def non_finite_error(state: TrainingState, steps_done: int, when: str = "in") -> NonFiniteError:
    """Return the error for a step that is not finite.

    Args:
        state: Whose step.
        steps_done: The steps before it.
        when: "in" that step, or "by" that step if it may have been an earlier one.
    """
    rate = state.learning_rates[0] * state.schedule(steps_done)
    scale = state.scaler.get_scale()
    return NonFiniteError(
        f"a loss, gradient or weight is not finite {when} step {steps_done + 1} (learning rate "
        f"{rate:g}, loss scale {scale:g}): lower optimizer.lr, or set trainer.gradient_clip_norm."
    )
