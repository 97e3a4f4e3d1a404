"""Real torchrun, real processes, real ends."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.configs import CHECKOUT
from tests.support.processes import free_port, needs_ipv6, python, torchrun

LAUNCH = CHECKOUT / "launch"


def small(small_root: Path, run_dir: Path) -> list[str]:
    return [
        "data=fashion_mnist",
        f"data.root={small_root}",
        f"run_dir={run_dir}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.epochs=2",
        "trainer.device=cpu",
    ]


@pytest.mark.slow
def test_train_on_three_and_evaluate_on_two(small_root: Path, tmp_path: Path) -> None:
    trained = torchrun(3, *small(small_root, tmp_path / "run"), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    last = trained.stdout.splitlines()[-1]
    assert last.startswith("test accuracy ")
    assert trained.stdout.count("test accuracy") == 1  # one rank speaks
    assert ": 3 x " in trained.stdout
    checkpoint = f"checkpoint={tmp_path / 'run'}"
    evaluated = torchrun(2, "evaluate", checkpoint, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.splitlines()[-1].split(" in ")[0] == last.split(" in ")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is not a key: did you mean optimizer.lr?"),
        ("data.root=/proc/nowhere", "data.root=/proc/nowhere cannot be written"),
    ],
)
def test_all_ranks_report_a_mistake_once(
    small_root: Path, tmp_path: Path, override: str, message: str
) -> None:
    failed = torchrun(2, *small(small_root, tmp_path), override, timeout=60)
    assert failed.returncode != 0
    assert failed.stderr.count(message) == 1
    assert f"[rank 0] error: {message}" in failed.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=unet", "Could not find 'model/unet'"),
        pytest.param("run_dir=/proc/run", "run_dir=/proc/run cannot be", marks=pytest.mark.slow),
    ],
)
def test_mistake_is_reported_once_and_not_retried(
    small_root: Path, tmp_path: Path, override: str, message: str
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = (*small(small_root, tmp_path), override)
    failed = python(*launcher, "--max-restarts=3", "-m", "dist_mnist", *arguments, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("[rank 0] error: ") == 1
    assert message in failed.stderr


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_ranks(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_network.py").write_text(
        "import os\n"
        "from dist_mnist.models.networks import MLP\n"
        "class Broken(MLP):\n"
        "    calls = 0\n"
        "    def forward(self, images):\n"
        "        self.calls += 1\n"
        "        if os.environ['RANK'] == '1' and self.calls == 3:\n"
        "            raise RuntimeError('the network broke on purpose')\n"
        "        return super().forward(images)\n"
    )
    failed = torchrun(
        2,
        *small(small_root, tmp_path / "run"),
        "model=mlp",
        "model._target_=broken_network.Broken",
        "trusted_modules=[broken_network]",
        PYTHONPATH=str(tmp_path),
        timeout=60,
    )
    assert failed.returncode != 0
    assert failed.stderr.count("RuntimeError: the network broke on purpose") == 1
    assert "[rank 1] Traceback" in failed.stderr
    assert "[rank 0]" not in failed.stderr


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_refused(small_root: Path, tmp_path: Path) -> None:
    failed = torchrun(
        2, "--multirun", *small(small_root, tmp_path), "seed=1,2", cwd=tmp_path, timeout=60
    )
    assert failed.returncode != 0
    assert failed.stderr.count("--multirun cannot be used with several processes") == 1


@pytest.mark.slow
def test_local_script_passes_arguments(small_root: Path, tmp_path: Path) -> None:
    script = LAUNCH / "local.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    done = subprocess.run(
        [script, *small(small_root, tmp_path / "run")],
        env={**os.environ, "NPROC_PER_NODE": "2", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ": 2 x " in done.stdout
    assert done.stdout.splitlines()[-1].endswith(str(tmp_path / "run"))
    assert "OMP_NUM_THREADS" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6)])
def test_multi_node_script_joins_agents(small_root: Path, tmp_path: Path, host: str) -> None:
    """Two agents on the loopback address, as two machines would start them."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "HEAD": f"{host}:{free_port()}",
        "LAUNCH_ID": "two-machines",
    }
    agents = [
        subprocess.Popen(
            [LAUNCH / "multi_node.sh", *small(small_root, tmp_path / "run")],
            env={**environment, "IS_HEAD": head},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for head in ("1", "0")
    ]
    try:
        printed = [agent.communicate(timeout=120) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    results = [out for out, _ in printed if "test accuracy" in out]
    assert len(results) == 1
    assert ": 2 x " in results[0]
