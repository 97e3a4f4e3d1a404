"""Finds out whether a network does nothing but compute, so that threads can share its weights."""

import copy
import io
import pickle
import random
from types import FunctionType
from typing import Any

import numpy
import torch
from torch import nn

from dist_mnist.config.data_schema import DataConfig

Place = tuple[dict[str, Any], str]  # of a buffer: a module's dictionary, and the name there


def copy_of(model: nn.Module) -> nn.Module | None:
    """Return a copy of a network, or None if it cannot be copied: it holds a lock, for example."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return None


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
    return [place for place in all_buffers(network) if not _is_constant(look_up(place))]


def _is_constant(buffer: torch.Tensor) -> bool:
    steps = zip(buffer.shape, buffer.stride(), strict=True)
    is_expanded = any(size > 1 and stride == 0 for size, stride in steps)
    return is_expanded or buffer.dtype is torch.bool or not bool(buffer.isfinite().all())


def look_up(place: Place) -> torch.Tensor:
    """Return the buffer in a place."""
    holder, name = place
    buffer: torch.Tensor = holder[name]
    return buffer


def _version(place: Place) -> tuple[int, int]:
    """Return what changes when a buffer is written to, even with the same values, or replaced."""
    return id(look_up(place)), look_up(place)._version


def is_pure(model: nn.Module, data: DataConfig) -> bool:
    """Return whether copies of a network that share its weights can run side by side.

    As far as a pass in each mode can show: it draws no random numbers and remembers nothing, but in
    buffers in train mode.

    Args:
        model: On the CPU; it is not changed.
        data: The shape of its images.
    """
    network = copy_of(model)
    if network is None:
        return False
    buffers = all_buffers(network)
    constants = [place for place in buffers if _is_constant(look_up(place))]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for is_training, kept in ((False, buffers), (True, constants)):
            network.train(is_training)
            memory, written = _memory(network), [*map(_version, kept)]
            network(torch.zeros(2, *data.image_shape))
            if memory is None or memory != _memory(network) or written != [*map(_version, kept)]:
                return False
    return True


def is_pure_loss(loss: nn.Module) -> bool:
    """Return whether several threads can call a loss: those of torch and of this package."""
    return type(loss).__module__.startswith(("torch.nn.", "dist_mnist."))


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
