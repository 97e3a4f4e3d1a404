"""The load that `dist-mnist serve` bears on this machine, by wrk on the loopback address."""

import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    Spread,
    by_figure,
    in_turn,
    run_program,
    table,
    write_record,
)
from tests.support.server import Server, serving
from tests.support.strokes import draw, png

SECONDS = 10
CONNECTIONS = (1, 8, 64)
POST = """
local file = io.open("{path}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "image/png"
"""
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure `POST /predict` with one connection and with many; write `serving.json`."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name, serving(cwd=Path(name)) as server:
        picture, script = Path(name, "seven.png"), Path(name, "post.lua")
        picture.write_bytes(png(draw(7)))
        script.write_text(POST.format(path=picture), encoding="utf-8")
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            f"connections: {count}": partial(load, server, script, count) for count in CONNECTIONS
        }
        runs = in_turn(contenders, rounds)
    results = {name: by_figure(of_one) for name, of_one in runs.items()}
    write_record(folder, "serving", results, summary(results))


def load(server: Server, script: Path, connections: int, seconds: int = SECONDS) -> dict[str, Any]:
    """Send as many requests as are answered; return what wrk counted, and the server's memory."""
    options = ["--latency", "--timeout", "10s", "--threads", "1", "--duration", f"{seconds}s"]
    url = f"{server.url}/predict"
    said = run_program(
        ["wrk", *options, "--connections", str(connections), "--script", str(script), url]
    )
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None, said
    return {
        "requests_per_second": float(rate[1]),
        "p50_ms": _percentile(said, 50),
        "p99_ms": _percentile(said, 99),
        "memory_mb": _memory(server.process.pid),
    }


def _percentile(said: str, number: int) -> float:
    found = re.search(rf"{number}%\s+([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    return float(found[1]) * UNITS[found[2]]


def _memory(process: int) -> float:
    """Return the most memory that a process has had, in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def summary(results: dict[str, Any]) -> str:
    """Return the table."""
    rows = [(name, *map(Spread.of, columns.values())) for name, columns in results.items()]
    columns = ("", "requests/s", "median, ms", "99th percentile, ms", "server's memory, MB")
    return table(columns, rows)
