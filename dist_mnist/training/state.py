"""The state of training: everything that it changes or computes with."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dist_mnist.config.schema import Config
from dist_mnist.data.images import Batch
from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.data.splits import DataSplits
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.distributed.world import World
from dist_mnist.models.classifier import Classifier
from dist_mnist.training.finite import FiniteCheck
from dist_mnist.training.progress import Progress, RunningMetrics


@dataclass
class TrainingState:
    """Everything that training changes or computes with."""

    config: Config
    plain_config: dict[str, Any]  # the config as plain values, as checkpoints hold it
    world: World
    splits: DataSplits
    model: nn.Module  # the bare module, whose weights are evaluated and saved
    parallel_model: nn.Module  # called in training: averages gradients, or is the bare module
    replicas: Sequence[nn.Module]  # of a step in shards: share the model's parameters; or the model
    pool: ThreadPool  # computes shards, and blocks in evaluation
    thawing: Sequence[nn.Parameter]  # not trained before transfer.thaw_epoch
    loss: nn.Module  # returns one value per sample
    training_loss: nn.Module  # the loss that training minimizes: the same, or weighted by class
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # maps a step to the factor of all learning rates
    learning_rates: list[float]  # of each parameter group, before that factor
    scaler: torch.amp.GradScaler
    dtype: torch.dtype  # of the forward pass
    order: EpochOrder  # the batches of an epoch
    last_step: int  # the number of steps at which training ends
    progress: Progress
    finite_check: FiniteCheck  # checks every step's gradients
    metrics: RunningMetrics  # loss and accuracy of the current epoch
    shards: int | None  # of a global batch, in a reproducible run
    # Makes one optimizer step with a batch: `step.step`, or `shards.StepInShards`.
    step: Callable[[Batch], None] = field(init=False)
    # The part of `step.step` after augmentation: `step.compute`, or a CUDA graph of it.
    compute: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] = field(
        init=False
    )

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.progress.step // len(self.order)

    @property
    def epochs_begun(self) -> int:
        """The number of epochs begun, including one that was cut short."""
        return -(-self.progress.step // len(self.order))

    @property
    def is_over(self) -> bool:
        """True once the last step is done."""
        return self.progress.step >= self.last_step

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, in the first parameter group."""
        return self.learning_rates[0] * self.schedule(self.progress.step - 1)

    @property
    def still_frozen(self) -> Sequence[nn.Parameter]:
        """Thawing parameters before their epoch: they have gradients but must not change."""
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
        # Samples on the host are indexed there; `deliver` brings them to the device.
        world = replace(self.world, device=train.labels.device)
        indices = DistributedBatchSampler(
            self.order, world, self.config.seed, self.epoch, first, parts=self.shards
        )
        sizes = map(self.order.batch_size, range(first, first + due))
        yield from tqdm(
            train.deliver(zip(indices, sizes)),  # noqa: B905 - the run may end before the epoch
            desc=f"epoch {self.epoch + 1}",
            initial=first,
            total=len(self.order),
            unit="step",
            leave=False,
            disable=not (self.world.is_main and sys.stderr.isatty()),
        )

    def end_training(self) -> None:
        """Release the step: a CUDA graph must be gone before its process group is."""
        del self.step, self.compute
