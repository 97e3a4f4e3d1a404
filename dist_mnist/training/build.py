"""The one place where options are chosen: from a config to a training state.

Whatever a run decides once is decided here and invisible afterwards: the loop calls `state.step`
and does not ask whether gradients are sharded, scaled, averaged or captured in a CUDA graph.
"""

import inspect
import logging
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dist_mnist.config.data_schema import Balance
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.config.schema import Config, TrainerConfig, plain_config
from dist_mnist.config.targets import instantiate
from dist_mnist.data.balance import class_weights
from dist_mnist.data.sampler import EpochOrder
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.data.splits import DataSplits
from dist_mnist.distributed.cpu_threads import choose_threads
from dist_mnist.distributed.gradients import parallelize
from dist_mnist.distributed.world import World, all_reduce_max, broadcast_object
from dist_mnist.models.build import build_loss, build_model
from dist_mnist.models.dry_run import dry_run, trains_on_one_image
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
from dist_mnist.training.progress import Progress, RunningMetrics, Totals
from dist_mnist.training.schedules import build_schedule
from dist_mnist.training.shards import SHARDS, set_reproducible, step_in_shards
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import compute, piece_count, step

logger = logging.getLogger(__name__)

FEW_STEPS = 50  # too few for a network that learns from photographs


def build_training_state(config: Config, world: World, splits: DataSplits) -> TrainingState:
    """Build everything for a fresh run; the weights depend only on the seed.

    Args:
        splits: The data, on `world.device`.

    Raises:
        InputError: A part cannot be built, or does not fit the others.
    """
    trainer, device = config.trainer, world.device
    set_reproducible(world, trainer.reproducible)
    set_gpu_arithmetic(trainer.precision)
    dtype = compute_dtype(trainer.precision, device)
    scaler = gradient_scaler(device, dtype)
    order = _build_order(config, world, splits)
    model, parallel_model = _build_models(config, world, order)
    thawing = thawing_parameters(model, config.transfer)
    groups = parameter_groups(model, config.transfer)
    optimizer = _build_optimizer(config, groups, scaler)
    training_loss = loss = build_loss(config).to(device)
    if config.data.balance is Balance.weights:
        counts = splits.train.labels.bincount(minlength=len(splits.classes))
        training_loss = Weighted(loss, class_weights(counts.cpu())).to(device)
    total_steps = trainer.epochs * len(order)
    state = TrainingState(
        config=config,
        plain_config=plain_config(config),
        world=world,
        splits=replace(splits, train=splits.train.with_margin(config.augmentation.margin)),
        model=model,
        parallel_model=parallel_model,
        thawing=thawing,
        loss=loss,
        training_loss=training_loss,
        optimizer=optimizer,
        schedule=build_schedule(config, total_steps, len(order)),
        learning_rates=[group["lr"] for group in optimizer.param_groups],
        scaler=scaler,
        dtype=dtype,
        order=order,
        last_step=min(total_steps, trainer.max_steps or total_steps),
        progress=Progress(),
        finite_check=FiniteCheck(
            optimizer, scaler, device, waits_every_step=device.type in ("cpu", "mps")
        ),
        metrics=RunningMetrics(world, Totals()),
    )
    state.step = partial(step_in_shards if trainer.reproducible else step, state)
    state.compute = partial(compute, state)
    if trainer.cuda_graph:
        state.compute = _graphed(state)
    return state


def _graphed(state: TrainingState) -> GraphedCompute:
    reason = objection(state.optimizer, state.world.device, state.scaler.is_enabled())
    if state.thawing:
        reason = "with transfer.thaw_epoch, later steps train other parameters"
    if reason:
        raise InputError(f"trainer.cuda_graph=true cannot be used: {reason}; set it to false.")
    keep_learning_rates_in_place(state.optimizer, state.world.device)
    capture = partial(capture_on_gpu, state.optimizer)
    return GraphedCompute(state.compute, state.order.batch_size(0), capture)


def _build_order(config: Config, world: World, splits: DataSplits) -> EpochOrder:
    batch_size, size = config.trainer.global_batch_size, len(splits.train)
    is_drawn = config.data.balance is Balance.sample
    order = EpochOrder(size, batch_size, splits.train.labels.cpu() if is_drawn else None)
    if world.is_main and batch_size > size:
        logger.warning(
            "trainer.global_batch_size=%d is more than the %d training images: an epoch is one "
            "step",
            *(batch_size, size),
        )
    steps = config.trainer.epochs * len(order)
    if config.data.fit is not None and steps < FEW_STEPS:
        logger.info(
            "only %d training steps; experiment=photos uses smaller batches and more epochs", steps
        )
    return order


def _build_models(config: Config, world: World, order: EpochOrder) -> tuple[nn.Module, nn.Module]:
    """Return the bare network, on the device, and the one that training runs."""
    trainer, sizes = config.trainer, _piece_sizes(config.trainer, world, order)
    seed_device(world.device, keyed_seed(config.seed, "weights"))
    model = build_model(config)
    freeze(model, config.transfer)
    findings = dry_run(model, config.data)
    if 1 in sizes and not trains_on_one_image(model, config.data):
        raise InputError(
            f"trainer.global_batch_size={trainer.global_batch_size} leaves a process (of "
            f"{world.size}) a single image in some step, and batch norm cannot train on a single "
            f"image: change it, trainer.micro_batch_size or data.validation_size."
        )
    if trainer.reproducible:  # sums the gradients itself, in `step_in_shards`
        # As DDP would, in case the network draws its weights from another source than the seed.
        model.load_state_dict(broadcast_object(world, model.state_dict()))
        model = model.to(world.device)
        return model, model
    if world.device.type == "cpu":
        samples = trainer.micro_batch_size or trainer.global_batch_size / world.size
        threads = choose_threads(world.local_size, samples * findings.multiply_adds)
        torch.set_num_threads(trainer.cpu_threads or threads)
    model = trained_model = model.to(world.device)
    if trainer.compile:  # the first step compiles; try now whether that works here
        with refusing("trainer.compile=true does not work on this machine"):
            torch.compile(lambda tensor: tensor + 1)(torch.zeros(1, device=world.device))
        # `set_gpu_arithmetic` has chosen; torch up to 2.12 would recommend another choice.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        trained_model = torch.compile(model)  # type: ignore[assignment]
    # A network that skips layers by its own numbers may have skipped some on one rank only.
    (skips_parameters,) = all_reduce_max(world, [bool(findings.unused)])
    return model, parallelize(trained_model, world, trainer, bool(skips_parameters))


def _piece_sizes(trainer: TrainerConfig, world: World, order: EpochOrder) -> set[int]:
    """Return the sizes of the micro-batches of any rank; none if batch norm is synchronized.

    Raises:
        InputError: Synchronized batch norm would leave a process without an image.
    """
    sizes: set[int] = set()
    parts = SHARDS if trainer.reproducible else world.size
    steps = min(len(order), trainer.max_steps or len(order))
    for size in {order.batch_size(0), order.batch_size(steps - 1)}:  # the last may be smaller
        count = piece_count(size, parts, trainer.micro_batch_size)
        if trainer.sync_batch_norm and size // parts < count:
            raise InputError(
                f"trainer.global_batch_size={trainer.global_batch_size} makes a batch of {size} "
                f"in {count} piece(s) for each of {world.size} processes, too few samples for "
                f"trainer.sync_batch_norm=true: change it, or trainer.micro_batch_size."
            )
        for share in (size // parts, -(-size // parts)):
            sizes |= {share // count, -(-share // count)}
    return set() if trainer.sync_batch_norm and world.size > 1 else sizes


def _build_optimizer(
    config: Config, groups: list[dict[str, Any]], scaler: torch.amp.GradScaler
) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = instantiate(
        "optimizer",
        config.optimizer,
        torch.optim.Optimizer,
        groups,
        trusted_modules=config.trusted_modules,
    )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"optimizer._target_={config.optimizer['_target_']} needs a closure (as LBFGS does), "
            f"which the loop does not support: choose another one, such as optimizer=adam."
        )
    if scaler.is_enabled():
        _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start SGD's momentum with zeros, before a gradient scaler may skip the first step.

    torch's fused SGD takes uninitialized memory for the momentum in its first step. If that step is
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
