"""Files of wandb's own making, cut anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record.journal import Line
from dist_mnist.record.wandb_files import read_run
from dist_mnist.record.wandb_run import start_tracking

ROWS = 300  # more than fit into one block


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run with a row for each of the steps 1, 2, ..."""
    run_dir = tmp_path_factory.mktemp("run")
    config = TrackingConfig(TrackingMode.offline, "project", None, None, [])
    lines: list[Line] = [{"kind": "step", "step": step} for step in range(1, ROWS + 1)]
    start_tracking(config, run_dir, {}, lines).finish(exit_code=0)
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    return file


def test_a_file_cut_anywhere_is_mended_to_its_last_whole_row(file: Path, tmp_path: Path) -> None:
    content, run_id = file.read_bytes(), file.stem.removeprefix("run-")
    copy = tmp_path / file.parent.name / file.name
    seen = []
    for size in [*range(0, len(content), 997), 32768, 32775, len(content)]:
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content[:size])
        held = read_run(tmp_path, run_id)
        assert all(held.has(["step"], step) for step in range(1, held.next_row + 1))
        assert not held.has(["step"], held.next_row + 1)
        if copy.exists():
            assert copy.read_bytes() == content[: copy.stat().st_size]
            assert read_run(tmp_path, run_id) == held
        else:
            assert held.next_row == 0  # it had not begun, and would stop `wandb sync`
        seen.append(held.next_row)
    assert seen[0] == 0
    assert seen[-1] == ROWS
    assert len(set(seen)) > 20


def test_wandb_reads_a_mended_file_to_its_end(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.parent.name / file.name
    copy.parent.mkdir()
    shutil.copy(file, copy)
    with copy.open("r+b") as torn:
        torn.truncate(32768)  # where wandb's blocks end, and with them what a killed one wrote
    held = read_run(tmp_path, file.stem.removeprefix("run-"))
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(copy)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.count('"type":"history"') == held.next_row > 0
    assert not shown.stderr


def test_a_file_of_another_format_is_left_alone(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.parent.name / file.name
    copy.parent.mkdir()
    copy.write_bytes(b":W&B\xe1\xbe\x01" + file.read_bytes()[7:])
    held = read_run(tmp_path, file.stem.removeprefix("run-"))
    assert held.next_row == 0
    assert copy.stat().st_size == file.stat().st_size
