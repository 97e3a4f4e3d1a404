"""Ignite: an engine with handlers, and the parts that `ignite.distributed` adapts."""

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DistributedSampler

from tests.benchmarks.contenders.common import (
    DDP_OPTIONS,
    LEARNING_RATE,
    WORLD_SIZE,
    Arguments,
    Stopwatch,
    mnist,
    network,
    parse_arguments,
    report,
)


def main() -> None:
    """Train, evaluate and report in every process that torchrun has started."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with idist.Parallel(backend=backend if WORLD_SIZE > 1 else None) as parallel:
        parallel.run(train, parse_arguments())


def train(_: int, arguments: Arguments) -> None:
    """Train, evaluate and report."""
    train_loader, test_loader = _loaders(arguments)
    model = idist.auto_model(network(arguments), **DDP_OPTIONS)
    optimizer = idist.auto_optim(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True))
    device, training, evaluation = idist.device(), Stopwatch(), Stopwatch()
    trainer = create_supervised_trainer(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        device=device,
        non_blocking=True,
        # The default waits for the loss's value in every step, which nobody here looks at.
        output_transform=lambda images, labels, outputs, loss: None,
    )
    trainer.add_event_handler(Events.EPOCH_STARTED, training.start)
    trainer.add_event_handler(Events.EPOCH_STARTED, _reshuffle, train_loader.sampler)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, training.stop)
    trainer.run(train_loader, max_epochs=arguments.epochs)

    metrics = {"accuracy": Accuracy(device=device)}
    evaluator = create_supervised_evaluator(model, metrics, device=device, non_blocking=True)
    with evaluation.running():
        scores = evaluator.run(test_loader).metrics
    report(training, evaluation, scores["accuracy"])


def _loaders(arguments: Arguments) -> tuple[Any, Any]:
    processes = idist.get_nproc_per_node()
    options = {
        # Both are numbers for all processes together, which Ignite divides.
        "batch_size": arguments.global_batch_size,
        **arguments.loader_options,
        "num_workers": arguments.workers * processes,
    }
    train_set, test_set = mnist(arguments, train=True), mnist(arguments, train=False)
    return (
        idist.auto_dataloader(train_set, shuffle=True, **options),
        idist.auto_dataloader(test_set, shuffle=False, **options),
    )


def _reshuffle(engine: Any, sampler: Any) -> None:
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(engine.state.epoch)


if __name__ == "__main__":
    main()
