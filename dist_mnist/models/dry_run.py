"""A dry run of a network before training: one forward and one backward pass in train mode.

It runs a copy where it can, so the network's weights, statistics and random numbers do not change.
"""

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import numpy
import torch
from torch import nn

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError, refusing

T = TypeVar("T")
Place = tuple[dict[str, Any], str]  # of a buffer: a module's dictionary, and the name there
WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Findings(NamedTuple):
    """The findings of a dry run."""

    multiply_adds: int  # of a forward pass for one image; at least one for each weight
    gradient_bytes: int
    unused: tuple[str, ...]  # the names of the parameters that got no gradient
    # Whether copies that share its weights can run side by side, as far as a pass in each mode can
    # show: it draws no random numbers and remembers nothing, but in buffers in train mode.
    is_pure: bool


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

    trial, is_copied = _copy_of(model)
    restored = nullcontext() if is_copied else _restored(trial)
    zeros = torch.zeros(images, *data.image_shape)
    with torch.random.fork_rng(devices=[]), restored, ExitStack() as hooks:
        for layer in trial.train().modules():
            if isinstance(layer, WEIGHTED_LAYERS):
                hooks.enter_context(layer.register_forward_hook(count))
        outputs = trial(zeros)
        check_outputs(outputs, images, data.class_count, when=" in train mode")
        outputs.float().sum().backward()
        _check_gradients(trial)
        gradients = {name: p.grad for name, p in trial.named_parameters()}
        is_pure = is_copied and _is_pure(copy.deepcopy(model), zeros)
    # By the model, not by its copy: a layer that thaws later may freeze itself in a forward pass.
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Findings(
        multiply_adds=max(sum(counts), sum(p.numel() for p in wanted.values())),
        gradient_bytes=sum(p.nbytes for p in wanted.values()),
        unused=tuple(name for name in wanted if gradients[name] is None),
        is_pure=is_pure,
    )


def _copy_of(model: nn.Module) -> tuple[nn.Module, bool]:
    """Return a copy of a network, or itself if it cannot be copied, and whether it was."""
    try:
        return copy.deepcopy(model), True
    except Exception:  # it holds a lock, for example
        return model, False


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore a network's modes, buffers and gradients at the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(*place, _look_up(place), _look_up(place).clone()) for place in all_buffers(model)]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for holder, name, buffer, value in buffers:
            holder[name] = buffer if torch.equal(buffer, value) else buffer.copy_(value)
        for parameter in model.parameters():
            parameter.grad = None


def all_buffers(network: nn.Module) -> list[Place]:
    """Return where the buffers of a network are: in which dictionary, and under which name."""
    return [
        (module._buffers, name)
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def changing_buffers(network: nn.Module) -> list[Place]:
    """Return where the buffers are that training may change.

    Masks, infinities and buffers that were expanded are taken for constants.
    """
    return [place for place in all_buffers(network) if not _is_constant(_look_up(place))]


def _is_constant(buffer: torch.Tensor) -> bool:
    steps = zip(buffer.shape, buffer.stride(), strict=True)
    is_expanded = any(size > 1 and stride == 0 for size, stride in steps)
    return is_expanded or buffer.dtype is torch.bool or not bool(buffer.isfinite().all())


def _look_up(place: Place) -> torch.Tensor:
    holder, name = place
    buffer: torch.Tensor = holder[name]
    return buffer


def _version(place: Place) -> tuple[int, int]:
    """Return what changes when a buffer is written to, even with the same values, or replaced."""
    return id(_look_up(place)), _look_up(place)._version


def _is_pure(network: nn.Module, images: torch.Tensor) -> bool:
    """Return whether passes leave nothing behind: in train mode, nothing but in buffers."""
    buffers = all_buffers(network)
    constants = [place for place in buffers if _is_constant(_look_up(place))]
    for is_training, kept in ((False, buffers), (True, constants)):
        network.train(is_training)
        memory, written = _memory(network), [*map(_version, kept)]
        with torch.no_grad():
            network(images)
        if memory is None or memory != _memory(network) or written != [*map(_version, kept)]:
            return False
    return True


class _Pickler(pickle.Pickler):
    """Pickles what a network remembers: all but its parameters, buffers and plain functions."""

    def __init__(self, model: nn.Module, file: io.BytesIO) -> None:
        super().__init__(file)
        self._known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def persistent_id(self, value: Any) -> int | None:
        # A closure may hold a part of the network, which a copy would share with the network.
        is_plain = isinstance(value, FunctionType) and not value.__closure__
        return id(value) if is_plain or id(value) in self._known else None


def _memory(model: nn.Module) -> tuple[Any, ...] | None:
    """Return what a pass may leave behind, and the states of the generators; None if unknown."""
    file = io.BytesIO()
    try:
        _Pickler(model, file).dump(model)
    except Exception:  # a lock, a closure, or an object of the network's own
        return None
    torchs, numpys = torch.get_rng_state().numpy().tobytes(), pickle.dumps(numpy.random.get_state())
    return file.getvalue(), torchs, numpys, random.getstate()


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
