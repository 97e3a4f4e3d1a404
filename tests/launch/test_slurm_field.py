"""launch/slurm.sh as users run it: own options, names and arguments, and too little time."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.launch import trainings
from tests.launch.hosts import wait_until
from tests.launch.slurm import Cluster
from tests.launch.trainings import LAUNCH

pytestmark = [pytest.mark.launch, pytest.mark.usefixtures("no_job_is_left")]
NODES = ("n1", "n2")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script under another name, beside one that only prints its arguments."""
    folder = tmp_path / "my launch"
    folder.mkdir()
    shutil.copy(LAUNCH / "slurm.sh", folder / "train.sbatch")
    stand_in = folder / "multi_node.sh"
    stand_in.write_text('#!/bin/bash\necho "$LAUNCH_ID:" "$@"\nexit "${STATUS:-0}"\n')
    stand_in.chmod(0o755)
    return folder / "train.sbatch"


def submit(
    cluster: Cluster, script: Path, folder: Path, *arguments: str, options: tuple[str, ...] = ()
) -> str:
    return cluster.submit(
        *("--nodes=1", f"--chdir={folder}", f"--output={folder}/job.log", *options, str(script)),
        *arguments,
        **trainings.ENVIRONMENT,
    )


def test_any_name_and_any_argument(cluster: Cluster, script: Path, tmp_path: Path) -> None:
    arguments = ("data.root=/x/slurm.sh", "note=a  b/slurm.sh c")
    job = submit(cluster, script, tmp_path, *arguments)
    cluster.wait_for(job, "COMPLETED", 30)
    assert f"{job}.0: {' '.join(arguments)}" in (tmp_path / "job.log").read_text()
    assert not [*tmp_path.glob(".slurm-*")]


@pytest.mark.slow
def test_export_none_loses_no_node(cluster: Cluster, script: Path, tmp_path: Path) -> None:
    job = submit(cluster, script, tmp_path, options=("--export=NONE",))
    cluster.wait_for(job, "COMPLETED", 30)
    job = submit(cluster, script, tmp_path, options=("--export=STATUS=1",))
    with pytest.raises(AssertionError, match="FAILED"):
        cluster.wait_for(job, "COMPLETED", 30)
    assert cluster.show(job, "Restarts") == "0"


def test_job_from_an_array_counts_alone(cluster: Cluster, script: Path, tmp_path: Path) -> None:
    inner = f"sbatch --nodes=1 --parsable --output={tmp_path}/inner.log '{script}' inner > id"
    outer = cluster.submit(
        *(f"--chdir={tmp_path}", "--output=outer.log", "--array=7", "--wrap", f"{inner}; sleep 3"),
        **trainings.ENVIRONMENT,
    )
    wait_until(lambda: (tmp_path / "inner.log").exists(), 30, "the inner job has started")
    job = (tmp_path / "id").read_text().strip()
    cluster.wait_for(job, "COMPLETED", 30)
    assert f"{job}.0: inner" in (tmp_path / "inner.log").read_text()
    wait_until(lambda: cluster.show(f"{outer}_7", "JobState") == "COMPLETED", 30, "outer ends")


@pytest.mark.slow
def test_task_of_an_array_is_requeued_alone(cluster: Cluster, script: Path, tmp_path: Path) -> None:
    (script.parent / "multi_node.sh").write_text(
        "#!/bin/bash\n((SLURM_RESTART_COUNT || SLURM_ARRAY_TASK_ID == 1)) || exit 75\n"
    )
    job = submit(cluster, script, tmp_path, options=("--array=1-2",))
    for task, restarts in (("1", "0"), ("2", "1")):
        cluster.wait_for(f"{job}_{task}", "COMPLETED", 60)
        assert cluster.show(f"{job}_{task}", "Restarts") == restarts


def test_what_surrounds_a_job_does_not_matter(
    cluster: Cluster, script: Path, tmp_path: Path
) -> None:
    """A job around it with other options, two tasks a node, and a port that is taken."""
    (script.parent / "multi_node.sh").write_text('#!/bin/bash\necho "port $PORT"\n')
    around = {"SLURM_MEM_PER_CPU": "100", "SLURM_GPUS": "8", "SLURM_GPUS_PER_NODE": "7"}
    options = ("--mem=500M", "--ntasks-per-node=2", "--begin=now+2")
    job = cluster.submit(
        *(
            "--nodes=2",
            f"--chdir={tmp_path}",
            f"--output={tmp_path}/job.log",
            *options,
            str(script),
        ),
        **{**trainings.ENVIRONMENT, **around, "NPROC_PER_NODE": "3"},
    )
    port = 10000 + int(job) % 20000
    for node in cluster.nodes.values():
        node.start(*(sys.executable, "-m", "http.server", str(port)), log=tmp_path / "server.log")
    cluster.wait_for(job, "COMPLETED", 30)
    log = (tmp_path / "job.log").read_text()
    assert sorted(line for line in log.splitlines() if ": port" in line) == [
        f"0: port {port + 1}",
        f"1: port {port + 1}",
    ]
    assert "warning: 3 processes share 2 CPU(s) on a node" in log


@pytest.mark.slow
def test_jobs_that_would_not_train_as_meant_are_refused(
    cluster: Cluster, script: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="error: submit this script with sbatch"):
        cluster.call("salloc", "--nodes=1", "bash", str(script), **trainings.ENVIRONMENT)
    options = ("--ntasks=1", ":", "--ntasks=1")
    job = submit(cluster, script, tmp_path, options=options)
    with pytest.raises(AssertionError, match="FAILED"):
        cluster.wait_for(job, "COMPLETED", 30)
    assert "error: this is a heterogeneous job" in (tmp_path / "job.log").read_text()


@pytest.mark.slow
def test_no_progress_is_a_failure(cluster: Cluster, script: Path, tmp_path: Path) -> None:
    (script.parent / "multi_node.sh").write_text(
        '#!/bin/bash\n[[ $SLURM_RESTART_COUNT != 1 ]] || touch "$DIST_MNIST_SAVED"\nexit 75\n'
    )
    job = submit(cluster, script, tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        cluster.wait_for(job, "COMPLETED", 120)
    assert cluster.show(job, "Restarts") == "4"  # one start, one with a checkpoint, then three
    log = (tmp_path / "job.log").read_text()
    assert log.count("started 3 times in a row without a new checkpoint: give it more time") == 1
    assert not [*tmp_path.glob(".slurm-*")]


@pytest.mark.slow
def test_plain_srun_is_refused(cluster: Cluster, small_root: Path, tmp_path: Path) -> None:
    def srun(*options: str) -> str:
        return cluster.call(
            *("srun", f"--chdir={tmp_path}", *options, sys.executable, "-m", "dist_mnist"),
            *("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"),
            *("model=linear", "trainer.max_steps=1", "trainer.device=cpu"),
            **trainings.ENVIRONMENT,
        )

    with pytest.raises(AssertionError, match="error: srun started 2 processes") as refused:
        srun("--ntasks=2")
    assert str(refused.value).count("error: srun started") == 1
    assert "test accuracy" in srun("--ntasks=1")
