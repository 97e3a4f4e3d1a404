"""GPUs that are shared, hidden or unusable, as a process without a GPU can detect them."""

import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import gpus, gradients, rendezvous
from dist_mnist.distributed.gpus import claim_gpu
from dist_mnist.distributed.gradients import parallelize
from dist_mnist.distributed.session import session
from dist_mnist.distributed.world import World
from tests.support.configs import CHECKOUT, SOLO, make_config
from tests.support.processes import run_ranks

PAIR = [replace(SOLO, rank=rank, size=2) for rank in range(2)]


def test_gpu_of_another_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    first, second = (dist.PrefixStore(name, store) for name in ("1", "2"))  # type: ignore[attr-defined]
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: "GPU-1c0ffee")
    claim_gpu(first, PAIR[0])
    with pytest.raises(InputError, match=r"rank 1 and rank 0 have the same GPU .*GPU-1c0ffee"):
        claim_gpu(first, PAIR[1])
    claim_gpu(second, PAIR[1])
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: "MIG-2")
    claim_gpu(first, PAIR[1])


def joined() -> tuple[list[int], list[str | None]]:
    claimed: list[int] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        monkeypatch.setattr(rendezvous, "claim_gpu", lambda _, world: claimed.append(world.rank))
        with session("cpu", 30):
            names = ("TORCH_NCCL_DUMP_ON_TIMEOUT", "CUBLAS_WORKSPACE_CONFIG")
            return claimed, [os.environ.get(name) for name in names]


def test_ranks_claim_gpus_and_set_variables() -> None:
    # NCCL looks for no key that an earlier start has left; cuBLAS reads the second once.
    assert run_ranks(2, joined) == [([rank], ["0", ":4096:8"]) for rank in range(2)]


@pytest.fixture
def unusable_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is a GPU, and a driver too old for torch."""
    (tmp_path / "nvidia3").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("unusable_gpu")
def test_unusable_gpu_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), session("auto", 10) as world:
        assert world.device.type == "cpu"
    assert (
        "training on the CPU: there is an NVIDIA GPU, but this torch (for CUDA 13.0)" in caplog.text
    )
    with pytest.raises(InputError, match="not available: there is an NVIDIA GPU, but"):
        session("cuda", 10).__enter__()


@pytest.mark.usefixtures("unusable_gpu")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpu_is_not_mentioned(
    hidden: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with session("auto", 10):
        pass
    with session("cpu", 10):
        pass
    assert caplog.text == ""


@pytest.fixture
def two_of_eight(tmp_path: Path) -> dict[str, str]:
    """A machine with 8 GPUs, of which torch is shown 2; the launcher's command is printed."""
    scripts = {
        "nvidia-smi": 'for gpu in 0 1 2 3 4 5 6 7; do echo "GPU $gpu: pretended"; done',
        "python": f'[[ $1 == -c ]] && exec {sys.executable} "$@"; echo "$@"',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / "torch.py").write_text(
        "import os\n"
        "class accelerator:\n"
        "    device_count = lambda: len(os.environ['CUDA_VISIBLE_DEVICES'].split(','))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    modules = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    return {"PATH": path, "PYTHONPATH": modules, "CUDA_VISIBLE_DEVICES": "5,6"}


@pytest.mark.parametrize("script", ["local.sh", "multi_node.sh"])
@pytest.mark.parametrize(("chosen", "count"), [({}, 2), ({"NPROC_PER_NODE": "3"}, 3)])
def test_launchers_count_the_gpus_of_torch(
    script: str, chosen: dict[str, str], count: int, two_of_eight: dict[str, str]
) -> None:
    where = {"NNODES": "1", "HEAD": "127.0.0.1:29400", "LAUNCH_ID": "one"}
    done = subprocess.run(
        [str(CHECKOUT / "launch" / script), "model=linear"],
        env={**os.environ, **two_of_eight, **where, **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"--nproc_per_node={count} " in done.stdout


def averaged(limit: int) -> torch.Tensor:
    """Average gradients as ranks with a GPU each would, on the CPU."""
    trainer = make_config("trainer.micro_batch_size=1").trainer  # no static graph: any hook at once
    with pytest.MonkeyPatch.context() as monkeypatch, session("cpu", 30) as world:
        monkeypatch.setattr(gradients, "GATHER_LIMIT_BYTES_ON_GPUS", limit)
        model = nn.Linear(1000, 1, bias=False)
        on_gpu: World = replace(world, device=torch.device("cuda"))
        parallel_model = parallelize(model, on_gpu, trainer)
        inputs = numbers(world.rank)
        parallel_model(inputs).sum().backward()
        assert model.weight.grad is not None
        return model.weight.grad.clone()


def numbers(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(1, 1000, generator=generator) * 10.0 ** (3 * rank)


def test_gradients_of_three_gpus_add_up_in_order() -> None:
    expected = (numbers(0) + numbers(1) + numbers(2)) / 3
    other_order = (numbers(0) + (numbers(1) + numbers(2))) / 3
    assert not torch.equal(expected, other_order)  # the numbers can tell
    for average in run_ranks(3, averaged, 2**20):
        assert torch.equal(average, expected)
