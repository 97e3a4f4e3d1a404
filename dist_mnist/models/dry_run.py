"""Tries a network out before it is trained: one forward and one backward pass, as training does it.

A copy is tried, so the network's weights, statistics and random numbers stay as they are.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError, one_line

T = TypeVar("T")
WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Trial(NamedTuple):
    """The findings of a trial.

    Attributes:
        multiply_adds: Multiplications of a forward pass for one image, in the layers with weights;
            each weight is used at least once.
        unused: The names of the parameters that got no gradient.
    """

    multiply_adds: int
    unused: tuple[str, ...]


def try_out(model: nn.Module, data: DataConfig) -> Trial:
    """Try a network in train mode, in its memory format; leave it contiguous if only that works.

    Args:
        model: On the CPU.
        data: The shape of its images, and the number of its classes.

    Raises:
        InputError: The network cannot be trained, or its gradients cannot be averaged.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "model has nothing to train: give it a parameter whose requires_grad is true."
        )
    try:
        return or_contiguous(model, partial(_try, model, data, images=2))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model cannot be trained: {one_line(error)[:300]}.") from error


def or_contiguous(model: nn.Module, attempt: Callable[[], T]) -> T:
    """Return what an attempt returns; if it fails, make the model contiguous and try once more.

    `view` fails on images that are channels last.
    """
    try:
        return attempt()
    except InputError:
        raise
    except Exception:
        model.to(memory_format=torch.contiguous_format)
        return attempt()


def trains_on_one_image(model: nn.Module, data: DataConfig) -> bool:
    """Return whether a single image will do: batch norm may have no statistics of it."""
    try:
        _try(model, data, images=1)
    except InputError:
        raise
    except Exception:
        return False
    return True


def check_outputs(outputs: object, images: int, classes: int, when: str = "") -> None:
    """Check that a network has answered with one row of logits for each image.

    Raises:
        InputError: It has not.
    """
    if not isinstance(outputs, torch.Tensor):
        raise InputError(
            f"model returns a {type(outputs).__name__}{when}: it must return one tensor of logits."
        )
    if list(outputs.shape) != [images, classes]:
        raise InputError(
            f"model has outputs of shape {list(outputs.shape)[1:]}{when}, but "
            f"data.num_classes={classes}."
        )


def _try(model: nn.Module, data: DataConfig, images: int) -> Trial:
    counts: list[int] = []

    def count(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        per_image = outputs.numel() // images
        counts.append(per_image * layer.weight[0].numel())  # type: ignore[index]

    tried = _copy(model).train()
    for layer in tried.modules():
        if isinstance(layer, WEIGHTED_LAYERS):
            layer.register_forward_hook(count)
    with torch.random.fork_rng(devices=[]):
        outputs = tried(torch.zeros(images, *data.image_shape))
        check_outputs(outputs, images, data.class_count, when=" in train mode")
        outputs.float().sum().backward()
    _check_gradients(tried)
    # By the model, not by its copy: a layer that thaws later may freeze itself in a forward pass.
    wanted = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in tried.named_parameters()}
    return Trial(
        multiply_adds=max(sum(counts), sum(wanted.values())),
        unused=tuple(name for name in wanted if gradients[name] is None),
    )


def _copy(model: nn.Module) -> nn.Module:
    """Return a deep copy; what cannot be copied, such as a lock, is shared with it."""
    try:
        return copy.deepcopy(model)
    except Exception:
        torchs = vars(nn.Module())
        own = [
            value
            for module in model.modules()
            for name, value in vars(module).items()
            if name not in torchs
        ]
        shared = {id(value): value for value in own if not _can_be_copied(value)}
        return copy.deepcopy(model, shared)


def _can_be_copied(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


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
