"""The one place where options are chosen: from a config to a training state."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dist_mnist.config.data_schema import Balance
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config, TrainerConfig
from dist_mnist.config.targets import instantiate
from dist_mnist.data.balance import class_weights, draw_bars
from dist_mnist.data.sampler import EpochOrder
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.data.splits import DataSplits
from dist_mnist.distributed.cpu_threads import choose_threads
from dist_mnist.distributed.gradients import parallelize
from dist_mnist.distributed.world import World, all_reduce_max, broadcast_object
from dist_mnist.models.build import build_loss, build_model
from dist_mnist.models.dry_run import Trial, trains_on_one_image, try_out
from dist_mnist.models.losses import Weighted
from dist_mnist.models.precision import compute_dtype, gradient_scaler, set_gpu_arithmetic
from dist_mnist.models.transfer import freeze, parameter_groups, thawing_parameters
from dist_mnist.training.cuda_graph import (
    GraphedCompute,
    capture_on_gpu,
    keep_learning_rates_in_place,
    objection,
)
from dist_mnist.training.finite import FiniteCheck
from dist_mnist.training.progress import Progress, RunningMetrics
from dist_mnist.training.schedules import build_schedule
from dist_mnist.training.shards import SHARDS, set_reproducible, step_in_shards
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import compute, piece_count, step

logger = logging.getLogger(__name__)

FEW_STEPS = 50  # of a network that learns from pictures


def build_training_state(config: Config, world: World, splits: DataSplits) -> TrainingState:
    """Build everything for a fresh run; the weights depend only on the seed.

    Args:
        config: The run's config.
        world: This process.
        splits: The data, on `world.device`.

    Raises:
        InputError: A part cannot be built, or does not fit the others.
    """
    trainer, device = config.trainer, world.device
    dtype = _set_arithmetic(trainer, world)
    scaler, progress = gradient_scaler(device, dtype), Progress()
    order = _build_order(config, world, splits)
    model, parallel_model = _build_models(config, world, order)
    optimizer, loss = _build_optimizer(config, model, scaler), build_loss(config).to(device)
    total_steps = trainer.epochs * len(order)
    state = TrainingState(
        config=config,
        world=world,
        splits=replace(splits, train=splits.train.with_margin(config.augmentation.margin)),
        model=model,
        parallel_model=parallel_model,
        thawing=thawing_parameters(model, config.transfer),
        loss=loss,
        training_loss=_training_loss(loss, config, splits, device),
        optimizer=optimizer,
        schedule=build_schedule(config, total_steps, len(order)),
        learning_rates=[group["lr"] for group in optimizer.param_groups],
        scaler=scaler,
        dtype=dtype,
        order=order,
        last_step=min(total_steps, trainer.max_steps or total_steps),
        progress=progress,
        finite_check=FiniteCheck(optimizer, scaler, device, device.type in ("cpu", "mps")),
        metrics=RunningMetrics(world, progress.epoch_totals),
    )
    _choose_step(state)
    return state


def _build_order(config: Config, world: World, splits: DataSplits) -> EpochOrder:
    is_drawn = config.data.balance is Balance.sample
    labels = splits.train.labels.cpu() if is_drawn else None
    order = EpochOrder(len(splits.train), config.trainer.global_batch_size, labels)
    _check_batches(config.trainer, world, order)
    steps = config.trainer.epochs * len(order)
    if config.data.fit is not None and steps < FEW_STEPS:
        logger.info(
            "a run of %d steps teaches a network little: experiment=photos makes smaller batches, "
            "and more epochs",
            steps,
        )
    return order


def _training_loss(
    loss: nn.Module, config: Config, splits: DataSplits, device: torch.device
) -> nn.Module:
    if config.data.balance is not Balance.weights:
        return loss
    labels = splits.train.labels
    weights = class_weights(labels.bincount(minlength=len(splits.classes)).cpu())
    return Weighted(loss, weights).to(device)


def _set_arithmetic(trainer: TrainerConfig, world: World) -> torch.dtype:
    """Choose how this process computes; return the dtype of its forward passes."""
    set_reproducible(world, trainer.reproducible)
    set_gpu_arithmetic(trainer.precision)
    return compute_dtype(trainer.precision, world.device)


def _choose_step(state: TrainingState) -> None:
    """Choose what makes a step, and what computes it: a function, or a CUDA graph of it."""
    trainer, optimizer, device = state.config.trainer, state.optimizer, state.world.device
    state.step = partial(step_in_shards if trainer.reproducible else step, state)
    state.compute = partial(compute, state)
    if trainer.cuda_graph is not True:  # auto: not before it has been run on a GPU
        return
    reason = objection(optimizer, device, state.scaler.is_enabled())
    if state.thawing:
        reason = "with transfer.thaw_epoch, a step changes on the way"
    if reason:
        raise InputError(f"trainer.cuda_graph=true cannot be used: {reason}; set it to auto.")
    keep_learning_rates_in_place(optimizer, device)
    state.compute = GraphedCompute(
        state.compute, state.order.batch_size(0), partial(capture_on_gpu, optimizer)
    )


def _build_models(config: Config, world: World, order: EpochOrder) -> tuple[nn.Module, nn.Module]:
    """Return the bare network, on the device, and the one that training runs."""
    trainer = config.trainer
    seed_device(world.device, keyed_seed(config.seed, "weights"))
    model = build_model(config)
    freeze(model, config.transfer)
    trial = try_out(model, config.data)
    if _meets_one_image(trainer, world, order):
        _check_one_image(config, model, world)
    _set_cpu_threads(trainer, world, trial)
    if trainer.reproducible:  # sums the gradients by itself, in `step_in_shards`
        # As DDP would, in case the network draws its weights from another source than the seed.
        model.load_state_dict(broadcast_object(world, model.state_dict()))
        model = model.to(world.device)
        return model, model
    model = model.to(world.device)
    trained = _compiled(model, world) if trainer.compile else model
    # A network that skips layers by numbers of its own may have skipped some on one rank only.
    (comes_and_goes,) = all_reduce_max(world, [bool(trial.unused)])
    return model, parallelize(trained, world, trainer, bool(comes_and_goes))


def _set_cpu_threads(trainer: TrainerConfig, world: World, trial: Trial) -> None:
    """Choose the threads of this process by the work of one of its forward passes."""
    if world.device.type != "cpu" or trainer.reproducible:
        return
    samples = trainer.micro_batch_size or trainer.global_batch_size / world.size
    work = samples * trial.multiply_adds
    torch.set_num_threads(trainer.cpu_threads or choose_threads(world.local_size, work))


def _compiled(model: nn.Module, world: World) -> nn.Module:
    """Return a module with the same weights that compiles itself when training first calls it."""
    try:
        torch.compile(lambda tensor: tensor + 1)(torch.zeros(1, device=world.device))
    except Exception as error:
        raise InputError(
            f"trainer.compile=true does not work on this machine: {one_line(error)[:300]}."
        ) from error
    # `set_gpu_arithmetic` has chosen; torch up to 2.12 would recommend another choice.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return torch.compile(model)  # type: ignore[return-value]


def _build_optimizer(
    config: Config, model: nn.Module, scaler: torch.amp.GradScaler
) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = instantiate(
        "optimizer",
        config.optimizer,
        torch.optim.Optimizer,
        parameter_groups(model, config.transfer),
        trusted_modules=config.trusted_modules,
    )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"optimizer._target_={config.optimizer['_target_']} computes each step's loss several "
            f"times, which the loop does not do: choose another one, such as optimizer=adam."
        )
    if scaler.is_enabled():
        _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD's momentum begin with zeros, before a scaler of gradients may skip the first step.

    torch's fused SGD takes uninitialized memory for the momentum in its first step. If that one is
    skipped, nothing is ever written there.

    Raises:
        InputError: The momentum would then not be that of plain SGD.
    """
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        if not (group["momentum"] and group["fused"]):
            continue
        if group["dampening"]:
            raise InputError(
                f"optimizer.dampening={group['dampening']} cannot be used with fp16 and "
                f"optimizer.fused=true: set one of them to its default, or optimizer.fused=false."
            )
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _check_batches(trainer: TrainerConfig, world: World, order: EpochOrder) -> None:
    if world.is_main and trainer.global_batch_size > order.size:
        logger.warning(
            "trainer.global_batch_size=%d is more than the %d training images: an epoch is one "
            "step",
            *(trainer.global_batch_size, order.size),
        )
    for size in _batch_sizes(trainer, order) if trainer.sync_batch_norm else ():
        count = piece_count(size, world.size, trainer.micro_batch_size)
        if size // world.size < count:
            # Without a sample, a process could not take part in the statistics of all.
            raise InputError(
                f"trainer.global_batch_size={trainer.global_batch_size} makes a batch of {size} "
                f"in {count} piece(s) for each of {world.size} processes, too few samples for "
                f"trainer.sync_batch_norm=true: change it, or trainer.micro_batch_size."
            )


def _batch_sizes(trainer: TrainerConfig, order: EpochOrder) -> set[int]:
    """Return the sizes of the run's batches, which may end before the small last one."""
    steps = min(len(order), trainer.max_steps or len(order))
    return {order.batch_size(0), order.batch_size(steps - 1)}


def _meets_one_image(trainer: TrainerConfig, world: World, order: EpochOrder) -> bool:
    """Return whether any forward pass of the run gives batch norm a single image."""
    if trainer.sync_batch_norm and world.size > 1:  # the statistics are of all ranks' images
        return False
    parts = SHARDS if trainer.reproducible else world.size
    for size in _batch_sizes(trainer, order):
        count = piece_count(size, parts, trainer.micro_batch_size)
        shares = (size // parts, -(-size // parts))
        if 1 in [part for share in shares for part in (share // count, -(-share // count))]:
            return True
    return False


def _check_one_image(config: Config, model: nn.Module, world: World) -> None:
    if not trains_on_one_image(model, config.data):
        raise InputError(
            f"trainer.global_batch_size={config.trainer.global_batch_size} leaves a process "
            f"(of {world.size}) a single image in some step, and batch norm in this model has no "
            f"statistics of one value: change it, trainer.micro_batch_size or data.validation_size."
        )


def describe(state: TrainingState) -> str:
    """Return what is about to be trained, on what device and with what data, in a few lines."""
    world, splits, data = state.world, state.splits, state.config.data
    parameters = [*state.model.parameters()]
    frozen = [*state.thawing, *(p for p in parameters if not p.requires_grad)]
    until = f" until epoch {state.config.transfer.thaw_epoch}" if state.thawing else ""
    of_them = f" ({_count(frozen):,} frozen{until})" if frozen else ""
    counts = splits.class_counts
    rarest, commonest = counts.index(min(counts)), counts.index(max(counts))
    return (
        f"{type(state.model).__name__} with {_count(parameters):,} parameters{of_them}, "
        f"{str(state.dtype).removeprefix('torch.')} on {world.device.type}: {world.size} x "
        f"{torch.get_num_threads()} CPU threads\n"
        f"{data.name}: {len(splits.train):,} images to train on, {len(splits.validation):,} to "
        f"validate, {len(splits.test):,} to test; pixels {splits.normalization.mean:.4f} "
        f"+- {splits.normalization.std:.4f}\n"
        f"class balance: {counts[rarest]:,} of class {splits.classes[rarest]} (fewest) to "
        f"{counts[commonest]:,} of class {splits.classes[commonest]} (most)\n"
        f"{draw_bars(counts, splits.classes)}"
    )


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
