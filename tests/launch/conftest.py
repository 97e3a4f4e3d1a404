"""Fixtures that the tests of launch/ share."""

from pathlib import Path

import pytest

from tests.launch import trainings


@pytest.fixture(scope="session")
def undisturbed(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the training that one process has done without being disturbed."""
    return trainings.undisturbed(small_root, tmp_path_factory.mktemp("undisturbed") / "run")
