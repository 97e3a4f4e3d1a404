"""Run directories made by hand for the report, and the content of its page."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from dist_mnist.record.journal import Journal
from dist_mnist.record.starts import note_end, note_start
from dist_mnist.report.plots import draw_examples

MISTAKES = [[7, 4, 9, 0.9], [8, 4, 9, 0.8], [9, 3, 5, 0.7]]  # index, label, prediction, confidence
HITS = [[digit, digit, digit, 0.5] for digit in range(10)]


def make_run(run_dir: Path, steps: int = 6, **config: str) -> Path:
    """Write the files of a run of two epochs, without any training."""
    (run_dir / "plots").mkdir(parents=True)
    overrides = [f"{key}={value}" for key, value in config.items()]
    (run_dir / "config.yaml").write_text(json.dumps({"model": config, "seed": 0}))
    (run_dir / "overrides.yaml").write_text(json.dumps([f"model.{text}" for text in overrides]))
    note_start(run_dir, 0, "MLP with 10 parameters", 1)
    journal = Journal(run_dir)
    for line in journal_lines(steps):
        journal.write(line)
    journal.close()
    draw_examples(run_dir, torch.full((len(MISTAKES + HITS), 1, 28, 28), 255, dtype=torch.uint8))
    note_end(run_dir, steps, "finished")
    return run_dir


def journal_lines(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                **{"kind": "step", "epoch": 1 + (2 * step > steps), "step": step},
                **{"train/loss": 1 / step, "train/accuracy": 1 - 0.1 / step},
                **{"learning_rate": 0.01 * step, "images_per_second": 1000.0},
            }
        )
        if 2 * step in (steps, 2 * steps):
            lines.append(
                {
                    **{"kind": "epoch", "epoch": 2 * step // steps, "step": step, "seconds": 1.5},
                    **{"train/loss": 0.5, "train/accuracy": 0.9, "images_per_second": 1000.0},
                    **{"validation/loss": 0.4, "validation/accuracy": 0.9 + 0.05 * step / steps},
                }
            )
    confusion = torch.eye(10, dtype=torch.int64) * 9
    for _, label, prediction, _ in MISTAKES:
        confusion[int(label), int(prediction)] += 1
    lines.append(
        {
            **{"kind": "test", "epoch": 2, "step": steps, "seconds": 0.1},
            **{"test/loss": 0.3, "test/accuracy": 90 / 93, "test/correct": 90, "test/count": 93},
            **{"test/confusion": confusion.tolist(), "test/examples": MISTAKES + HITS},
            "test/calibration": [[0, 0, 0.0]] * 12 + [[3, 0, 0.8], [0, 0, 0.0], [90, 90, 0.97]],
            "classes": [str(digit) for digit in range(10)],
        }
    )
    return lines


def data_of(page: str) -> list[dict[str, Any]]:
    """Return the runs that a page shows."""
    (text,) = re.findall(r'<script type="application/json" id="runs">(.*?)</script>', page, re.S)
    runs: list[dict[str, Any]] = json.loads(text)
    return runs
