"""Code that the contenders share, so that only their loops differ.

None of them computes a metric while it trains, which dist_mnist does: the comparison errs on
their side.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from dist_mnist.models.networks import MLP, ConvNet
from tests.benchmarks.peak_memory import peak_memory_mb

IMAGE_SHAPE, NUM_CLASSES = (1, 28, 28), 10
MEAN, DEVIATION = 0.1307, 0.3081
LEARNING_RATE = 0.001
NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "cnn": ConvNet}

# PyTorch recommends this for DDP where every step runs the same layers.
DDP_OPTIONS: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}

RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        model: mlp or cnn.
        weights: A file with the state dict to begin with.
        data: The folder of the data sets, in torchvision's layout.
        global_batch_size: The samples of one step, over all processes.
        epochs: How often the training set is seen.
        workers: The data loading processes of each training process.
        limit: The number of steps whose samples are kept; None for all samples.
    """

    model: str
    weights: Path
    data: Path
    global_batch_size: int
    epochs: int
    workers: int
    limit: int | None

    @property
    def batch_size(self) -> int:
        """The samples of one step in one process."""
        return self.global_batch_size // WORLD_SIZE

    @property
    def loader_options(self) -> dict[str, Any]:
        """Arguments of every data loader, apart from its batch size and its order."""
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def parse_arguments() -> Arguments:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=sorted(NETWORKS), required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--global-batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--limit", type=int, metavar="STEPS")
    arguments = Arguments(**vars(parser.parse_args()))
    if arguments.global_batch_size % WORLD_SIZE:
        parser.error(f"--global-batch-size must be a multiple of the {WORLD_SIZE} processes")
    return arguments


def mnist(arguments: Arguments, train: bool) -> Dataset[Any]:
    """Return a part of MNIST as normalised tensors."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((MEAN,), (DEVIATION,))]
    )
    dataset: Any = datasets.MNIST(str(arguments.data), train=train, transform=transform)
    if arguments.limit is None:
        return dataset  # type: ignore[no-any-return]
    size = min(len(dataset), arguments.limit * arguments.global_batch_size)
    return Subset(dataset, range(size))


def network(arguments: Arguments) -> nn.Module:
    """Return the network with the given weights, on the CPU."""
    model = NETWORKS[arguments.model](IMAGE_SHAPE, NUM_CLASSES)
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    return model.to(memory_format=torch.channels_last)


@dataclass
class Stopwatch:
    """Takes the time of every epoch, once the GPU has finished it."""

    seconds: list[float] = field(default_factory=list)
    _started: float = 0.0

    def start(self) -> None:
        """Begin an epoch."""
        _wait_for_gpu()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End an epoch."""
        _wait_for_gpu()
        self.seconds.append(time.perf_counter() - self._started)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the time of a block."""
        self.start()
        yield
        self.stop()


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(training: Stopwatch, evaluation: Stopwatch, accuracy: float) -> NoReturn:
    """Let rank 0 print the result, and end. Every rank must call it, with its process group.

    Raises:
        RuntimeError: The library has let every process train alone.
    """
    if WORLD_SIZE > 1 and not (dist.is_initialized() and dist.get_world_size() == WORLD_SIZE):
        raise RuntimeError(f"these were not {WORLD_SIZE} processes that trained together")
    result = {
        "seconds_per_epoch": training.seconds,
        "evaluation_seconds": sum(evaluation.seconds),
        "test_accuracy": accuracy,
        "peak_memory_mb": _greatest_over_ranks(peak_memory_mb()),
        "world_size": WORLD_SIZE,
    }
    if RANK == 0:
        print(json.dumps(result), flush=True)
    # An ordinary end is aborted now and then by a gloo thread that outlives the interpreter.
    os._exit(0)


def _greatest_over_ranks(value: float) -> float:
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()
