"""Tries a network out before it is trained: one forward and one backward pass, as training does it.

A copy is tried, so the network's weights, statistics and random numbers stay as they are.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from dist_mnist.config.errors import InputError, one_line

WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Trial(NamedTuple):
    """What a trial of a network has shown.

    Attributes:
        multiply_adds: Multiplications of a forward pass for one image, in the layers with weights;
            each weight is used at least once.
        unused: The names of the parameters that got no gradient.
    """

    multiply_adds: int
    unused: tuple[str, ...]


def try_out(model: nn.Module, image_shape: Sequence[int]) -> Trial:
    """Try a network in train mode, in its memory format; leave it contiguous if only that works.

    Args:
        model: On the CPU.
        image_shape: Channels, height and width.

    Raises:
        InputError: The network cannot be trained, or its gradients cannot be averaged.
    """
    try:
        return _try(model, torch.zeros(2, *image_shape))
    except InputError:
        raise
    except Exception:  # such as `view`, on images that are channels last
        model.to(memory_format=torch.contiguous_format)
    try:
        return _try(model, torch.zeros(2, *image_shape))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model cannot be trained: {one_line(error)[:300]}.") from error


def trains_on_one_image(model: nn.Module, image_shape: Sequence[int]) -> bool:
    """Return whether a single image will do: batch norm may have no statistics of it."""
    try:
        _try(model, torch.zeros(1, *image_shape))
    except InputError:
        raise
    except Exception:
        return False
    return True


def _try(model: nn.Module, images: torch.Tensor) -> Trial:
    counts: list[int] = []

    def count(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        per_image = outputs.numel() // len(images)
        counts.append(per_image * layer.weight[0].numel())  # type: ignore[index]

    tried = copy.deepcopy(model).train()
    for layer in tried.modules():
        if isinstance(layer, WEIGHTED_LAYERS):
            layer.register_forward_hook(count)
    with torch.random.fork_rng(devices=[]):
        tried(images).float().sum().backward()
    _check_gradients(tried)
    wanted = [(name, p) for name, p in tried.named_parameters() if p.requires_grad]
    return Trial(
        multiply_adds=max(sum(counts), sum(p.numel() for _, p in wanted)),
        unused=tuple(name for name, p in wanted if p.grad is None),
    )


def _check_gradients(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            kind = "complex"
        elif parameter.grad is not None and parameter.grad.layout is not torch.strided:
            kind = "sparse"
        else:
            continue
        raise InputError(
            f"model.{name} has {kind} gradients, which cannot be averaged over processes and "
            f"checked: use a layer with dense, real ones (for an embedding, sparse=False)."
        )
