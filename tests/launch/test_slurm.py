"""launch/slurm.sh on a SLURM cluster of four virtual nodes: jobs that lose workers or time."""

import sys
from pathlib import Path

import pytest

from tests import faults
from tests.launch import trainings
from tests.launch.hosts import wait_until
from tests.launch.slurm import Cluster
from tests.launch.slurm_jobs import require_equal, start_training, submit
from tests.launch.trainings import ranks_on, wait_for_step

pytestmark = [pytest.mark.launch, pytest.mark.usefixtures("no_job_is_left")]
NODES = ("n1", "n2", "n3", "n4")


@pytest.mark.slow
def test_two_nodes_match_one_process(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    overrides = trainings.training(small_root, None)
    job = submit(cluster, tmp_path, "--gpus-per-node=2", overrides=overrides, processes="")
    cluster.wait_for(job, "COMPLETED", 120)
    (run_dir,) = (tmp_path / "outputs").iterdir()
    require_equal(cluster, job, run_dir, undisturbed)
    assert ": 4 x " in (tmp_path / "job.log").read_text()


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["train", "graceful", "cancelled"])
def test_preempted_job_continues(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str, partition: str
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, 1, f"--partition={partition}")
    urgent = cluster.submit(
        *("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"),
        *("--wrap", "sleep 1"),
    )
    cluster.wait_for(urgent, "COMPLETED", 60)
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"
    assert "stopped by SIGTERM after step" in (tmp_path / "job.log").read_text()


@pytest.mark.slow
def test_mistake_does_not_requeue(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, overrides=["optimizer.lrr=1"])
    with pytest.raises(AssertionError, match="FAILED"):
        cluster.wait_for(job, "COMPLETED", 60)
    assert cluster.show(job, "Restarts") == "0"
    assert "error: optimizer.lrr is not a key" in (tmp_path / "job.log").read_text()


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


@pytest.mark.slow
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
