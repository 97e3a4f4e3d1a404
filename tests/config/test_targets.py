from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.config.targets import instantiate


def test_nested_targets_are_built() -> None:
    config = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.ReLU"}],
    }
    assert isinstance(instantiate("model", config, nn.Module), nn.Sequential)
    optimizer = instantiate(
        "optimizer",
        {"_target_": "torch.optim.Adam", "betas": [0.8, 0.9]},
        torch.optim.Optimizer,
        [torch.zeros(1, requires_grad=True)],
    )
    betas = optimizer.param_groups[0]["betas"]
    assert tuple(betas) == (0.8, 0.9)
    assert type(betas) in (list, tuple)  # no checkpoint can hold OmegaConf's own lists


@pytest.mark.parametrize("name", ["squeezenet1_1", "alexnet"])  # alexnet is a module, too
def test_torchvisions_networks_can_be_named(name: str) -> None:
    config = {"_target_": f"torchvision.models.{name}", "num_classes": 10}
    assert isinstance(instantiate("model", config, nn.Module), nn.Module)


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "os.system", "command": "touch intruded"},
        {"_target_": "torch.os.system", "command": "touch intruded"},
        {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
        {"_target_": "torch.load", "f": "evil.pt"},
        {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": []},
        {"_target_": "builtins.eval"},
        {"_target_": "dist_mnist.commands.cli.run_command_line"},
        {"_target_": "torch.optim.Adam", "params": []},
        {"_target_": "subprocess.Popen", "args": "touch intruded"},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.getcwd"}]},
        {"_target_": "torch.nn.Linear", "in_features": {"_target_": "torch.os.getpid"}},
        {"_target_": "torchnot.nn.Linear"},
        {
            "_target_": "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict",
            "model_dir": ".",
            "file_name": "evil.pt",
        },
    ],
)
def test_a_target_cannot_choose_code_to_run(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not allowed"):
        instantiate("model", config, nn.Module)
    assert not list(tmp_path.iterdir())


def test_interpolation_is_not_resolved() -> None:
    hidden = "${oc.create:{_target_: torch.load, f: evil.pt, weights_only: false}}"
    with pytest.raises(InputError, match="model cannot be built"):
        instantiate("model", {"_target_": "torch.nn.Dropout", "p": hidden}, nn.Module)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model has no _target_"),
        ({"_target_": "torch.nn.Linaer"}, "model._target_=torch.nn.Linaer cannot be found"),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "model.in_features=3"),
    ],
)
def test_a_mistake_is_told_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        instantiate("model", config, nn.Module)
    assert "\n" not in str(raised.value)
