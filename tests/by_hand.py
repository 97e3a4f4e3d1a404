"""The whole training in one file of plain PyTorch: read it from top to bottom, as a tutorial.

python -m tests.by_hand trainer.epochs=1 seed=3                one process
torchrun --standalone --nproc_per_node=4 -m tests.by_hand      four processes, one training

Both print what dist_mnist does on a CPU. Each part names the file that does the same at full speed.
"""

import gzip
import hashlib
import math
import os
import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

# The options, with their defaults.                                 conf/, config/schema.py
OPTIONS = {
    "seed": 0,
    "data.validation_size": 5000,
    "augmentation.shift_pixels": 1,
    "loss.label_smoothing": 0.05,
    "optimizer.lr": 0.01,
    "trainer.epochs": 5,
    "trainer.max_steps": 10**9,
    "trainer.global_batch_size": 256,
}

# The processes: torchrun starts them and tells each its rank.   distributed/launcher.py, session.py
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
SHARDS = 8  # of a batch


# The data: MNIST's files are a header, then one byte per pixel.    data/mnist/
def read_mnist(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, uint8 (N, 1, 28, 28), and labels, int64 (N,)."""
    folder = Path(__file__).parents[1] / "dist_mnist" / "data" / "mnist"
    pixels = bytearray(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()))
    labels = bytearray(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()))
    images = torch.frombuffer(pixels, dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)
    return images, torch.frombuffer(labels, dtype=torch.uint8, offset=8).long()


# Random numbers depend on their purpose, not on earlier draws. So every rank draws the same, and a
# run that continues needs no stored random state.                  data/seeding.py
def keyed_seed(*key: int | str) -> int:
    """Return a seed that is a function of the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# Validation: the same share of each class, held out of training.   data/splits.py
def is_held_out(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Return bool (N,): which samples are for validation."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, "validation split"))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    evenly = (torch.arange(size, dtype=torch.float64) + 0.5) * len(labels) / max(size, 1)
    return torch.zeros(len(labels), dtype=torch.bool).index_fill(0, by_class[evenly.long()], True)


# Normalization: pixels of mean 0 and standard deviation 1.         data/images.py
def mean_and_std(images: torch.Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation of all pixels, on a scale from 0 to 1."""
    counts, values = torch.bincount(images.flatten(), minlength=256), torch.arange(256)
    mean, mean_square = (int((counts * v).sum()) / images.numel() for v in (values, values**2))
    return mean / 255, (mean_square - mean * mean) ** 0.5 / 255


# The network: three convolutions, 29,434 parameters.               models/networks.py
def build_network(seed: int) -> nn.Module:
    """Return the network; its weights depend on the seed alone."""
    torch.manual_seed(keyed_seed(seed, "weights"))
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((1, 16, 5), (16, 32, 3), (32, 64, 3)):
        layers.append(nn.Conv2d(inputs, outputs, kernel, bias=False))
        if outputs < 64:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * 3 * 3, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


# The order: a global batch is the same samples at any world size.  data/sampler.py
def global_batches(seed: int, epoch: int, size: int, batch_size: int) -> list[torch.Tensor]:
    """Return the indices of each batch of an epoch."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, "order", epoch))
    return list(torch.randperm(size, generator=generator).split(batch_size))


# Augmentation: each image moves by whole pixels.                   data/augmentation.py
def shift(images: torch.Tensor, moves: torch.Tensor, pixels: int) -> torch.Tensor:
    """Move images, uint8 (B, 1, 28, 28), by `moves - pixels`, int64 (2, B), down and right."""
    windows = F.pad(images, [pixels] * 4).unfold(2, 28, 1).unfold(3, 28, 1)
    return windows[torch.arange(len(images)), :, moves[0], moves[1]]


# The schedule: up for a fifth of the steps, then down, as cosines.  training/schedules.py
def one_cycle(step: int, total_steps: int) -> float:
    """Return the factor of the learning rate in a step."""
    peak = 0.2 * total_steps - 1
    start, end, progress = 1 / 25, 1.0, step / peak
    if step >= peak:
        start, end, progress = 1.0, 1 / 25 / 10_000, (step - peak) / (total_steps - 1 - peak)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


# A batch is eight shards, which the processes share. The gradients of each are computed alone and
# added as a tree, so the order does not depend on who computed which.  distributed/gradients.py
def tree_sum(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of the rows of all processes, (SHARDS, N); others' rows are zeros."""
    if WORLD_SIZE > 1:
        dist.all_reduce(rows)
    while len(rows) > 1:
        rows = rows[: len(rows) // 2] + rows[len(rows) // 2 :]
    return rows[0]


# Evaluation: every sample once; the ranks take turns.              training/evaluation.py
@torch.inference_mode()
def count_correct(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Return how many normalized images are predicted correctly, over all ranks."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64)
    for block in torch.arange(len(labels)).split(500)[RANK::WORLD_SIZE]:
        correct += (network(images[block]).argmax(dim=1) == labels[block]).sum()
    if WORLD_SIZE > 1:
        dist.all_reduce(correct)
    return int(correct)


# The loop.           training/loop.py, training/step.py, training/selection.py
def train(options: dict[str, float]) -> tuple[dict[str, torch.Tensor], int]:
    """Return the weights after the last step, and the best epoch's number of correct tests."""
    seed, pixels = int(options["seed"]), int(options["augmentation.shift_pixels"])
    torch.set_num_threads(1)  # a sum that threads share depends on their number
    images, labels = read_mnist("train")
    mean, std = mean_and_std(images)

    def normalized(images: torch.Tensor) -> torch.Tensor:  # (pixel / 255 - mean) / std
        return torch.add(torch.tensor(-mean / std), images, alpha=1 / (255 * std))

    held_out = is_held_out(labels, int(options["data.validation_size"]), seed)
    validation = normalized(images[held_out]), labels[held_out]
    images, labels = images[~held_out], labels[~held_out]
    network, smoothing = build_network(seed), options["loss.label_smoothing"]
    targets = smoothing / 10 + (1 - smoothing) * torch.eye(10)  # models/losses.py
    parameters, buffers = list(network.parameters()), dict(network.named_buffers())
    sizes = [tensor.numel() for tensor in (*parameters, *buffers.values())]
    optimizer = torch.optim.AdamW(parameters, betas=(0.85, 0.99), weight_decay=0.05, fused=True)
    epochs, batch_size = int(options["trainer.epochs"]), int(options["trainer.global_batch_size"])
    steps_per_epoch = math.ceil(len(labels) / batch_size)
    total_steps = steps_per_epoch * epochs
    last_step, step, best_correct = min(total_steps, int(options["trainer.max_steps"])), 0, -1
    for epoch in range(epochs):
        network.train()
        for batch in global_batches(seed, epoch, len(labels), batch_size)[: last_step - step]:
            torch.manual_seed(keyed_seed(seed, "augmentation", step))
            moves = torch.randint(2 * pixels + 1, (2, len(batch)))
            rows, shards = torch.zeros(SHARDS, sum(sizes)), min(SHARDS, len(batch))
            for shard in range(RANK, shards, WORLD_SIZE):  # training/shards.py
                chosen, new = batch[shard::SHARDS], {k: b.clone() for k, b in buffers.items()}
                inputs = normalized(shift(images[chosen], moves[:, shard::SHARDS], pixels))
                outputs = functional_call(network, new, inputs)
                losses = -(F.log_softmax(outputs, dim=1) * targets[labels[chosen]]).sum(dim=1)
                gradients = torch.autograd.grad(losses.sum() * (1 / len(batch)), parameters)
                changes = ((new[name] - old) / shards for name, old in buffers.items())
                rows[shard] = torch.cat([t.flatten() for t in (*gradients, *changes)])
            pieces = tree_sum(rows).split(sizes)
            for parameter, piece in zip(parameters, pieces, strict=False):
                parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))
            for buffer, piece in zip(buffers.values(), pieces[len(parameters) :], strict=True):
                buffer += piece.view_as(buffer).to(buffer.dtype)
            optimizer.param_groups[0]["lr"] = options["optimizer.lr"] * one_cycle(step, total_steps)
            optimizer.step()
            step += 1
        correct = count_correct(network, *validation)
        last = deepcopy(network.state_dict())
        is_whole = step == (epoch + 1) * steps_per_epoch
        if epoch == 0 or not len(validation[1]) or (is_whole and correct >= best_correct):
            best_correct, best = correct, last  # the best epoch: the latest of equals
    network.load_state_dict(best)  # training/final_test.py
    images, labels = read_mnist("t10k")
    return last, count_correct(network, normalized(images), labels)


if __name__ == "__main__":
    if WORLD_SIZE > 1:
        dist.init_process_group("gloo")
    typed = {key: float(value) for key, value in (word.split("=") for word in sys.argv[1:])}
    assert typed.keys() <= OPTIONS.keys(), f"choose from {', '.join(OPTIONS)}"
    _, right = train(OPTIONS | typed)
    if RANK == 0:
        print(f"test accuracy {right / 10_000:.4f} ({right}/10000)")
