"""launch/slurm.sh on a SLURM cluster of four virtual nodes, and what can happen to a job there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import faults
from tests.launch import slurm, trainings
from tests.launch.hosts import wait_until
from tests.launch.slurm import Cluster
from tests.launch.trainings import LAUNCH, agent_on, ranks_on, wait_for_step

pytestmark = pytest.mark.launch
NODES = ("n1", "n2", "n3", "n4")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four nodes of two cores and two (pretended) GPUs each."""
    with slurm.cluster_of(*NODES) as running:
        yield running


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    """End the jobs of a test that has failed."""
    yield
    slurm.end_jobs(cluster)


def submit(
    cluster: Cluster, folder: Path, *options: str, overrides: list[str], processes: str = "2"
) -> str:
    """Submit the script from a folder, as a user would, for two nodes of so many processes."""
    return cluster.submit(
        *("--nodes=2", f"--chdir={folder}", f"--output={folder}/job.log", *options),
        LAUNCH / "slurm.sh",
        *overrides,
        **{**trainings.ENVIRONMENT, "NPROC_PER_NODE": processes, "WANDB_MODE": "offline"},
    )


def start_training(cluster: Cluster, root: Path, folder: Path, processes: int) -> tuple[str, Path]:
    """Submit a training of so many processes a node; return its job and directory in step 6."""
    run_dir = folder / "run"
    overrides = trainings.training(root, run_dir, 0.05 * processes)
    job = submit(cluster, folder, overrides=overrides, processes=str(processes))
    wait_for_step(run_dir, 6)
    return job, run_dir


def require_equal(cluster: Cluster, job: str, run_dir: Path, undisturbed: str) -> None:
    """Require that a job comes to its end, and the run in it to that of an undisturbed one."""
    cluster.wait_for(job, "COMPLETED", 120)
    assert faults.fingerprint(run_dir) == undisturbed
    steps = trainings.journal_steps(run_dir)
    assert steps == sorted(set(steps))
    assert len(trainings.wandb_ids(run_dir)) == 1


def test_two_nodes_match_one_process(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    overrides = trainings.training(small_root, None)
    job = submit(cluster, tmp_path, "--gpus-per-node=2", overrides=overrides, processes="")
    cluster.wait_for(job, "COMPLETED", 120)
    (run_dir,) = (tmp_path / "outputs").iterdir()
    require_equal(cluster, job, run_dir, undisturbed)
    assert ": 4 x " in (tmp_path / "job.log").read_text()


def test_killed_worker_and_time_limit(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    job = submit(cluster, tmp_path, overrides=trainings.training(small_root, None, 0.15))
    cluster.wait_for(job, "RUNNING", 20)
    (run_dir,) = trainings.wait_for_run(tmp_path / "outputs")
    wait_for_step(run_dir, 4)
    second = cluster.nodes_of(job)[1]
    trainings.kill(ranks_on(second)[2])
    wait_for_step(run_dir, 12)
    assert cluster.show(job, "Restarts") == "0"  # torchrun has started it again in its place
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"
    log = (tmp_path / "job.log").read_text()
    assert "stopped by SIGTERM after step" in log
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_preempted_job_continues(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, processes=1)
    urgent = cluster.submit(
        *("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"),
        *("--wrap", "sleep 1"),
    )
    cluster.wait_for(urgent, "COMPLETED", 60)
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"
    assert "stopped by SIGTERM after step" in (tmp_path / "job.log").read_text()


def test_mistake_does_not_requeue(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, overrides=["optimizer.lrr=1"])
    with pytest.raises(AssertionError, match="FAILED"):
        cluster.wait_for(job, "COMPLETED", 60)
    assert cluster.show(job, "Restarts") == "0"
    assert "error: Could not override 'optimizer.lrr'" in (tmp_path / "job.log").read_text()


@pytest.mark.slow
def test_cancelled_job_saves_and_ends(cluster: Cluster, small_root: Path, tmp_path: Path) -> None:
    job, _ = start_training(cluster, small_root, tmp_path, processes=2)
    cluster.call("scancel", job)
    wait_until(lambda: cluster.show(job, "JobState") == "CANCELLED", 30, "the job is cancelled")
    wait_until(lambda: "to continue" in (tmp_path / "job.log").read_text(), 20, "it saved")
    nodes = cluster.nodes.values()
    wait_until(lambda: not any(map(ranks_on, nodes)), 20, "no rank is left")
    assert cluster.show(job, "Restarts") == "0"


@pytest.mark.slow
def test_interrupted_job_continues(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, processes=1)
    cluster.call("scancel", "--signal=USR1", job)
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"
    assert "to continue" in (tmp_path / "job.log").read_text()


def test_killed_agent_requeues_the_job(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, processes=1)
    second = cluster.nodes_of(job)[1]
    trainings.kill(agent_on(second))
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"


def test_sweep_survives_its_time_limit(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = cluster.head.start(
        *(sys.executable, "-m", "dist_mnist", "--multirun", "hydra/launcher=slurm"),
        *(f"hydra.sweep.dir={tmp_path}", "hydra.launcher.nodes=2", "seed=0,1"),
        *trainings.training(small_root, None, 0.1),
        log=tmp_path / "sweep.log",
        **{**trainings.ENVIRONMENT, "SLURM_CONF": str(cluster.folder / "slurm.conf")},
    )
    wait_for_step(tmp_path / "0", 6)
    job = cluster.call("squeue", "-h", "-r", "-o", "%A", "--sort=i").split()[0]
    cluster.call("scancel", "--signal=USR2", job)
    assert sweep.wait(120) == 0, (tmp_path / "sweep.log").read_text()
    assert cluster.show(job, "Restarts") == "1"
    assert "stopped by SIGUSR2 after step" in (tmp_path / "0" / "train.log").read_text()
    assert faults.fingerprint(tmp_path / "0") == undisturbed
    assert faults.fingerprint(tmp_path / "1") != undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_job_continues_on_another_node(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str, which: int
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, processes=2)
    lost = cluster.nodes_of(job)[which]
    lost.cut_off()
    try:
        require_equal(cluster, job, run_dir, undisturbed)
        assert lost not in cluster.nodes_of(job)
    finally:
        lost.reconnect()
    cluster.wait_for_node(lost, "idle", 60)
