"""The published record for 99 %, rewritten from its figures.

tuomaso/train_mnist_fast reports 99.04 +- 0.07 % over 30 seeds after one epoch, in 0.76 s on a GTX
1660 Ti: convolutions 5x5x24 and 3x3x32, each pooled, linear layers 800-256-10, batches of 256,
Adam at 0.01 with betas 0.7 and 0.9, a one-cycle schedule, all data on the device, and a clock that
leaves loading out. Prints seconds and test accuracy as JSON.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST


def load(data: str, train: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised float32 images (N, 1, 28, 28) and int64 labels (N,) on the device."""
    dataset = MNIST(data, train=train)
    images = dataset.data.to(device).unsqueeze(1).float().div_(255).sub_(0.1307).div_(0.3081)
    return images, dataset.targets.to(device)


def build() -> nn.Module:
    """Return the record's network."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def main() -> None:
    """Train one epoch and test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = load(arguments.data, train=True, device=device)
    test_images, test_labels = load(arguments.data, train=False, device=device)
    model = build().to(device)
    F.cross_entropy(model(images[:256]), labels[:256]).backward()  # libraries warm up untimed
    if device.type == "cuda":
        torch.cuda.synchronize()

    started = time.perf_counter()
    batches = torch.randperm(len(labels), device=device).split(256)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=len(batches), cycle_momentum=False
    )
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    trained = time.perf_counter()

    model.eval()
    with torch.inference_mode():
        correct = (model(test_images).argmax(dim=1) == test_labels).float().mean().item()
    result = {
        "training_seconds": trained - started,
        "evaluation_seconds": time.perf_counter() - trained,
        "test_accuracy": correct,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
