"""A dry run of a network before training: one forward and one backward pass in train mode.

It runs a copy where it can, so the network's weights, statistics and random numbers do not change.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.models.purity import all_buffers, copy_of, look_up

T = TypeVar("T")
WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Findings(NamedTuple):
    """The findings of a dry run."""

    multiply_adds: int  # of a forward pass for one image; at least one for each weight
    gradient_bytes: int
    skips_parameters: bool  # whether one of them got no gradient


def dry_run(model: nn.Module, data: DataConfig) -> Findings:
    """Try a network in train mode and its memory format; make it contiguous if only that works.

    Args:
        model: On the CPU. If `copy.deepcopy` cannot copy it, it is run itself, and its buffers and
            gradients are as before afterwards.
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

    copied = copy_of(model)
    trial, restored = (model, _restored(model)) if copied is None else (copied, nullcontext())
    with torch.random.fork_rng(devices=[]), restored, ExitStack() as hooks:
        for layer in trial.train().modules():
            if isinstance(layer, WEIGHTED_LAYERS):
                hooks.enter_context(layer.register_forward_hook(count))
        outputs = trial(torch.zeros(images, *data.image_shape))
        check_outputs(outputs, images, data.class_count, when=" in train mode")
        outputs.float().sum().backward()
        _check_gradients(trial)
        gradients = {name: p.grad for name, p in trial.named_parameters()}
    # By the model, not by its copy: a layer that thaws later may freeze itself in a forward pass.
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Findings(
        multiply_adds=max(sum(counts), sum(p.numel() for p in wanted.values())),
        gradient_bytes=sum(p.nbytes for p in wanted.values()),
        skips_parameters=any(gradients[name] is None for name in wanted),
    )


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore a network's modes, buffers and gradients at the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(*place, look_up(place), look_up(place).clone()) for place in all_buffers(model)]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for holder, name, buffer, value in buffers:
            holder[name] = buffer if torch.equal(buffer, value) else buffer.copy_(value)
        for parameter in model.parameters():
            parameter.grad = None


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
