"""What one run trains, from its config to its checkpoint and back."""

import logging
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from dist_mnist import __version__
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config, TrainerConfig, plain_config
from dist_mnist.config.targets import find_function, instantiate
from dist_mnist.data.sampler import EpochOrder
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.data.splits import DataSplits
from dist_mnist.distributed.gradients import Waiting, World, broadcast_object, parallelize
from dist_mnist.models.precision import compute_dtype, gradient_scaler
from dist_mnist.training.finite import FiniteCheck
from dist_mnist.training.progress import Totals
from dist_mnist.training.shards import prepare

logger = logging.getLogger(__name__)

# A run that continues must see the samples that were still due, with the network it began with.
FIXED_FOR_A_RUN = (
    "seed",
    "data.name",
    "data.normalize",
    "data.validation_size",
    "trainer.global_batch_size",
    "trainer.reproducible",
)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer steps done.
        epoch_totals: Train loss and accuracy since the current epoch began.
        logged_totals: The same at the last step that was logged.
        epoch_seconds: Time spent training since the current epoch began.
        best_accuracy: The best validation accuracy of a finished epoch.
        skipped_steps: Those that the scaler of float16 gradients has skipped.
    """

    step: int = 0
    epoch_totals: Totals = field(default_factory=Totals)
    logged_totals: Totals = field(default_factory=Totals)
    epoch_seconds: float = 0.0
    best_accuracy: float | None = None
    skipped_steps: int = 0


@dataclass
class TrainingState:
    """Everything that training changes or computes with.

    Attributes:
        model: The bare module, whose weights are evaluated and saved.
        parallel_model: What training runs: the module that averages gradients over the ranks, or
            the bare one in a world of size 1 and in a reproducible run.
        loss: Gives one value per sample.
        schedule: Maps a step to what the learning rates are multiplied by.
        learning_rates: Of each parameter group, before the schedule.
        dtype: What the forward pass computes in.
        order: The batches of an epoch.
        last_step: Where training ends.
        waiting: How long this rank has waited for the others' gradients.
        finite_check: Looks at every step's gradients.
    """

    config: Config
    world: World
    splits: DataSplits
    model: nn.Module
    parallel_model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    learning_rates: list[float]
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    order: EpochOrder
    last_step: int
    progress: Progress
    waiting: Waiting
    finite_check: FiniteCheck


def build_training_state(config: Config, world: World, splits: DataSplits) -> TrainingState:
    """Build all of a fresh run; the weights depend on the seed alone.

    Args:
        config: The run's config.
        world: This process.
        splits: The data, on `world.device`.

    Raises:
        InputError: A part cannot be built, or does not fit the others.
    """
    trainer = config.trainer
    prepare(world, trainer.reproducible)
    dtype = compute_dtype(trainer.precision, world.device)
    seed_device(world.device, keyed_seed(config.seed, "weights"))
    model = build_model(config)
    if trainer.reproducible:  # as DDP does, for a network that draws its weights from elsewhere
        model.load_state_dict(broadcast_object(world, model.state_dict()))
    waiting = Waiting()
    parallel_model = _parallel(model.to(world.device), trainer, world, waiting)
    optimizer: torch.optim.Optimizer = instantiate(
        "optimizer",
        config.optimizer,
        torch.optim.Optimizer,
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        trusted_modules=config.trusted_modules,
    )
    order = EpochOrder(len(splits.train), trainer.global_batch_size)
    _check_batches(trainer, world, order)
    total_steps = trainer.epochs * len(order)
    scaler = gradient_scaler(world.device, dtype)
    return TrainingState(
        config=config,
        world=world,
        splits=splits,
        model=model,
        parallel_model=parallel_model,
        loss=build_loss(config).to(world.device),
        optimizer=optimizer,
        schedule=_build_schedule(config, total_steps, len(order)),
        learning_rates=[group["lr"] for group in optimizer.param_groups],
        scaler=scaler,
        dtype=dtype,
        order=order,
        last_step=min(total_steps, trainer.max_steps or total_steps),
        progress=Progress(),
        waiting=waiting,
        finite_check=FiniteCheck(
            optimizer, scaler, world.device, asks_every_step=world.device.type in ("cpu", "mps")
        ),
    )


def _parallel(
    model: nn.Module, trainer: TrainerConfig, world: World, waiting: Waiting
) -> nn.Module:
    if trainer.reproducible:  # which adds up gradients in its own way
        return model
    return parallelize(
        _compiled(model, world) if trainer.compile else model,
        world,
        accumulates=trainer.micro_batch_size is not None,
        sync_batch_norm=trainer.sync_batch_norm,
        compress_gradients=trainer.compress_gradients,
        timeout_seconds=trainer.timeout_seconds,
        waiting=waiting,
    )


def _check_batches(trainer: TrainerConfig, world: World, order: EpochOrder) -> None:
    if world.is_main and trainer.global_batch_size > order.size:
        logger.warning(
            "trainer.global_batch_size=%d is more than the %d training images: one step an epoch",
            *(trainer.global_batch_size, order.size),
        )
    smallest = order.batch_size(len(order) - 1)
    if trainer.sync_batch_norm and smallest < world.size:
        # A process without a share would add to the statistics what is not in the batch.
        raise InputError(
            f"trainer.global_batch_size={trainer.global_batch_size} leaves a last batch of "
            f"{smallest} for {world.size} processes, which sync_batch_norm cannot have: change it."
        )


def build_model(config: Config) -> nn.Module:
    """Build the network, on the CPU, in the memory format that convolutions are fastest in.

    Raises:
        InputError: It cannot be built, or does not map the images to the classes.
    """
    model: nn.Module = instantiate(
        "model", config.model, nn.Module, trusted_modules=config.trusted_modules
    )
    data = config.data
    try:
        with torch.no_grad():
            shape = list(model.eval()(torch.zeros(2, *data.image_shape)).shape)
    except Exception as error:
        raise InputError(
            f"model cannot take images of shape {data.image_shape}: {one_line(error)}."
        ) from error
    if shape != [2, data.num_classes]:
        raise InputError(
            f"model gives outputs of shape {shape[1:]} for data.num_classes={data.num_classes}."
        )
    return model.to(memory_format=torch.channels_last)


def _compiled(model: nn.Module, world: World) -> nn.Module:
    """Return what shares the model's weights and compiles itself when training first calls it."""
    try:
        torch.compile(lambda tensor: tensor + 1)(torch.zeros(1, device=world.device))
    except Exception as error:
        raise InputError(
            f"trainer.compile=true cannot be used on this machine: {one_line(error)[:300]}."
        ) from error
    return torch.compile(model)  # type: ignore[return-value]


def build_loss(config: Config) -> nn.Module:
    """Build the loss.

    Raises:
        InputError: It cannot be built, or does not give one value per sample.
    """
    loss: nn.Module = instantiate(
        "loss", config.loss, nn.Module, trusted_modules=config.trusted_modules
    )
    try:
        values = loss(torch.zeros(2, config.data.num_classes), torch.zeros(2, dtype=torch.int64))
    except Exception as error:
        raise InputError(f"loss cannot be used: {one_line(error)[:300]}.") from error
    if getattr(values, "shape", None) != (2,):
        raise InputError("loss must give one value per sample: set loss.reduction=none.")
    return loss


def _build_schedule(
    config: Config, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    function = find_function("scheduler", config.scheduler, config.trusted_modules)
    schedule = partial(function, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    try:
        for step in (0, total_steps - 1):
            float(schedule(step))
    except Exception as error:
        raise InputError(
            f"scheduler cannot be used over {total_steps} steps: {one_line(error)}."
        ) from error
    return schedule


def checkpoint_content(state: TrainingState) -> dict[str, Any]:
    """Return all that continuing needs, as tensors and plain values; nothing of the world size."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "progress": asdict(state.progress),
        "config": plain_config(state.config),
        "normalization": asdict(state.splits.normalization),
        "classes": list(state.splits.classes),
        "versions": {"dist_mnist": __version__, "torch": str(torch.__version__)},
    }


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        InputError: They are those of another network; the network's own are untouched.
    """

    def shapes(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}

    if shapes(model.state_dict()) != shapes(weights):
        raise InputError(
            "the checkpoint does not fit this run: its weights are those of another network."
        )
    model.load_state_dict(weights)


def restore(state: TrainingState, checkpoint: dict[str, Any]) -> None:
    """Continue from a checkpoint, with the optimizer's options as the config has them now.

    Raises:
        InputError: The checkpoint is of another network, or of data in another order.
    """
    _check_same_run(plain_config(state.config), checkpoint["config"])
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state.optimizer.param_groups
    ]
    try:
        load_weights(state.model, checkpoint["model"])
        state.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty where the run has not been in float16 so far
            state.scaler.load_state_dict(checkpoint["scaler"])
        state.progress = _progress(checkpoint["progress"])
    except InputError:
        raise
    except Exception as error:  # a file from elsewhere may hold anything
        raise InputError(
            f"the checkpoint does not fit this run: {one_line(error)[:300]}."
        ) from error
    for group, chosen in zip(state.optimizer.param_groups, options, strict=True):
        group.update(chosen)


def _progress(plain: dict[str, Any]) -> Progress:
    totals = {key: Totals(**plain[key]) for key in ("epoch_totals", "logged_totals")}
    progress = Progress(**{**plain, **totals})
    amounts = [
        *astuple(progress.epoch_totals),
        *astuple(progress.logged_totals),
        *(progress.epoch_seconds, progress.best_accuracy or 0.0),
    ]
    if type(progress.step) is not int or progress.step < 0:
        raise ValueError(f"step={progress.step} is no number of steps")
    if not all(isinstance(amount, (int, float)) for amount in amounts):
        raise TypeError("a number of its progress is none")
    return progress


def _check_same_run(config: dict[str, Any], saved: dict[str, Any]) -> None:
    keys = (*FIXED_FOR_A_RUN, "optimizer._target_", *(f"model.{key}" for key in config["model"]))
    for key in keys:
        now, then = _look_up(config, key), _look_up(saved, key)
        if now != then and (now or then):  # an option that was not there yet was not set
            raise InputError(
                f"{key}={now} cannot continue a run that was begun with {key}={then}: "
                f"set it back, or choose a new run_dir."
            )


def _look_up(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
