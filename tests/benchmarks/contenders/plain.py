"""DistributedDataParallel by hand, in the shape of PyTorch's own examples."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from tests.benchmarks.contenders.common import (
    DDP_OPTIONS,
    LEARNING_RATE,
    LOCAL_RANK,
    RANK,
    WORLD_SIZE,
    Arguments,
    Stopwatch,
    mnist,
    network,
    parse_arguments,
    report,
)


def main() -> None:
    """Train, evaluate and report."""
    arguments = parse_arguments()
    device = _set_up()
    model = network(arguments).to(device)
    parallel_model: nn.Module = model
    if WORLD_SIZE > 1:
        device_ids = [LOCAL_RANK] if device.type == "cuda" else None
        parallel_model = DistributedDataParallel(model, device_ids=device_ids, **DDP_OPTIONS)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    loss_function = nn.CrossEntropyLoss()

    dataset = mnist(arguments, train=True)
    sampler: DistributedSampler[Any] | None = None
    if WORLD_SIZE > 1:
        sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(
        dataset,
        arguments.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        **arguments.loader_options,
    )
    training, evaluation = Stopwatch(), Stopwatch()
    for epoch in range(arguments.epochs):
        with training.running():
            if sampler:
                sampler.set_epoch(epoch)
            train_epoch(parallel_model, loader, loss_function, optimizer, device)
    with evaluation.running():
        accuracy = evaluate(model, arguments, device)
    report(training, evaluation, accuracy)


def _set_up() -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(LOCAL_RANK)
    if WORLD_SIZE > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    """See the training set once."""
    model.train()
    for images, labels in loader:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = loss_function(model(images), labels)
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(model: nn.Module, arguments: Arguments, device: torch.device) -> float:
    """Return the share of right answers to the test set, of which each rank sees its part."""
    model.eval()
    everything = mnist(arguments, train=False)
    size = len(everything)  # type: ignore[arg-type]
    own_part: Dataset[tuple[torch.Tensor, torch.Tensor]]
    own_part = Subset(everything, range(RANK, size, WORLD_SIZE))
    correct = torch.zeros(1, device=device)
    for images, labels in DataLoader(own_part, arguments.batch_size, **arguments.loader_options):
        correct += (model(images.to(device)).argmax(dim=1) == labels.to(device)).sum()
    if WORLD_SIZE > 1:
        dist.all_reduce(correct)
    return correct.item() / size


if __name__ == "__main__":
    main()
