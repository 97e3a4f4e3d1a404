"""Transfer learning: weights of another network, frozen parameters, learning rates by name.

A pattern stands for the parameters and modules whose names it matches, and for everything in those
modules: `layers.0`, `layer?.*.conv*`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.config.transfer import TransferConfig
from dist_mnist.models.weights_file import Weights


class Transferred(NamedTuple):
    """The names of the tensors in two state dicts, grouped by their treatment."""

    taken: list[str]  # in both, with the same shape
    new: list[str]  # in this network alone; initialized
    unfit: list[str]  # in both, with different shapes; initialized
    left_out: list[str]  # in the other network alone


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches a name, or the name of a module around it."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


def frozen_parameters(model: nn.Module, config: TransferConfig) -> dict[str, nn.Parameter]:
    """Return the parameters that `transfer.freeze` matches, by name.

    Raises:
        InputError: A pattern matches none of them, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in config.freeze:
        if not any(matches(name, [pattern]) for name in named):
            raise InputError(
                f"transfer.freeze={pattern} matches no parameter of the network: choose from "
                f"{', '.join(named)}."
            )
    frozen = {name: p for name, p in named.items() if matches(name, config.freeze)}
    if frozen and not any(p.requires_grad for name, p in named.items() if name not in frozen):
        raise InputError(
            f"transfer.freeze={config.freeze} leaves nothing to train: leave out one or more of "
            f"{', '.join(frozen)}."
        )
    return frozen


def freeze(model: nn.Module, config: TransferConfig) -> None:
    """Freeze the parameters that never thaw; call it before DistributedDataParallel.

    Parameters that thaw later keep their gradients, so that DistributedDataParallel averages the
    same ones in every step.

    Raises:
        InputError: As `frozen_parameters`.
    """
    for parameter in frozen_parameters(model, config).values():
        if config.thaw_epoch is None:
            parameter.requires_grad_(False)


def thawing_parameters(model: nn.Module, config: TransferConfig) -> list[nn.Parameter]:
    """Return the parameters that are frozen at first and trained later."""
    named = frozen_parameters(model, config) if config.thaw_epoch is not None else {}
    return [parameter for parameter in named.values() if parameter.requires_grad]


def frozen_norms(model: nn.Module, patterns: Sequence[str]) -> Iterator[nn.Module]:
    """Yield the batch norms all of whose parameters match the patterns.

    A batch norm without parameters is matched by the name of its running mean.
    """
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is None:
            continue
        parts = [part for part, _ in module.named_parameters(recurse=False)] or ["running_mean"]
        if all(matches(f"{name}.{part}".lstrip("."), patterns) for part in parts):
            yield module


def parameter_groups(model: nn.Module, config: TransferConfig) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups: for each learning rate, one trained and one thawing.

    Thawing parameters have separate groups, since some optimizers start a whole group's momentum at
    once. Parameters that are frozen for good are in no group.

    Raises:
        InputError: A pattern matches nothing that is trained, or two match the same parameter.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = _by_pattern(trained, config.learning_rates)
    thawing = [name for name in trained if config.thaw_epoch and matches(name, config.freeze)]
    matched = {*chain(*found.values())}
    groups: list[dict[str, Any]] = []
    for pattern, names in ((None, [n for n in trained if n not in matched]), *found.items()):
        options = {} if pattern is None else {"lr": config.learning_rates[pattern]}
        for part in ([n for n in names if n not in thawing], [n for n in names if n in thawing]):
            if part:
                groups.append({"params": [trained[name] for name in part], **options})
    return groups


def _by_pattern(names: Iterable[str], patterns: Iterable[str]) -> dict[str, list[str]]:
    found = {pattern: [n for n in names if matches(n, [pattern])] for pattern in patterns}
    for pattern, matched in found.items():
        if not matched:
            raise InputError(
                f"transfer.learning_rates={pattern} matches no parameter that is trained: choose "
                f"from {', '.join(names)}."
            )
    several = [name for name, count in Counter(chain(*found.values())).items() if count > 1]
    if several:
        raise InputError(
            f"transfer.learning_rates has several rates for {', '.join(several)}: let only one "
            f"pattern match each."
        )
    return found


def take_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Transferred:
    """Copy the tensors whose name and shape fit into a network.

    Raises:
        InputError: Nothing fits.
    """
    tensors = _tensors(model)
    both = [name for name in tensors if name in weights]
    taken = [name for name in both if tensors[name].shape == weights[name].shape]
    if not taken:
        raise InputError(
            f"transfer.checkpoint has nothing that fits this network: it has {_some(weights)}, and "
            f"the network has {_some(tensors)}; use the same model= as the one it comes from."
        )
    with torch.no_grad():
        for name in taken:
            tensors[name].copy_(weights[name])
    return Transferred(
        taken,
        new=[name for name in tensors if name not in weights],
        unfit=[name for name in both if name not in taken],
        left_out=[name for name in weights if name not in tensors],
    )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network's state dict; they share its memory."""
    return {k: value for k, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _some(tensors: Mapping[str, torch.Tensor]) -> str:
    names = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def describe_transfer(
    transferred: Transferred,
    model: nn.Module,
    weights: Weights,
    frozen: Sequence[str],
) -> str:
    """Return the treatment of each tensor in a few lines; a module stands for all its tensors."""
    tensors, unfit, found = _tensors(model), transferred.unfit, weights.tensors
    shapes = [f"{n} {list(found[n].shape)} for {list(tensors[n].shape)}" for n in unfit]
    frozen_new = [name for name in (*transferred.new, *unfit) if matches(name, frozen)]
    parts = {
        "taken": by_module(transferred.taken, tensors),
        "did not fit, reinitialized": shapes,
        "reinitialized": by_module(transferred.new, tensors),
        "left out": by_module(transferred.left_out, found),
        "reinitialized but frozen": by_module(frozen_new, tensors),
    }
    lines = [f"{part}: {', '.join(names)}" for part, names in parts.items() if names]
    return "\n".join(f"  {line}" for line in [*weights.notes, *lines])


def by_module(names: Sequence[str], everything: Iterable[str]) -> list[str]:
    """Return names, with each module in place of its parts if all of them are named."""
    others = {*everything} - {*names}
    prefixes = {".".join(o.split(".")[:n]) for o in others for n in range(1, o.count(".") + 2)}
    shortest: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        starts = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        shortest[next(start for start in starts if start not in prefixes)] = None
    return [*shortest]
