"""Everything that training changes or computes with; to a checkpoint and back."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config, plain_config
from dist_mnist.data.images import Batch
from dist_mnist.data.mapped import MappedImages
from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.data.splits import DataSplits
from dist_mnist.distributed.cpu_threads import chosen_by_user, usable_cores
from dist_mnist.distributed.launcher import is_restart
from dist_mnist.distributed.world import World, all_reduce_max, broadcast_object
from dist_mnist.models.build import load_weights
from dist_mnist.models.classifier import Classifier
from dist_mnist.record import checkpoint
from dist_mnist.training.finite import FiniteCheck
from dist_mnist.training.progress import Progress, RunningMetrics

logger = logging.getLogger(__name__)

# A run that continues must see the samples that are still due, with the network it began with.
FIXED_FOR_A_RUN = (
    "seed",
    "data.name",
    "data.normalize",
    "data.validation_size",
    "data.classes",
    "data.samples_per_class",
    "data.balance",
    "trainer.global_batch_size",
    "trainer.reproducible",
    "transfer.freeze",
    "transfer.learning_rates",
    "transfer.thaw_epoch",
)


@dataclass
class TrainingState:
    """Everything that training changes or computes with.

    Attributes:
        model: The bare module, whose weights are evaluated and saved.
        parallel_model: The module that training runs: it averages gradients over the ranks. It is
            the bare module in a world of size 1 and in a reproducible run.
        thawing: Parameters that are not trained before `transfer.thaw_epoch`.
        loss: Returns one value per sample.
        training_loss: The same, or with weights for the classes; what training makes smaller.
        schedule: Maps a step to the factor of all learning rates.
        learning_rates: Of each parameter group, before that factor.
        dtype: The dtype of the forward pass.
        order: The batches of an epoch.
        last_step: Where training ends.
        finite_check: Checks every step's gradients.
        metrics: Counts what the network scores while it trains.
        step: Makes one optimizer step with a batch: `step.step`, or `shards.step_in_shards`.
        compute: What `step.step` does with images, labels and the size of the global batch:
            `step.compute`, or a CUDA graph of it. It returns the losses and the outputs.
    """

    config: Config
    world: World
    splits: DataSplits
    model: nn.Module
    parallel_model: nn.Module
    thawing: Sequence[nn.Parameter]
    loss: nn.Module
    training_loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    learning_rates: list[float]
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    order: EpochOrder
    last_step: int
    progress: Progress
    finite_check: FiniteCheck
    metrics: RunningMetrics
    step: Callable[[Batch], None] = field(init=False)
    compute: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] = field(
        init=False
    )

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.progress.step // len(self.order)

    @property
    def is_over(self) -> bool:
        """True once the last step is done."""
        return self.progress.step >= self.last_step

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, in the first parameter group."""
        return self.learning_rates[0] * self.schedule(self.progress.step - 1)

    @property
    def held(self) -> Sequence[nn.Parameter]:
        """Parameters that have gradients in this epoch and must not change."""
        return self.thawing if self.config.transfer.frozen_in(self.epoch) else ()

    @property
    def classifier(self) -> Classifier:
        """The network as it is now, with its preprocessing."""
        splits = self.splits
        return Classifier(self.model, splits.normalization, self.dtype, splits.classes)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's share of the batches that are left of the epoch, and of the run."""
        first = self.progress.step - self.epoch * len(self.order)
        due = min(len(self.order) - first, self.last_step - self.progress.step)
        train = self.splits.train
        world = replace(self.world, device=train.labels.device)
        shares = DistributedBatchSampler(
            self.order, world, self.config.seed, self.epoch, first_batch=first
        )
        batches = (
            Batch(share, self.order.batch_size(batch))
            for batch, share in zip(range(first, first + due), shares, strict=False)
        )
        yield from tqdm(
            train.deliver(batches) if isinstance(train, MappedImages) else batches,
            desc=f"epoch {self.epoch + 1}",
            initial=first,
            total=len(self.order),
            unit="step",
            leave=False,
            disable=not (self.world.is_main and sys.stderr.isatty()),
        )

    def end_training(self) -> None:
        """Let go of the step: a CUDA graph must be gone before its process group is."""
        del self.step, self.compute


def checkpoint_content(state: TrainingState) -> dict[str, Any]:
    """Return everything that is needed to continue; nothing in it depends on the world size."""
    return {
        "model": state.model.state_dict(),
        "optimizer": _optimizer_content(state.optimizer),
        "scaler": state.scaler.state_dict(),
        "progress": asdict(state.progress),
        "config": plain_config(state.config),
        "normalization": asdict(state.splits.normalization),
        "data": state.splits.fingerprint,
        "cpu": {"threads": torch.get_num_threads(), "processes": state.world.local_size},
        "classes": list(state.splits.classes),
        "class_counts": state.splits.class_counts,
        "versions": {"dist_mnist": __version__, "torch": str(torch.__version__)},
    }


def _optimizer_content(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state; learning rates that a CUDA graph reads become numbers again."""
    content = optimizer.state_dict()
    for group in content["param_groups"]:
        group["lr"] = float(group["lr"])
    return content


def resume(state: TrainingState, run_dir: Path) -> None:
    """Restore the run directory's newest checkpoint, as rank 0 finds it, on every rank.

    Raises:
        InputError: It cannot be read, or is of another run.
    """
    found = checkpoint.newest(run_dir) if state.world.is_main else None
    (was_started,) = all_reduce_max(state.world, [is_restart()])  # some agents may not count it
    if found is None and state.world.is_main and was_started:
        logger.warning(
            "this launch was started before, but run_dir=%s holds no checkpoint: starting from the "
            "beginning. If there was one, it was in another run_dir, or on storage that this "
            "machine does not see.",
            run_dir,
        )
    found = broadcast_object(state.world, found)
    if found is not None:
        restore(state, found)


def restore(state: TrainingState, content: dict[str, Any]) -> None:
    """Continue from a checkpoint, with the optimizer's options from the current config.

    Raises:
        InputError: The checkpoint is of another network, or of data in another order.
    """
    told = {key: content[key] for key in ("config", "data", "normalization")}
    saved = json.loads(json.dumps(told, default=str))  # a tensor cannot be compared with a value
    _check_same_run(plain_config(state.config), saved["config"])
    _check_same_data(state, saved)
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state.optimizer.param_groups
    ]
    try:
        load_weights(state.model, content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        _match_memory_format(state.optimizer)
        if content["scaler"]:  # empty if the run has not used float16 so far
            state.scaler.load_state_dict(content["scaler"])
        state.progress = Progress.from_plain(content["progress"])
    except InputError:
        raise
    except Exception as error:  # a file from elsewhere may hold anything
        raise InputError(
            f"the checkpoint does not fit this run: {one_line(error)[:300]}."
        ) from error
    for group, chosen in zip(state.optimizer.param_groups, options, strict=True):
        group.update(chosen)
    _restore_threads(state, content["cpu"])


def _restore_threads(state: TrainingState, saved: dict[str, Any]) -> None:
    """Compute with as many threads as before, since what they add up depends on their number.

    The user's own choice goes first, and so does the rule for another number of processes.
    """
    world, trainer = state.world, state.config.trainer
    is_chosen = trainer.cpu_threads or trainer.reproducible or chosen_by_user(world.local_size)
    threads, processes = saved.get("threads"), saved.get("processes")
    if world.device.type != "cpu" or is_chosen or processes != world.local_size:
        return
    if isinstance(threads, int) and 1 <= threads <= 4 * usable_cores():
        torch.set_num_threads(threads)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the optimizer's tensors like their parameters, as fused optimizers expect."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_same_run(config: dict[str, Any], saved: dict[str, Any]) -> None:
    if _look_up(config, "transfer.checkpoint") and not _look_up(saved, "transfer.checkpoint"):
        raise InputError(
            "transfer.checkpoint cannot be used here, since this run began without one: leave it "
            "out, or choose a new run_dir."
        )
    keys = (*FIXED_FOR_A_RUN, "optimizer._target_", *(f"model.{key}" for key in config["model"]))
    for key in keys:
        now, then = _look_up(config, key), _look_up(saved, key)
        if now != then and (_is_set(now) or _is_set(then)):
            raise InputError(
                f"{key}={now} does not fit this run, which began with {key}={then}: "
                f"set it back, or choose a new run_dir."
            )


def _check_same_data(state: TrainingState, saved: dict[str, Any]) -> None:
    """Refuse other samples: some would be seen twice and others never."""
    splits, root = state.splits, state.config.data.root
    now = {**splits.fingerprint, "the normalization": asdict(splits.normalization)}
    then = {**saved["data"], "the normalization": saved["normalization"]}
    for name in ("training samples", "checksum of the training samples", "the normalization"):
        if now[name] != then.get(name):
            raise InputError(
                f"the data in data.root={root} is not what this run began with: {name} was "
                f"{then.get(name)} and is {now[name]}; put the old files back, or choose a new "
                f"run_dir."
            )


def _is_set(value: Any) -> bool:
    """Return whether an option is used; one that did not exist yet was not."""
    return bool(value) and value != "none"


def _look_up(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
