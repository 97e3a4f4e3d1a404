"""Open MPI's and MPICH's launchers, which start processes without telling torch where they meet."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHERS = {
    "mpirun": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"],
    "mpiexec": ["mpiexec.hydra"],
}


@pytest.mark.launch
@pytest.mark.parametrize("name", ["mpirun", pytest.param("mpiexec", marks=pytest.mark.slow)])
def test_mpi_is_refused_once(name: str, tmp_path: Path) -> None:
    program, *options = LAUNCHERS[name]
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    refused = subprocess.run(
        [program, *options, "-n", "2", sys.executable, "-m", "dist_mnist"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0
    printed = refused.stdout + refused.stderr
    assert printed.count(f"error: {name} started 2 processes, which would not train together") == 1
    assert "--nproc_per_node=2 -m dist_mnist" in printed
    assert "Traceback" not in printed
    assert not [*tmp_path.iterdir()]
