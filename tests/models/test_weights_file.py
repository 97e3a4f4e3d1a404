"""Weights as other programs save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.models.weights_file import read_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


STATE = network().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (STATE, []),
        (prefixed("module."), ["without the prefix module. of its names"]),
        (prefixed("_orig_mod."), ["without the prefix _orig_mod. of its names"]),
        (prefixed("module._orig_mod."), ["without the prefix module._orig_mod. of its names"]),
        (
            {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(2)}, "epoch": 3},
            ["taken from state_dict in the file", "without the prefix model. of its names"],
        ),
        ({"epoch": 3, "model_state_dict": STATE}, ["taken from model_state_dict in the file"]),
        (
            {
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(3, 4)}}},
                "net": STATE,
                "ema": {"decay": torch.ones(1)},
            },
            ["taken from net in the file"],
        ),
    ],
)
def test_the_state_dict_and_its_prefix_are_found(
    tmp_path: Path, content: Any, notes: list[str]
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    found = read_weights(tmp_path / "weights.pt", network())
    assert found.notes == notes
    assert found.tensors.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(found.tensors[name], tensor)


def test_a_prefix_is_added_for_a_network_inside_another(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.pt")
    found = read_weights(tmp_path / "weights.pt", nn.ModuleDict({"backbone": network()}))
    assert found.notes == ["with the prefix backbone. before its names"]
    assert found.tensors.keys() == prefixed("backbone.").keys()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex"),
        (lambda: torch.ones(3, device="meta"), "without values"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # some kinds are deprecated
def test_tensors_that_cannot_be_taken_are_named(
    tmp_path: Path, make: Callable[[], torch.Tensor], kind: str
) -> None:
    torch.save({**STATE, "1.weight": make()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=rf"1\.weight is a {kind} tensor"):
        read_weights(tmp_path / "weights.pt", network())


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.ones(1)}
    content["self"] = content
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="RecursionError"):
        read_weights(tmp_path / "weights.pt", network())
