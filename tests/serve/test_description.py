"""The API against its OpenAPI description, with valid and invalid requests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server

pytest.importorskip("fastapi")
pytestmark = pytest.mark.serve


def test_the_api_does_what_it_says(server: Server, tmp_path: Path) -> None:
    """Schemathesis checks statuses, headers and types, and that valid requests are accepted."""
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--max-examples", "60", "--seed", "1", "--no-color", "--workers", "1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.api_pictures"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 selected / 3 total" in done.stdout
