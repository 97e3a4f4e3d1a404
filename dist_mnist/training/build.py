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
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.distributed.world import World, all_reduce_max, broadcast_object
from dist_mnist.models.build import build_loss, build_model
from dist_mnist.models.dry_run import Findings, dry_run, trains_on_one_image
from dist_mnist.models.losses import Weighted
from dist_mnist.models.precision import compute_dtype, gradient_scaler, set_gpu_arithmetic
from dist_mnist.models.purity import is_pure, is_pure_loss
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
from dist_mnist.training.shards import (
    SHARDS,
    build_step_in_shards,
    costs_little,
    set_reproducible,
)
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
    set_gpu_arithmetic(trainer.precision)
    dtype = compute_dtype(trainer.precision, device)
    scaler = gradient_scaler(device, dtype)
    order = _build_order(config, world, splits)
    model = _build_network(config, world)
    loss = build_loss(config)
    findings = _agreed_findings(world, dry_run(model, config.data))
    may_shard = _may_shard(config, world, order, findings)
    runs_in_threads = may_shard and _is_pure_on_all_ranks(world, model, loss, config)
    is_reproducible = trainer.reproducible is True or runs_in_threads
    _require_enough_images(config, world, order, model, SHARDS if is_reproducible else None)
    set_reproducible(world, is_reproducible)
    pool = _build_pool(config, world, findings, is_reproducible, runs_in_threads)
    parallel_model = _parallelize(model, config, world, findings, is_reproducible)
    thawing = thawing_parameters(model, config.transfer)
    groups = parameter_groups(model, config.transfer)
    optimizer = _build_optimizer(config, groups, scaler)
    total_steps = trainer.epochs * len(order)
    state = TrainingState(
        config=config,
        plain_config=plain_config(config),
        world=world,
        splits=replace(splits, train=splits.train.with_margin(config.augmentation.margin)),
        model=model,
        parallel_model=parallel_model,
        replicas=[model],
        pool=pool,
        shards=SHARDS if is_reproducible else None,
        thawing=thawing,
        loss=loss.to(device),
        training_loss=_weight_classes(loss, config, splits).to(device),
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
    state.step = partial(step, state)
    if is_reproducible:
        state.step = build_step_in_shards(state, findings, runs_in_threads)
    state.compute = _graphed(state, findings) if trainer.cuda_graph else partial(compute, state)
    return state


def _agreed_findings(world: World, findings: Findings) -> Findings:
    """Return the same findings on every rank, since a network may skip layers at random."""
    work, skips = all_reduce_max(
        world, [float(findings.multiply_adds), float(findings.skips_parameters)]
    )
    return findings._replace(multiply_adds=int(work), skips_parameters=bool(skips))


def _may_shard(config: Config, world: World, order: EpochOrder, findings: Findings) -> bool:
    chosen: bool | str = config.trainer.reproducible
    return costs_little(config, world, order, findings) if chosen == "auto" else bool(chosen)


def _is_pure_on_all_ranks(world: World, model: nn.Module, loss: nn.Module, config: Config) -> bool:
    (is_impure,) = all_reduce_max(world, [not (is_pure(model, config.data) and is_pure_loss(loss))])
    return not is_impure


def _weight_classes(loss: nn.Module, config: Config, splits: DataSplits) -> nn.Module:
    """Return the loss that training minimizes."""
    if config.data.balance is not Balance.weights:
        return loss
    counts = splits.train.labels.bincount(minlength=len(splits.classes))
    return Weighted(loss, class_weights(counts.cpu()))


def _graphed(state: TrainingState, findings: Findings) -> GraphedCompute:
    reason = objection(state.optimizer, state.world.device, state.scaler.is_enabled())
    if state.thawing:
        reason = "with transfer.thaw_epoch, later steps train other parameters"
    if findings.skips_parameters or state.config.trainer.find_unused_parameters:
        reason = "the network may skip layers, and a graph repeats the choice of one step"
    if reason:
        raise InputError(f"trainer.cuda_graph=true cannot be used: {reason}; set it to false.")
    keep_learning_rates_in_place(state.optimizer, state.world.device)
    capture = partial(capture_on_gpu, state.optimizer)
    return GraphedCompute(partial(compute, state), state.order.batch_size(0), capture)


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
            "only %d training steps: raise trainer.epochs or lower trainer.global_batch_size", steps
        )
    return order


def _build_network(config: Config, world: World) -> nn.Module:
    """Return the bare network on the CPU; its weights depend only on the seed."""
    chosen = config.trainer.reproducible
    if chosen is True or (chosen and world.device.type == "cpu"):
        torch.set_num_threads(1)  # a sum that threads share depends on their number
    seed_device(world.device, keyed_seed(config.seed, "weights"))
    model = build_model(config)
    freeze(model, config.transfer)
    return model


def _require_enough_images(
    config: Config, world: World, order: EpochOrder, model: nn.Module, shards: int | None
) -> None:
    """Check that batch norm never meets a single image."""
    sizes = _piece_sizes(config.trainer, world, order, shards or world.size)
    if 1 in sizes and not trains_on_one_image(model, config.data):
        part = f"one of {shards} shards" if shards else f"a process (of {world.size})"
        raise InputError(
            f"trainer.global_batch_size={config.trainer.global_batch_size} leaves {part} a single "
            f"image in some step, and batch norm cannot train on a single image: change it, "
            f"trainer.micro_batch_size or data.validation_size."
        )


def _build_pool(
    config: Config,
    world: World,
    findings: Findings,
    is_reproducible: bool,
    runs_in_threads: bool,
) -> ThreadPool:
    """Return the threads that compute shards, or one that leaves the work to torch's threads."""
    trainer = config.trainer
    if world.device.type != "cpu":
        return ThreadPool(1)
    samples = trainer.micro_batch_size or trainer.global_batch_size / world.size
    threads = choose_threads(world.local_size, samples * findings.multiply_adds)
    threads = trainer.cpu_threads or threads
    if is_reproducible:
        return ThreadPool(min(threads, -(-SHARDS // world.size)) if runs_in_threads else 1)
    torch.set_num_threads(threads)
    return ThreadPool(1)


def _parallelize(
    model: nn.Module, config: Config, world: World, findings: Findings, is_reproducible: bool
) -> nn.Module:
    """Move the network to the device; return the one that training runs."""
    trainer = config.trainer
    if is_reproducible:  # sums the gradients itself, in `StepInShards`
        # As DDP would, in case the network draws its weights from another source than the seed.
        model.load_state_dict(broadcast_object(world, model.state_dict()))
        return model.to(world.device)
    trained_model = model.to(world.device)
    if trainer.compile:  # the first step compiles; try now whether that works here
        with refusing("trainer.compile=true does not work on this machine"):
            torch.compile(lambda tensor: tensor + 1)(torch.zeros(1, device=world.device))
        # `set_gpu_arithmetic` has chosen; torch up to 2.12 would recommend another choice.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        trained_model = torch.compile(model)  # type: ignore[assignment]
    return parallelize(trained_model, world, trainer, findings.skips_parameters)


def _piece_sizes(trainer: TrainerConfig, world: World, order: EpochOrder, parts: int) -> set[int]:
    """Return the sizes of the micro-batches of any rank; none if batch norm is synchronized.

    Raises:
        InputError: Synchronized batch norm would leave a process without an image.
    """
    sizes: set[int] = set()
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
