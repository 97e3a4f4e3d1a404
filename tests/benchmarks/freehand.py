"""The share of freehand drawings that the page reads right, digit by digit.

Drawings are those of tests/support/strokes.py, put on the page in Chromium with its pointer.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import table, write_record
from tests.support.browser import answer_to, chromium
from tests.support.server import serving
from tests.support.strokes import draw

GOAL = 0.967  # the best figure published for a page of this kind
DRAWINGS = 1000  # of a round


def run(folder: Path, data: str, rounds: int = 2) -> None:
    """Draw, a thousand digits a round; write `freehand.json`."""
    results = read_drawings(rounds * DRAWINGS)
    write_record(folder, "freehand", results, summary(results))


def read_drawings(count: int) -> dict[str, Any]:
    """Return for each digit the number of drawings, and a count of the wrong answers.

    Args:
        count: The drawings of the seeds 0 to count - 1.
    """
    drawings = [draw(seed) for seed in range(count)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(cwd=Path(folder)) as server,
        chromium() as browser,
    ):
        page = browser.new_page()
        page.goto(server.url)
        answers = [answer_to(page, drawing) for drawing in drawings]
    results: dict[str, Any] = {}
    for digit in range(10):
        read = [
            said for drawing, said in zip(drawings, answers, strict=True) if drawing.digit == digit
        ]
        wrong = Counter(said or "nothing" for said in read if said != str(digit))
        results[str(digit)] = {"drawings": len(read), "wrong": dict(wrong.most_common())}
    return results


def share_right(results: dict[str, Any]) -> float:
    """Return the share of all drawings that were read right."""
    wrong = sum(sum(row["wrong"].values()) for row in results.values())
    count: int = sum(row["drawings"] for row in results.values())
    return 1 - float(wrong) / count


def summary(results: dict[str, Any]) -> str:
    """Return the goal and the table."""
    rows = []
    for digit, row in results.items():
        wrong = ", ".join(f"{count} as {said}" for said, count in row["wrong"].items())
        rows.append((digit, row["drawings"], f"{100 * share_right({digit: row}):.1f} %", wrong))
    count = sum(row["drawings"] for row in results.values())
    rows.append(("all", f"{count:,}", f"{100 * share_right(results):.2f} %", ""))
    columns = ("digit", "drawings", "read right", "the others")
    return f"goal: more than {100 * GOAL:.1f} %\n\n{table(columns, rows)}"
