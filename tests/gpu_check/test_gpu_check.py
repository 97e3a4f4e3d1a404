"""The checks run without a GPU, and the manuals claim only recorded results of a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_check.__main__ import CHECKS, run_apart
from tests.gpu_check.record import (
    CHECKOUT,
    FILES,
    HEADER,
    MANUALS,
    NOT_YET,
    changed_files,
    file_hashes,
    read_record,
    summary,
    unsupported_claims,
)
from tests.support.processes import python

PASSED: dict[str, Any] = {
    "device": "cuda",
    "files": file_hashes(),
    "checks": {
        "machine": {"ok": True, "gpu": "H100"},
        "graph": {"ok": False},
        "speed": {"ok": None},
    },
}
ROW = "| `machine` | passed on an H100 |"
FIGURE = "On an H100, a step takes 0.2 ms."


def test_readme_and_manuals_claim_recorded_results() -> None:
    texts = [(CHECKOUT / path).read_text(encoding="utf-8") for path in MANUALS]
    assert NOT_YET not in "".join(texts[1:])  # it is said once, in the README
    assert unsupported_claims("\n".join(texts), read_record()) == []


def test_record_is_of_this_code() -> None:
    record = read_record()
    assert record is None or changed_files(record) == []


@pytest.mark.parametrize(
    ("readme", "record", "unsupported"),
    [
        (NOT_YET, None, []),
        ("", None, [f"missing: {NOT_YET}"]),
        (f"{NOT_YET}\n{HEADER}\n| --- | --- |\n{ROW}\n", None, [ROW]),
        (
            f"{NOT_YET}\nOn an H100, a step takes 0.2 ms.",
            None,
            ["On an H100, a step takes 0.2 ms."],
        ),
        (f"{NOT_YET}\nEight GPUs train 7.5 times as fast; 99.1 % right.", None, None),
        (f"{HEADER}\n| --- | --- |\n{ROW}\n", PASSED, []),
        (f"{HEADER}\n| --- | --- |\n| `graph` | passed on an H100 |\n", PASSED, None),
        (f"{NOT_YET}\n", PASSED, [NOT_YET]),
    ],
)
def test_claims_are_held_against_the_record(
    readme: str, record: dict[str, Any] | None, unsupported: list[str] | None
) -> None:
    claims = unsupported_claims(readme, record)
    assert len(claims) == 1 if unsupported is None else claims == unsupported


def test_record_names_changed_files(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    assert changed_files(PASSED, tmp_path) == []
    (tmp_path / FILES[0]).write_text("# another step\n")
    assert changed_files(PASSED, tmp_path) == [FILES[0]]


def test_record_of_a_cpu_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "gpu_check.json"
    assert read_record(path) is None
    for device, counts in (("cpu", False), ("cuda", True)):
        path.write_text(json.dumps({**PASSED, "device": device}))
        assert (read_record(path) is not None) == counts
    assert summary(PASSED) == [ROW]


def test_check_that_takes_too_long_is_ended() -> None:
    found = run_apart("machine", "cpu", 0.2)
    assert found["ok"] is False
    assert found["why"] == "took longer than 0 s"
    assert found["took"] < 10


@pytest.mark.slow
def test_rehearsal_on_a_cpu(tmp_path: Path) -> None:
    done = python(
        *("-m", "tests.gpu_check", "--device", "cpu", "--out", str(tmp_path), "--budget", "900"),
        cwd=CHECKOUT,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    expected = {name: None if entry.needs_gpu else True for name, entry in CHECKS.items()}
    assert {name: check["ok"] for name, check in record["checks"].items()} == expected
    assert changed_files(record) == []
