"""Accelerate: one's own loop over the objects that `prepare` returns."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader

from tests.benchmarks.contenders.common import (
    DDP_OPTIONS,
    LEARNING_RATE,
    Stopwatch,
    mnist,
    network,
    parse_arguments,
    report,
)


def main() -> None:
    """Train, evaluate and report."""
    arguments = parse_arguments()
    accelerator = Accelerator(
        # Without a GPU it would otherwise let every process train alone.
        cpu=not torch.cuda.is_available(),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=[DistributedDataParallelKwargs(**DDP_OPTIONS)],
    )
    model = network(arguments)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    options, batch_size = arguments.loader_options, arguments.batch_size
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        optimizer,
        DataLoader(mnist(arguments, train=True), batch_size, shuffle=True, **options),
        DataLoader(mnist(arguments, train=False), batch_size, **options),
    )
    loss_function = nn.CrossEntropyLoss()
    training, evaluation = Stopwatch(), Stopwatch()
    for _ in range(arguments.epochs):
        with training.running():
            model.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                loss = loss_function(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
    with evaluation.running():
        accuracy = evaluate(accelerator, model, test_loader)
    report(training, evaluation, accuracy)


@torch.inference_mode()
def evaluate(accelerator: Any, model: nn.Module, loader: Any) -> float:
    """Return the accuracy; gathering drops the samples that only filled up the last batch."""
    model.eval()
    correct = count = 0
    for images, labels in loader:
        answers = (model(images).argmax(dim=1), labels)
        predictions, labels = accelerator.gather_for_metrics(answers)
        correct += int((predictions == labels).sum())
        count += len(labels)
    return correct / count


if __name__ == "__main__":
    main()
