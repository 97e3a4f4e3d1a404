"""The starts of a run: the command, the place and the end of each."""

import shlex
import sys
from pathlib import Path

import pytest

from dist_mnist.record.starts import note_end, note_start, read_starts
from tests.support.processes import python, torchrun

NOTE = """
import sys
from pathlib import Path
from dist_mnist.record.starts import note_start
note_start(Path(sys.argv[1]), 3, "a network", 2)
"""


def test_start_and_end_are_read_back(tmp_path: Path) -> None:
    note_start(tmp_path, 0, "a network", 2)
    note_end(tmp_path, 9, "stopped by SIGTERM")
    start, end = read_starts(tmp_path)
    assert (start["step"], start["description"]) == (0, "a network")
    assert start["machine"]["processes"] == 2
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert start["journal_time"] is None
    assert (end["step"], end["reason"]) == (9, "stopped by SIGTERM")
    assert end["time"] >= start["time"]


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    note_end(tmp_path, 1, "finished")
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('[1]\n{"time": "now"}\n\n{"event": "sta')
    assert [line["step"] for line in read_starts(tmp_path)] == [1]


def test_missing_folder_stops_nobody(tmp_path: Path) -> None:
    note_start(tmp_path / "gone", 0, "", 1)
    assert read_starts(tmp_path / "gone") == []


def test_command_is_what_was_typed(tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text(NOTE)
    python(str(script), str(tmp_path))
    (start,) = read_starts(tmp_path)
    assert shlex.split(start["command"]) == ["a script.py", str(tmp_path)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_command_is_that_of_torchrun(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTE)
    torchrun(1, str(tmp_path), module="noting", PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}")
    (start,) = read_starts(tmp_path)
    typed = "-m torch.distributed.run --standalone --nproc_per_node=1 -m noting"
    assert typed in start["command"]
