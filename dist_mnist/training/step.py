"""One optimizer step on the exact mean gradient of a global batch."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn

from dist_mnist.data.augmentation import Changes, augment, draw_changes
from dist_mnist.data.images import Batch
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.gradients import require_averaged, without_sync
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.models.precision import autocast
from dist_mnist.models.transfer import frozen_norms
from dist_mnist.training.finite import NonFiniteError
from dist_mnist.training.state import TrainingState


def set_train_mode(state: TrainingState) -> None:
    """Put the network in train mode, but batch norm that is frozen in this epoch in eval mode."""
    state.parallel_model.train()
    for network in state.replicas:
        network.train()
        for norm in frozen_norms(network, state.config.transfer.frozen_in(state.epoch)):
            norm.eval()


def step(state: TrainingState, batch: Batch) -> None:
    """Make one optimizer step; every rank must call it with its share of the batch.

    Everything that depends on the number of the step happens here: learning rates, images, seeds.
    The rest is `compute`, or a CUDA graph of it.

    Raises:
        NonFiniteError: A gradient is not finite; the step was not made.
        RuntimeError: A parameter got no gradient, and DDP did not look for such parameters; the
            step was not made.
    """
    world = state.world
    watchdog.enter(Phase.STEP, state.progress.step + 1)
    set_learning_rates(state)
    changes = draw_batch_changes(state, batch.size).at(slice(world.rank, None, world.size))
    images, labels = transform(state, batch, changes)
    seed_step(state, world.rank)
    losses, outputs = state.compute(images, labels, batch.size)
    if len(labels) > 0:
        state.metrics.update(losses, outputs, labels)


def set_learning_rates(state: TrainingState) -> None:
    """Set the learning rate of every parameter group for the step that is about to be made."""
    factor = state.schedule(state.progress.step)
    for group, learning_rate in zip(
        state.optimizer.param_groups, state.learning_rates, strict=True
    ):
        if isinstance(group["lr"], torch.Tensor):  # a CUDA graph reads it from there
            group["lr"].fill_(learning_rate * factor)
        else:
            group["lr"] = learning_rate * factor


def draw_batch_changes(state: TrainingState, batch_size: int) -> Changes:
    """Draw the random changes of a whole global batch, the same ones on every rank."""
    config, device = state.config, state.world.device
    if not config.augmentation.changes_nothing:
        seed_device(device, keyed_seed(config.seed, "augmentation", state.progress.step))
    return draw_changes(config.augmentation, batch_size, device)


def transform(
    state: TrainingState, batch: Batch, changes: Changes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the augmented images of a batch, uint8 (B, C, H, W), and their labels, int64 (B,).

    Args:
        changes: Of these images.
    """
    if len(batch.indices) == 0:
        return batch.samples[batch.indices]
    images = augment(batch.samples, batch.indices, state.config.augmentation, changes)
    return images, batch.samples.labels.index_select(0, batch.indices)


def seed_step(state: TrainingState, part: int) -> None:
    """Seed the network's random numbers, such as dropout, for one part of this step's batch."""
    seed = keyed_seed(state.config.seed, "step", state.progress.step, part)
    seed_device(state.world.device, seed)


def compute(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, backward and optimizer, for one share of a global batch.

    It waits for no device and decides nothing by the values in a tensor, so a CUDA graph can repeat
    it. On a CPU or MPS it also raises if a gradient is not finite.

    DDP averages the ranks' gradients. With the weight `world.size / batch_size` that average is the
    sum over all samples divided by their number, however unevenly they are shared.

    Args:
        images: uint8 of shape (share, C, H, W); the share may be empty.
        labels: int64 of shape (share,).
        batch_size: The number of samples in the global batch, over all ranks.

    Returns:
        The losses (share,) and the outputs (share, classes), float32 without gradients;
        undefined for an empty share.
    """
    weight = state.world.size / batch_size
    # The all-reduce needs a gradient from every rank: that of any two samples, times 0.
    if len(labels) == 0:
        images, labels = state.splits.train.block(slice(2))
        weight = 0.0
    micro_batch_size = state.config.trainer.micro_batch_size
    count = piece_count(batch_size, state.world.size, micro_batch_size)
    results = []
    for piece_images, piece_labels, is_last in pieces(images, labels, count):
        with nullcontext() if is_last else without_sync(state.parallel_model):
            results.append(add_gradients(state, piece_images, piece_labels, weight))
    require_averaged(state.parallel_model)
    apply_gradients(state)
    if len(results) == 1:
        return results[0]
    losses, outputs = map(torch.cat, zip(*results, strict=True))
    return losses, outputs


def piece_count(batch_size: int, world_size: int, micro_batch_size: int | None) -> int:
    """Return the number of pieces into which every rank cuts its share of a global batch.

    All ranks cut as the largest share requires, since synchronized batch norm waits for all of them
    in each forward pass.
    """
    largest_share = -(-batch_size // world_size)
    return -(-largest_share // micro_batch_size) if micro_batch_size else 1


def pieces(
    images: torch.Tensor, labels: torch.Tensor, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Yield at most `count` pieces of nearly the same size, and whether each is the last one."""
    if count == 1:  # the usual case: splitting would cost 1 % of a small step
        yield images, labels, True
        return
    count = min(count, len(labels))
    parts = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
    for number, (piece_images, piece_labels) in enumerate(parts, start=1):
        yield piece_images, piece_labels, number == count


def add_gradients(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `weight` times the gradient of the summed loss to every parameter's gradient.

    Args:
        images: uint8 of shape (B, C, H, W).
        labels: int64 of shape (B,).
        weight: 0 adds nothing.

    Returns:
        The losses (B,) and the outputs (B, classes), float32 without gradients.
    """
    losses, outputs = forward(state, state.parallel_model, images, labels)
    watchdog.enter(Phase.GRADIENTS, state.progress.step + 1)
    state.scaler.scale(losses).backward(loss_gradients(losses, weight))
    return losses.detach(), outputs.detach()


def forward(
    state: TrainingState, network: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map uint8 images (B, C, H, W) and their labels to losses (B,) and outputs (B, classes)."""
    images = state.splits.normalization(images)
    with autocast(state.world.device, state.dtype):
        outputs = network(images)
    outputs = outputs.float()
    return state.training_loss(outputs, labels), outputs


def loss_gradients(losses: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the gradients that backward starts with, for `weight` times the sum of the losses.

    That saves computing the sum. If a loss is not finite, its gradient is not finite either, so
    that every rank notices.
    """
    return torch.add(weight, losses.detach(), alpha=0.0)


def apply_gradients(state: TrainingState) -> None:
    """Step the optimizer and clear the gradients.

    Raises:
        NonFiniteError: A gradient is not finite; the step was not made.
    """
    # A learning rate of 0 would not be enough: the optimizer's momentum would build up meanwhile.
    for parameter in state.still_frozen:
        parameter.grad = None
    check = state.finite_check
    check.record()
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
        steps_done: The number of steps before it.
        when: "in" that step, or "by" that step if an earlier one may have been the first.
    """
    if steps_done == 0 and when == "in":  # nothing has changed the weights
        for name, weight in state.model.state_dict().items():
            if weight.is_floating_point() and not weight.isfinite().all():
                return NonFiniteError(
                    f"the network begins with weights that are not finite, such as {name}: check "
                    f"model= and transfer.checkpoint."
                )
    rate = state.learning_rates[0] * state.schedule(steps_done)
    scale = state.scaler.get_scale()
    return NonFiniteError(
        f"a loss, gradient or weight is not finite {when} step {steps_done + 1} (learning rate "
        f"{rate:g}, loss scale {scale:g}): lower optimizer.lr, or set trainer.gradient_clip_norm."
    )
