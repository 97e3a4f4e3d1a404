"""PyTorch's own MNIST example, rewritten from its figures, until it reaches an accuracy.

Two 3x3 convolutions with 32 and 64 channels, pooling, dropout 0.25, linear layers 9216-128-10 with
dropout 0.5 between, log-softmax and NLL; batches of 64 through a DataLoader, Adadelta at 1.0 times
0.7 after every epoch, 14 epochs (https://github.com/pytorch/examples/tree/main/mnist). Prints the
seconds and the test accuracy of every epoch up to the goal as JSON.
"""

import argparse
import json
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

EPOCHS = 14


def build() -> nn.Module:
    """Return the example's network."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
        nn.LogSoftmax(dim=1),
    )


def train(
    model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer, device: str
) -> None:
    """Train one epoch."""
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.nll_loss(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader[Any], device: str) -> float:
    """Return the share of the test set that is predicted right."""
    model.eval()
    correct = 0
    for images, labels in loader:
        correct += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return correct / 10_000


def main() -> None:
    """Train until the test accuracy is reached, or to the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--until", type=float, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    on_gpu = {"num_workers": 1, "persistent_workers": True, "pin_memory": True}
    options: dict[str, Any] = on_gpu if device == "cuda" else {}
    training = DataLoader(
        MNIST(arguments.data, train=True, transform=pixels), 64, shuffle=True, **options
    )
    testing = DataLoader(MNIST(arguments.data, train=False, transform=pixels), 1000, **options)
    model = build().to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    seconds: list[float] = []
    evaluation_seconds: list[float] = []
    accuracies: list[float] = []
    while len(seconds) < EPOCHS and max(accuracies, default=0.0) < arguments.until:
        started = time.perf_counter()
        train(model, training, optimizer, device)
        schedule.step()
        seconds.append(time.perf_counter() - started)
        accuracies.append(test(model, testing, device))
        evaluation_seconds.append(time.perf_counter() - started - seconds[-1])
    result = {
        "training_seconds": sum(seconds),
        "evaluation_seconds": sum(evaluation_seconds),
        "test_accuracy": accuracies[-1],
        "seconds_per_epoch": seconds,
        "test_accuracies": accuracies,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
