"""A device that computes nothing: its launches are recorded, and waiting for it is an error.

Tensors have a device, a shape and a dtype there, but no memory (torch's FakeTensors), so the branch
that a GPU takes runs without one. What depends on memory cannot be seen: DDP, synchronized batch
norm, autocast.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_mnist.data.images import Batch, ImageTensors
from dist_mnist.data.splits import load_splits
from dist_mnist.training import build
from dist_mnist.training.state import TrainingState
from tests.support.configs import SOLO, make_config

set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
NAME = "pretended"
KERNELS = torch.library.Library("aten", "IMPL", "Meta")
# Operations that only change the view of memory, or run on the CPU.
WITHOUT_KERNEL = ("aten.detach", "aten.empty", "aten.new_empty", "aten.lift", "profiler", "prim.")


def gpu() -> torch.device:
    """Return the device, once it is registered."""
    return torch.device(NAME, 0)


class Launches(TorchDispatchMode):
    """Records launches, and the copies that would wait for the device.

    A number that is read and an index of truth values raise by themselves.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        is_copy = name.startswith(("aten._to_copy", "aten.copy_"))
        tensors = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
        # A single number on the CPU goes along with the launch; others would be copied first.
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or is_copy}
        if is_copy and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        if len(devices) > 1:
            self.waits.append(name)
        is_view = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
        if not is_view and not name.startswith(WITHOUT_KERNEL):
            self.launched.append(name)
        return func(*args, **kwargs)


def launches(root: Path, *overrides: str) -> Launches:
    """Return the launches of a training's second step; call it in a separate process.

    Raises:
        RuntimeError: The step waits for the device, or mixes it with another.
    """
    _register()
    with pytest.MonkeyPatch.context() as monkeypatch, FakeTensorMode(allow_non_fake_inputs=True):
        lifts_cpu_only = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            state = _state(root, monkeypatch, *overrides)
            indices = torch.empty(50, dtype=torch.int64, device=gpu())
            batch = Batch(indices, 50, state.splits.train.resident())
            for _ in range(2):  # the optimizer makes its state in the first one
                seen = Launches()
                with seen:
                    state.step(batch)
                state.progress.step += 1
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_cpu_only)
    return seen


def _register() -> None:
    """Let torch know the device."""

    class Module(backend_registration._DummyBackendModule):
        def manual_seed(self, seed: int) -> None:
            """Random numbers are not drawn either."""

    if not hasattr(torch, NAME):
        assert set_up
        set_up(NAME, backend_module=Module())
        for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr"):  # whose shapes torch does not know
            KERNELS.impl(name, lambda *args, **kwargs: None)


def _state(root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> TrainingState:
    """Build a training on the pretended GPU, in train mode."""
    config = make_config(
        *("data=fashion_mnist", f"data.root={root}", "data.validation_size=50"),
        *("trainer.global_batch_size=50", "trainer.precision=fp32", *overrides),
    )
    with unset_fake_temporarily():
        splits = load_splits(config.data, config.seed)
    for name in ("build_model", "dry_run", "trains_on_one_image"):  # on the CPU, with real numbers
        monkeypatch.setattr(build, name, partial(_without_pretence, getattr(build, name)))
    train = ImageTensors(_fake(splits.train.resident().images), _fake(splits.train.labels))
    world = replace(SOLO, device=gpu())
    state = build.build_training_state(config, world, replace(splits, train=train))
    state.parallel_model.train()
    return state


def _without_pretence(function: Callable[..., Any], *arguments: Any) -> Any:
    with unset_fake_temporarily():
        result = function(*arguments)
    if isinstance(result, nn.Module):
        result.to = partial(_moved, result)  # type: ignore[method-assign]
    return result


def _moved(model: nn.Module, *_: Any, **__: Any) -> nn.Module:
    """Put a network's parameters and buffers onto the pretended GPU, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(_fake(parameter), parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _fake(buffer)
    return model


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=gpu())
