"""A dry run of a network before training: one forward and one backward pass in train mode.

It runs a copy, so the network's weights, statistics and random numbers do not change.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError, one_line, refusing

T = TypeVar("T")
WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Findings(NamedTuple):
    """The findings of a dry run."""

    multiply_adds: int  # of a forward pass for one image; at least one for each weight
    unused: tuple[str, ...]  # the names of the parameters that got no gradient


def dry_run(model: nn.Module, data: DataConfig) -> Findings:
    """Try a network in train mode and its memory format; make it contiguous if only that works.

    Args:
        model: On the CPU; it must work with `copy.deepcopy`.
        data: The shape of its images, and the number of its classes.

    Raises:
        InputError: The network cannot be trained, or its gradients cannot be averaged.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model has no trainable parameters: set requires_grad=True on one.")
    with refusing("model cannot be trained"):
        return retry_contiguous(model, partial(_run, model, data, images=2))


def retry_contiguous(model: nn.Module, attempt: Callable[[], T]) -> T:
    """Return the result of an attempt; if it fails, make the model contiguous and try once more.

    `view` fails on channels-last images.
    """
    try:
        return attempt()
    except InputError:
        raise
    except Exception:
        model.to(memory_format=torch.contiguous_format)
        return attempt()


def trains_on_one_image(model: nn.Module, data: DataConfig) -> bool:
    """Return whether a network can train on a single image; batch norm may refuse it."""
    try:
        _run(model, data, images=1)
    except InputError:
        raise
    except Exception:
        return False
    return True


def check_outputs(outputs: object, images: int, classes: int, when: str = "") -> None:
    """Check that a network returned one row of logits for each image.

    Raises:
        InputError: It did not.
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


def _run(model: nn.Module, data: DataConfig, images: int) -> Findings:
    counts: list[int] = []

    def count(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        per_image = outputs.numel() // images
        counts.append(per_image * layer.weight[0].numel())  # type: ignore[index]

    try:
        copied = copy.deepcopy(model).train()
    except Exception as error:  # a lock, for example
        raise InputError(
            f"model cannot be copied ({one_line(error)}): its attributes must work with "
            f"copy.deepcopy."
        ) from error
    for layer in copied.modules():
        if isinstance(layer, WEIGHTED_LAYERS):
            layer.register_forward_hook(count)
    with torch.random.fork_rng(devices=[]):
        outputs = copied(torch.zeros(images, *data.image_shape))
        check_outputs(outputs, images, data.class_count, when=" in train mode")
        outputs.float().sum().backward()
    _check_gradients(copied)
    # By the model, not by its copy: a layer that thaws later may freeze itself in a forward pass.
    wanted = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in copied.named_parameters()}
    return Findings(
        multiply_adds=max(sum(counts), sum(wanted.values())),
        unused=tuple(name for name in wanted if gradients[name] is None),
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
            f"model.{name} has {kind} gradients, which can be neither averaged over processes "
            f"nor checked: use a layer with dense, real ones (for an embedding, sparse=False)."
        )
