"""Jobs that train with launch/slurm.sh on two nodes, and the result they must have."""

from pathlib import Path

from tests import faults
from tests.launch import trainings
from tests.launch.slurm import Cluster
from tests.launch.trainings import LAUNCH, wait_for_step


def submit(
    cluster: Cluster, folder: Path, *options: str, overrides: list[str], processes: str = "2"
) -> str:
    """Submit the script from a folder, as a user would, for two nodes of `processes` each."""
    return cluster.submit(
        *("--nodes=2", f"--chdir={folder}", f"--output={folder}/job.log", *options),
        LAUNCH / "slurm.sh",
        *overrides,
        **{**trainings.ENVIRONMENT, "NPROC_PER_NODE": processes, "WANDB_MODE": "offline"},
    )


def start_training(
    cluster: Cluster, root: Path, folder: Path, processes: int, *options: str
) -> tuple[str, Path]:
    """Submit a training of `processes` a node; in step 6, return its job and directory."""
    run_dir = folder / "run"
    overrides = trainings.training(root, run_dir, 0.05 * processes)
    job = submit(cluster, folder, *options, overrides=overrides, processes=str(processes))
    wait_for_step(run_dir, 6)
    return job, run_dir


def require_equal(cluster: Cluster, job: str, run_dir: Path, undisturbed: str) -> None:
    """Require that a job comes to its end, and the run in it to that of an undisturbed one."""
    cluster.wait_for(job, "COMPLETED", 120)
    assert faults.fingerprint(run_dir) == undisturbed
    steps = trainings.journal_steps(run_dir)
    assert steps == sorted(set(steps))
    assert len(trainings.wandb_ids(run_dir)) == 1
