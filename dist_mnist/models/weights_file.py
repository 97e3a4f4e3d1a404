"""Weights from a file: a checkpoint of ours, a safetensors file, or one that `torch.save` wrote.

Other programs put the state dict inside of other things, and names inside of other names
(DataParallel's `module.`, torch.compile's `_orig_mod.`, Lightning's `model.`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.data.test_set import match_classes, some
from dist_mnist.record import checkpoint

Tensors = dict[str, torch.Tensor]


class Weights(NamedTuple):
    """Tensors by the names of a network, and a line for everything that was done to get them."""

    tensors: Tensors
    notes: list[str]


def read_weights(path: Path, model: nn.Module, classes: Sequence[str] = ()) -> Weights:
    """Read a state dict onto the CPU, without running code from the file.

    Args:
        path: A run directory (its best checkpoint), a checkpoint, a safetensors file, or a file of
            `torch.save`.
        model: The network that decides which of several state dicts, and which prefix, is meant.
        classes: Its classes, in the order of its outputs.

    Raises:
        InputError: There is no such file, or it holds no weights, or of a kind that cannot be used.
    """
    path = checkpoint.resolve(path)
    dicts, their_classes = _read(path)
    ours = _tensors(model.state_dict())
    if not dicts:
        raise InputError(
            f"transfer.checkpoint={path} holds no tensors by name: save the network's state_dict()."
        )
    renamed = {key: _rename(tensors, ours) for key, tensors in dicts.items()}
    key = max(renamed, key=lambda key: _fits(renamed[key].tensors, ours))
    tensors, notes = renamed[key]
    _require_usable(path, tensors)
    if key:
        notes.insert(0, f"taken from {key} in the file")
    if their_classes and classes and their_classes != [*classes]:
        notes += _match_head(tensors, ours, their_classes, classes)
    return Weights(tensors, notes)


def _read(path: Path) -> tuple[dict[str, Tensors], list[str]]:
    """Return a file's state dicts by their keys in it, and the classes of a checkpoint of ours."""
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # after the size of its header
        if not is_safetensors:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
            return dict(_state_dicts(content)), []
        with safe_open(path, framework="pt") as tensors:
            if "dist_mnist" not in (tensors.metadata() or {}):
                found = {n: tensors.get_tensor(n) for n in tensors.keys()}  # noqa: SIM118
                return dict(_state_dicts(found)), []
        content = checkpoint.load(path)  # checks its checksum
        return dict(_state_dicts(content["model"])), [*map(str, content["classes"])]
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"transfer.checkpoint={path} cannot be read ({error.strerror or one_line(error)}): "
            f"give a run directory with a checkpoint, or a file."
        ) from error
    except (Exception, RecursionError) as error:  # a file from elsewhere may contain anything
        raise InputError(
            f"transfer.checkpoint={path} is neither a safetensors file nor one of torch.save that "
            f"holds tensors alone ({type(error).__name__}): save the network's state_dict()."
        ) from error


def _state_dicts(content: Any, key: str = "") -> Iterator[tuple[str, Tensors]]:
    """Yield the mappings of names to tensors in a file's content, by their keys in it."""
    if isinstance(content, Mapping):
        tensors = _tensors(content)
        if tensors:
            yield key, tensors
        for name, part in content.items():
            yield from _state_dicts(part, f"{key}.{name}".lstrip("."))


def _tensors(mapping: Mapping[Any, Any]) -> Tensors:
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _fits(tensors: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Return how many tensors fit by name and shape, and how many by name."""
    both = [name for name in tensors if name in ours]
    return sum(tensors[name].shape == ours[name].shape for name in both), len(both)


def _rename(tensors: Tensors, ours: Mapping[str, torch.Tensor]) -> Weights:
    """Take the one prefix off all names, or add it, with which the most names fit."""
    candidates: list[Weights] = [Weights(tensors, [])]
    for prefix, _ in _prefixes(tensors, ours).most_common(3):
        shorter = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        candidates.append(Weights(shorter, [f"without the prefix {prefix} of its names"]))
    for prefix, _ in _prefixes(ours, tensors).most_common(3):
        longer = {prefix + name: tensor for name, tensor in tensors.items()}
        candidates.append(Weights(longer, [f"with the prefix {prefix} before its names"]))
    return max(candidates, key=lambda candidate: _fits(candidate.tensors, ours))


def _prefixes(longer: Mapping[str, Any], shorter: Mapping[str, Any]) -> Counter[str]:
    """Count the prefixes without which one mapping's names are in the other."""
    found: Counter[str] = Counter()
    for name in longer:
        for place in (place for place, letter in enumerate(name, 1) if letter == "."):
            if name[place:] in shorter:
                found[name[:place]] += 1
    return found


def _require_usable(path: Path, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "quantized": tensor.is_quantized,
            "complex": tensor.is_complex(),
            "without values": tensor.device.type == "meta",
        }
        if any(kinds.values()):
            kind = next(kind for kind, is_so in kinds.items() if is_so)
            raise InputError(
                f"transfer.checkpoint={path} cannot be used: {name} is a {kind} tensor; save the "
                f"state_dict() of a network with plain floating-point weights."
            )


def _match_head(
    tensors: Tensors, ours: Tensors, theirs: Sequence[str], classes: Sequence[str]
) -> list[str]:
    """Give each class of the last layer the weights of the class of the same name, if there is one.

    A class without any keeps the weights that the network began with.
    """
    if len(theirs) != len(classes) or not ours:
        return []  # its shape does not fit, so it is new
    places = match_classes(classes, theirs)
    known = places >= 0
    last = [*ours][-1].rpartition(".")[0]
    head = [n for n in tensors if n.rpartition(".")[0] == last and n in ours and ours[n].ndim]
    if all(ours[name].ndim == 1 for name in head):
        return ["the classes have other names, and no last layer was found to match them by"]
    for name in head:
        if tensors[name].shape == ours[name].shape and len(ours[name]) == len(classes):
            tensors[name], theirs_now = ours[name].detach().cpu().clone(), tensors[name]
            tensors[name][known] = theirs_now[places[known]].to(ours[name].dtype)
    new = [name for name, is_known in zip(classes, known.tolist(), strict=True) if not is_known]
    return [f"{last} by the names of the classes" + (f"; new: {some(new)}" if new else "")]
