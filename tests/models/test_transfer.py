"""Weights from another network's file, and parameters chosen by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from dist_mnist.config.errors import InputError
from dist_mnist.config.transfer import TransferConfig
from dist_mnist.models.networks import ConvNet
from dist_mnist.models.transfer import (
    by_module,
    describe_transfer,
    frozen_norms,
    frozen_parameters,
    matches,
    parameter_groups,
    take_weights,
)
from dist_mnist.models.weights_file import Weights, read_weights
from tests.support.checkpoints import Intruder


def convnet(num_classes: int = 10, channels: int = 1) -> ConvNet:
    return ConvNet((channels, 28, 28), num_classes, channels=(4, 4, 4))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("layers.0", 1), ("layers.?", 9), ("layers.1?.bias", 1), ("*.bias", 4), ("*", 11)],
)
def test_a_pattern_names_parameters(pattern: str, count: int) -> None:
    names = [name for name, _ in convnet().named_parameters()]
    assert sum(matches(name, [pattern]) for name in names) == count


def test_a_pattern_that_matches_nothing() -> None:
    for freeze in (["layers.0", "head"], ["layer"], ["layers.7"]):
        with pytest.raises(InputError, match=r"layers\.0\.weight, layers\.2\.weight, .*12\.bias"):
            frozen_parameters(convnet(), TransferConfig(freeze=freeze))


def test_something_must_be_trained() -> None:
    with pytest.raises(InputError, match=r"leaves nothing to train: .* layers\.0\.weight, .*bias"):
        frozen_parameters(convnet(), TransferConfig(freeze=["layers.?", "layers.12"]))


def test_frozen_norms_are_those_of_the_pattern() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3))
    assert [*frozen_norms(model, ["0", "1"])] == [model[0], model[1]]
    assert [*frozen_norms(model, ["2.weight"])] == []  # its bias is trained
    assert [*frozen_norms(nn.BatchNorm2d(3), ["weight", "bias"])] != []


def test_groups_follow_the_patterns() -> None:
    model = convnet()
    model.layers[0].requires_grad_(False)
    rates = {"layers.12": 0.1, "layers.?.weight": 0.2}
    groups = parameter_groups(model, TransferConfig(learning_rates=rates))
    sizes = [(len(group["params"]), group.get("lr")) for group in groups]
    assert sizes == [(3, None), (2, 0.1), (5, 0.2)]  # the biases of three norms, the head, the rest


def test_what_thaws_has_groups_of_its_own() -> None:
    rates = {"layers.1?": 0.1, "layers.[0-4]": 0.2}
    config = TransferConfig(freeze=["layers.[0-2]"], thaw_epoch=2, learning_rates=rates)
    groups = parameter_groups(convnet(), config)
    sizes = [(len(group["params"]), group.get("lr")) for group in groups]
    assert sizes == [(5, None), (2, 0.1), (1, 0.2), (3, 0.2)]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"head": 1.0}, r"learning_rates=head matches no parameter that is trained: .*12\.bias"),
        ({"layers.0": 1.0}, "learning_rates=layers.0 matches no parameter"),  # it is frozen
        ({"layers.12": 1.0, "*.bias": 2.0}, r"several rates for layers\.12\.bias: let"),
    ],
)
def test_refused_rates(rates: dict[str, float], message: str) -> None:
    model = convnet()
    model.layers[0].requires_grad_(False)
    with pytest.raises(InputError, match=message):
        parameter_groups(model, TransferConfig(learning_rates=rates))


def test_what_fits_is_taken_and_the_rest_told() -> None:
    source, model = convnet(num_classes=10), convnet(num_classes=5)
    new_head = model.get_parameter("layers.12.weight").clone()
    weights = {**source.state_dict(), "extra.weight": torch.zeros(1)}
    del weights["layers.2.running_mean"]
    found = take_weights(model, weights)
    for name in found.taken:
        assert torch.equal(model.state_dict()[name], weights[name])
    assert torch.equal(model.get_parameter("layers.12.weight"), new_head)
    assert found.new == ["layers.2.running_mean"]
    assert found.unfit == ["layers.12.weight", "layers.12.bias"]
    assert found.left_out == ["extra.weight"]
    text = describe_transfer(found, model, Weights(weights, []), frozen=["layers.12.bias"])
    assert text.splitlines()[1:] == [
        "  did not fit, reinitialized: layers.12.weight [10, 36] for [5, 36], "
        "layers.12.bias [10] for [5]",
        "  reinitialized: layers.2.running_mean",
        "  left out: extra",
        "  reinitialized but frozen: layers.12.bias",
    ]


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(InputError, match=r"it has fc\.weight \[1\], and .* layers\.0\.weight"):
        take_weights(convnet(), {"fc.weight": torch.zeros(1)})


def test_modules_stand_for_their_tensors() -> None:
    everything = ["a.b.w", "a.b.v", "a.c.w", "d", "ab.w"]
    assert by_module(["a.b.w", "a.b.v", "d"], everything) == ["a.b", "d"]
    assert by_module(everything, everything) == ["a", "d", "ab"]
    assert by_module(["a.b.v"], everything) == ["a.b.v"]


@pytest.mark.parametrize("kind", ["torch", "legacy", "beside other things", "safetensors"])
def test_files_of_torchvision(kind: str, tmp_path: Path) -> None:
    source, model = resnet18(), resnet18(num_classes=7)
    path, state = tmp_path / "weights", source.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {"model": state, "epoch": 90} if kind == "beside other things" else state
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    found = take_weights(model, read_weights(path, model).tensors)
    assert found.unfit == ["fc.weight", "fc.bias"]
    assert len(found.taken) == 120
    last = "layer4.1.conv2.weight"
    assert torch.equal(model.get_parameter(last), source.get_parameter(last))
    frozen = frozen_parameters(model, TransferConfig(freeze=["layer[1-4].*.conv?", "*bn*"]))
    assert len(frozen) == 16 + 2 * 17


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Intruder(), "neither a safetensors file nor one of torch.save that holds tensors alone"),
        ({"model": Intruder()}, "neither a safetensors file"),
        (nn.Linear(1, 1), "neither a safetensors file"),
        ([torch.zeros(1)], "holds no tensors by name"),
        ({"epoch": 3}, "holds no tensors by name"),
        (b"nothing", r"neither a safetensors file .*\(UnpicklingError\)"),
        (b"12345678{", r"neither a safetensors file .*\(SafetensorError\)"),
        (b"", "neither a safetensors file"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
    ids=["code", "code inside", "module", "list", "numbers", "text", "header", "empty", "missing"],
)
def test_files_without_weights(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_weights(path, convnet())
    assert not (tmp_path / "intruded").exists()


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot be read \(Is a directory\): give a run directory"
    ):
        read_weights(tmp_path, convnet())
