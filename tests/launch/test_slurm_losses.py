"""launch/slurm.sh when a node, or the agent on one, is lost."""

from pathlib import Path

import pytest

from tests.launch import trainings
from tests.launch.slurm import Cluster
from tests.launch.slurm_jobs import require_equal, start_training
from tests.launch.trainings import agent_on

pytestmark = [pytest.mark.launch, pytest.mark.usefixtures("no_job_is_left")]
NODES = ("n1", "n2", "n3", "n4")


@pytest.mark.slow
def test_killed_agent_requeues_the_job(
    cluster: Cluster, small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    job, run_dir = start_training(cluster, small_root, tmp_path, processes=1)
    second = cluster.nodes_of(job)[1]
    trainings.kill(agent_on(second))
    require_equal(cluster, job, run_dir, undisturbed)
    assert cluster.show(job, "Restarts") == "1"


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
