import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.record.journal import Journal, read_journal


def line(step: int, kind: str = "step") -> dict[str, Any]:
    return {"kind": kind, "epoch": 1 + (step - 1) // 4, "step": step}


def write(path: Path, *texts: bytes) -> Path:
    path.write_bytes(b"".join(texts))
    return path


def encoded(step: int) -> bytes:
    return json.dumps(line(step)).encode() + b"\n"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(1, 9):
        journal.write(line(step))
        if step % 4 == 0:
            journal.write(line(step, "epoch"))
    journal.cut_back(step=6, finished_epochs=1)
    journal.write({**line(7), "train/loss": float("nan")})
    journal.close()
    kept = [(entry["kind"], entry["step"]) for entry in read_journal(tmp_path / "metrics.jsonl")]
    steps = [("step", step) for step in range(1, 8)]
    assert kept == [*steps[:4], ("epoch", 4), *steps[4:]]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_torn_last_line_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for torn in (b"", b"{", encoded(3)[:-1], b"\0\0\0", b"\xff"):
        path = write(tmp_path / "metrics.jsonl", encoded(1), encoded(2), torn)
        assert read_journal(path) == [line(1), line(2)]
    assert not caplog.records


@pytest.mark.parametrize(
    "damage",
    [
        encoded(2)[:20] + b"\n",
        b"\0" * 30 + b"\n",
        b"\xff\xfe{}\n",
        b"\n",
        b"[]\n",
        b"3\n",
        b'{"kind": 3, "epoch": 1, "step": 2}\n',
        b'{"kind": "step", "epoch": 1, "step": "2"}\n',
        b'{"kind": "epoch", "step": 2}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=range(10),
)
def test_damaged_line_is_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = write(tmp_path / "metrics.jsonl", encoded(1), damage, encoded(3))
    with caplog.at_level(logging.WARNING):
        assert read_journal(path) == [line(1), line(3)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: skipped unreadable lines: 2"
    ]
    journal = Journal(tmp_path)
    journal.cut_back(step=10, finished_epochs=10)
    journal.write(line(4))
    journal.close()
    caplog.clear()
    assert read_journal(path) == [line(1), line(3), line(4)]
    assert not caplog.records


def test_missing_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read: No such file"):
        read_journal(tmp_path / "metrics.jsonl")
    journal = Journal(tmp_path)
    journal.cut_back(step=10, finished_epochs=2)
    journal.close()
    assert read_journal(tmp_path / "metrics.jsonl") == []


def test_unwritable_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/metrics.jsonl cannot be written: its folder"):
        Journal(tmp_path / "gone")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path)
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be written: the disk is full"):
        journal.write(line(1))
    journal.close()


def test_deleted_journal_stops_the_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(line(1))
    journal.sync()
    journal.path.unlink()
    with pytest.raises(InputError, match=r"metrics.jsonl was deleted while the run"):
        journal.sync()
    journal.close()
