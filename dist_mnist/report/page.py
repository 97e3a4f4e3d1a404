"""The report of a run, or of several side by side: one HTML file that needs nothing else.

It is made from a run directory's journal, config, starts and one sheet of pictures. The page's
template and scripts, about 35 KB, are in `web/`.
"""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import flat
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import read_journal
from dist_mnist.record.starts import read_starts

PARTS = Path(__file__).with_name("web")
STYLE = Path(__file__).parents[1] / "style.css"
SCRIPTS = ("elements", "charts", "matrix", "calibration", "timeline", "comparison", "report")
MOST_POINTS = 1500  # of a curve; a screen has no more columns


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's directory and return its path.

    Raises:
        InputError: The directory holds no run, or the file cannot be written.
    """
    path = run_dir / "report.html"
    write_atomically(path, render([read_run(run_dir)]).encode())
    return path


def render(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of one run, or of several side by side, each from `read_run`."""
    if len(runs) > 1:
        runs = _compared(runs)
    names = ", ".join(str(run["name"]) for run in runs)
    # No text in the JSON can end the element that it stands in.
    data = json.dumps(_finite(runs), separators=(",", ":")).replace("<", "\\u003c")
    page = (PARTS / "report.html").read_text(encoding="utf-8")
    scripts = [(PARTS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    filled = {  # from the last to the first, so that no text is taken for a placeholder
        "script": "\n".join(scripts),
        "runs": data,
        "style": STYLE.read_text(encoding="utf-8"),
        "title": html.escape(names),
    }
    for key in filled:
        before, _, after = page.partition("{{" + key + "}}")
        page = before + filled[key] + after
    return page


def _compared(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return runs without their pictures and with unique names."""
    names = [run["name"] for run in runs]
    return [
        {
            **run,
            "name": run["name"] if names.count(run["name"]) == 1 else run["path"],
            "pictures": None,
        }
        for run in runs
    ]


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return everything that the page shows of a run, as plain values; missing parts stay empty.

    Raises:
        InputError: The directory holds no journal.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"{run_dir} holds no run: metrics.jsonl is missing; give a run directory.")
    lines = read_journal(path)
    overrides = _read_yaml(run_dir / "overrides.yaml") or []
    steps = [line for line in lines if line["kind"] == "step"]
    return {
        "name": run_dir.resolve().name,
        "path": str(run_dir.resolve()),
        "step": _columns(_thinned(steps)),
        "epoch": _columns([line for line in lines if line["kind"] == "epoch"]),
        "test": next((line for line in reversed(lines) if line["kind"] == "test"), None),
        "starts": read_starts(run_dir),
        "config": {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in flat(_read_yaml(run_dir / "config.yaml") or {}).items()
        },
        "overrides": [str(override) for override in overrides],
        "typed": [str(override).partition("=")[0].lstrip("+~") for override in overrides],
        "pictures": _pictures(run_dir),
    }


def _read_yaml(path: Path) -> Any:
    with suppress(Exception):  # the page is useful without it
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return None


def _thinned(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return at most `MOST_POINTS` lines, each in place of equally many neighbors.

    A line's train values are means over its steps, so their mean is exact; other values come from
    the last line.
    """
    size = math.ceil(len(lines) / MOST_POINTS)
    if size <= 1:
        return [*lines]
    thinned: list[Mapping[str, Any]] = []
    for start in range(0, len(lines), size):
        group = lines[start : start + size]
        keys = [key for key in group[-1] if key.startswith("train/")]
        means = {key: sum(line.get(key, 0.0) for line in group) / len(group) for key in keys}
        thinned.append({**group[-1], **{key: float(f"{mean:.6g}") for key, mean in means.items()}})
    return thinned


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for line in lines for key in line if key != "kind")
    return {key: [line.get(key) for line in lines] for key in keys}


def _pictures(run_dir: Path) -> str | None:
    with suppress(OSError):
        return base64.b64encode((run_dir / "plots" / "examples.png").read_bytes()).decode()
    return None


def _finite(value: Any) -> Any:
    """Return a value with null for infinities and NaN, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
