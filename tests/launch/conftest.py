"""Fixtures that the tests of launch/ share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import slurm, trainings
from tests.launch.slurm import Cluster


@pytest.fixture(scope="session")
def undisturbed(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the training that one process has done without being disturbed."""
    return trainings.undisturbed(small_root, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The nodes that a test file names `NODES`, of two cores and two (pretended) GPUs each."""
    with slurm.cluster_of(*request.module.NODES) as running:
        yield running


@pytest.fixture
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    """End the jobs of a test that has failed."""
    yield
    slurm.end_jobs(cluster)
