"""Launchers' environment variables, and how a process reads them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.gpus import trial
from dist_mnist.distributed.session import session

RANK_1_OF_4 = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of a launcher, and no terminal."""

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr("os.isatty", lambda _: False)
    return set_variables


def device() -> torch.device:
    with session("auto", 10) as world:
        return world.device


@pytest.mark.slow
def test_plain_srun_is_refused_once(tmp_path: Path) -> None:
    start = f"export SLURM_PROCID; '{sys.executable}' -m dist_mnist & "
    script = f"export SLURM_STEP_NUM_TASKS=2; for SLURM_PROCID in 0 1; do {start} done; wait"
    refused = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: srun started 2 processes, which would not")
    assert "--nproc_per_node=2 -m dist_mnist" in refused.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # a batch script
        {"SLURM_NTASKS": "4"},  # salloc
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "1"},  # on purpose
        {"PMI_RANK": "x", "PMI_SIZE": "many"},
    ],
)
def test_one_process_of_a_launcher_works(
    launched: Callable[..., None], variables: dict[str, str]
) -> None:
    launched(**variables)
    with session("cpu", 10) as world:
        assert (world.rank, world.size) == (0, 1)


def test_shell_of_several_tasks_works(
    launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="4")
    monkeypatch.setattr("os.isatty", lambda _: True)  # srun --ntasks=4 --pty bash
    with session("cpu", 10) as world:
        assert world.size == 1


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this process sees one GPU, and that the other processes have come."""
    gpu = torch.device("cuda")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: gpu)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    monkeypatch.setattr("torch.accelerator.set_device_index", lambda _: None)
    monkeypatch.setattr("dist_mnist.distributed.gpus.trial", lambda _: "")
    monkeypatch.setattr("dist_mnist.distributed.gpus.one_stream", lambda _: nullcontext())
    monkeypatch.setattr("dist_mnist.distributed.session.join_group", lambda *_: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)


@pytest.mark.parametrize("shown", ["0", "3", "GPU-8c1f"])
def test_process_takes_the_only_gpu_it_sees(
    launched: Callable[..., None], one_gpu: None, shown: str
) -> None:
    launched(**RANK_1_OF_4, CUDA_VISIBLE_DEVICES=shown)
    assert device() == torch.device("cuda", 0)


@pytest.mark.parametrize(("worker", "sees_own"), [("0", False), ("1", True), ("0,1", False)])
def test_torchruns_processes_share_what_it_sees(worker: str, sees_own: bool) -> None:
    """Unless it gives each of them its own, as with --virtual-local-rank."""
    child = "from dist_mnist.distributed.launcher import sees_own_device as s; print(s())"
    started = f"CUDA_VISIBLE_DEVICES={worker} {shlex.quote(sys.executable)} -c '{child}'; true"
    done = subprocess.run(
        ["bash", "-c", started],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0", "TORCHELASTIC_RUN_ID": "none"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{sees_own}\n"


def test_one_gpu_for_all_is_not_shared(launched: Callable[..., None], one_gpu: None) -> None:
    launched(**RANK_1_OF_4)
    assert device() == torch.device("cpu")
    with pytest.raises(InputError, match="this machine has 1 for 4"), session("cuda", 10):
        pass


def test_a_gpu_without_kernels_is_left_alone(
    launched: Callable[..., None],
    one_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = "cuda:0 cannot compute (no kernel image is available)"
    monkeypatch.setattr("dist_mnist.distributed.gpus.trial", lambda _: reason)
    assert device() == torch.device("cpu")
    assert f"training on the CPU: {reason}" in caplog.text
    told = r"trainer\.device=cuda cannot be used: cuda:0 cannot"
    with pytest.raises(InputError, match=told), session("cuda", 10):
        pass


def test_what_does_not_compute_is_told() -> None:
    assert trial(torch.device("cpu")) == ""
    if not torch.cuda.is_available():
        assert trial(torch.device("meta")).startswith("meta cannot compute (")
