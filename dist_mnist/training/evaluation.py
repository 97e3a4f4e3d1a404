"""The exact score of a network on a set of images, however many processes share the work."""

import torch
from torch import nn

from dist_mnist.data.splits import ImageTensors, Normalization
from dist_mnist.distributed import whereabouts
from dist_mnist.distributed.gradients import World, all_reduce_sum, broadcast_buffers
from dist_mnist.models.precision import autocast
from dist_mnist.training.progress import Evaluation


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loss: nn.Module,
    dataset: ImageTensors,
    normalization: Normalization,
    world: World,
    batch_size: int,
    dtype: torch.dtype,
) -> Evaluation:
    """Predict every sample once, in eval mode; the model is left in the mode it was in.

    Every rank takes every `world.size`-th block of samples, the same blocks at any world size, and
    writes its answers into its own places of one table; one sum over the ranks then gives all of
    them the whole table. Every rank must call it.

    Args:
        model: The bare module, on `world.device`.
        loss: Gives one value per sample.
        dataset: The samples, on `world.device`.
        normalization: What the model was trained with.
        world: This process.
        batch_size: Samples of a block, which is one forward pass of one process.
        dtype: What the forward pass computes in.
    """
    was_training = model.training
    model.eval()
    broadcast_buffers(world, model)
    table = torch.zeros(4, len(dataset), device=world.device)
    blocks = range(0, len(dataset), batch_size)
    for start in blocks[world.rank :: world.size]:
        whereabouts.move()
        block = slice(start, start + batch_size)
        images, labels = dataset.images[block], dataset.labels[block]
        with autocast(world.device, dtype):
            outputs = model(normalization(images)).float()
        confidences, predictions = outputs.softmax(dim=1).max(dim=1)
        seen = torch.ones_like(confidences)
        table[:, block] = torch.stack((loss(outputs, labels), predictions, confidences, seen))
    model.train(was_training)
    losses, predictions, confidences, seen = all_reduce_sum(world, table).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError("evaluation did not see every sample exactly once")
    return Evaluation(dataset.labels.cpu(), predictions.long(), confidences, losses)
