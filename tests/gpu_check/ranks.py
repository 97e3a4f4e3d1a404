"""Several ranks, as far as one GPU goes: NCCL in a world of one, and ranks that share the GPU."""

import copy
from dataclasses import replace
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_mnist.data.splits import load_splits
from dist_mnist.distributed import gradients, rendezvous
from dist_mnist.distributed import session as session_module
from dist_mnist.distributed.gradients import parallelize
from dist_mnist.distributed.tree_sum import tree_sum
from dist_mnist.distributed.world import World, all_reduce_max, all_reduce_sum, broadcast_buffers
from dist_mnist.training.build import build_training_state
from dist_mnist.training.loop import fit
from dist_mnist.training.recorder import Recorder
from tests.gpu_check.common import DATA, Found, on_gpu
from tests.support.configs import make_config
from tests.support.processes import run_ranks


def join_alone(world: World) -> None:
    """Set up a process group of one, with the backends and the options of a real one."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    dist.init_process_group(
        rendezvous.BACKENDS[world.device.type],
        store=dist.PrefixStore("alone", store),  # type: ignore[attr-defined]
        rank=0,
        world_size=1,
        device_id=world.device,
    )


def nccl_alone(world: World) -> Found:
    """Every message of ours through NCCL and gloo in a world of one; DDP with all its hooks."""
    join_alone(world)
    pair = replace(world, size=2)  # so that the messages are sent, to this rank alone
    sums = {
        str(dtype): float(all_reduce_sum(pair, torch.ones(3, dtype=dtype, device=place)).sum())
        for dtype in (torch.float32, torch.float64, torch.int64)
        for place in (world.device, torch.device("cpu"))
    }
    largest = all_reduce_max(pair, [2.0])
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26**2, 10)
    )
    model = network.to(world.device).to(memory_format=torch.channels_last)
    broadcast_buffers(pair, model)
    (tree,) = tree_sum(
        world, [(row,) for row in torch.ones(4, 8, device=world.device)], 4, torch.Tensor.clone
    )
    ran = [
        _backward(copy.deepcopy(model), pair, hook, synchronized)
        for hook in ("own", "compressed", "gathered", "gathered, compressed")
        for synchronized in (False, True)
    ]
    dist.destroy_process_group()
    good = set(sums.values()) == {3.0} and largest == [2.0] and tree.tolist() == [4.0] * 8
    return {"ok": good and all(ran), "sums": sums, "DDP": ran}


def _backward(model: nn.Module, world: World, hook: str, synchronized: bool) -> bool:
    """Make three steps' gradients; return whether they are those without DDP."""
    trainer = make_config(
        f"trainer.compress_gradients={str('compressed' in hook).lower()}",
        f"trainer.sync_batch_norm={str(synchronized).lower()}",
    ).trainer
    inputs = torch.randn(8, 1, 28, 28, device=world.device)
    expected = torch.autograd.grad(model(inputs).square().sum(), list(model.parameters()))
    parallel = parallelize(model, world, trainer)
    if "gathered" in hook:  # which two ranks do not need
        gathers = DistributedDataParallel(model, gradient_as_bucket_view=True)
        alone, compresses = replace(world, size=1), trainer.compress_gradients
        gradients._average_by_gathering(gathers, alone, compresses)
        parallel = gathers
    good = True
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = None
        parallel(inputs).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            good &= bool((parameter.grad - gradient).norm() <= 0.02 * gradient.norm() + 1e-3)
    return good


def several_ranks(world: World) -> Found:
    """Two to four ranks with uneven shares learn the same as one; the same bits where promised.

    NCCL refuses ranks that share a GPU, so gloo carries their messages.
    """
    device, steps = world.device.type, 12 if on_gpu(world) else 3
    odd = (
        *("trainer.global_batch_size=91", f"trainer.max_steps={steps}", "trainer.precision=fp32"),
        *("data.validation_size=500", f"data.root={DATA}", f"trainer.device={device}"),
    )
    found: Found = {}
    plain = ("model=mlp", "optimizer=sgd", *odd)
    (alone,) = run_ranks(1, trained_on_one_gpu, device, plain)
    for size in (2, 3):
        for option in ("trainer.epochs=5", "trainer.micro_batch_size=11"):
            ends = run_ranks(size, trained_on_one_gpu, device, (*plain, option))
            apart = [float(numpy.abs(end[key] - alone[key]).max()) for end in ends for key in alone]
            found[f"{size} ranks, {option}"] = max(apart)
    good = all(apart < 1e-4 for apart in found.values())
    exact = ("trainer.reproducible=true", *odd)
    ends = [end for size in (1, 2, 4) for end in run_ranks(size, trained_on_one_gpu, device, exact)]
    same = all((end[key] == ends[0][key]).all() for end in ends for key in end)
    found["reproducible: same bits at 1, 2 and 4"] = same
    return {"ok": good and same, **found}


def trained_on_one_gpu(device: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train as one of several ranks that share a GPU; return the weights."""
    if device == "cuda":
        rendezvous.BACKENDS["cuda"] = "cpu:gloo,cuda:gloo"
        rendezvous.claim_gpu = lambda store, world: None  # type: ignore[attr-defined]
        session_module._pick_device = lambda *_: torch.device("cuda", 0)
        gradients.GATHER_LIMIT_BYTES_ON_GPUS = 0  # gloo does not order later work on a GPU
    config = make_config(*overrides)
    with session_module.session(device, 60) as world:
        splits = load_splits(config.data, config.seed).to(world.device)
        state = build_training_state(config, world, splits)
        fit(state, Recorder())
        return {key: value.cpu().numpy() for key, value in state.model.state_dict().items()}
