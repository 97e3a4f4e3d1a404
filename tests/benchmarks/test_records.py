"""The committed records can be read, and RESULTS.md has the tables that they give."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import (
    balance,
    beside,
    finetune,
    freehand,
    loop,
    peers,
    reproducible,
    residence,
    scaling,
    serving,
    startup,
    time_to_accuracy,
    tuning,
)
from tests.benchmarks.measure import LINE_WIDTH, compact_json, read_record, write_record
from tests.support.configs import CHECKOUT
from tests.support.digit_shapes import WAYS

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "records"
SUMMARIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "peers": peers.summary,
    "loop": loop.summary,
    "startup": startup.summary,
    "time_to_990": time_to_accuracy.summary,
    "time_to_995": time_to_accuracy.summary,
    "scaling": scaling.summary,
    "tuning": lambda results: "\n".join(map(tuning._summary, results.values())),
    "reproducible": reproducible.summary,
    "balance": balance.summary,
    "beside": beside.summary,
    "residence": residence.summary,
    "freehand": freehand.summary,
    "serving": serving.summary,
    "finetune": finetune.summary,
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_results_has_the_tables_of_the_record(name: str) -> None:
    lines = SUMMARIES[name](read_record(RECORDS, name)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    results = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    assert rows
    assert not [row for row in rows if row not in results.splitlines()]


def test_the_readme_has_the_table_of_balance() -> None:
    rows = balance.summary(read_record(RECORDS, "balance")).splitlines()
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    assert not [row for row in rows if row not in readme]


def test_results_count_kills() -> None:
    runs = json.loads((RECORDS / "faults.json").read_text(encoding="utf-8"))
    kills = sum(len(run["instants"]) for run in runs)
    torn, equal = (sum(run[key] for run in runs) for key in ("torn", "is_equal"))
    row = f"| all | {len(runs)} | {kills} | {torn} | {equal} |"
    assert row in (FOLDER / "RESULTS.md").read_text(encoding="utf-8").splitlines()


def test_the_readme_has_the_share_of_drawings() -> None:
    results = read_record(RECORDS, "freehand")
    count = sum(row["drawings"] for row in results.values())
    ways = sum(map(len, WAYS.values()))
    said = f"Of {count:,} drawings by a program that writes digits in {ways} ways"
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert f"{said}, with many hands, {100 * freehand.share_right(results):.1f} % are" in readme


def test_readme_has_the_speed_beside_others() -> None:
    rows = beside.summary(read_record(RECORDS, "beside")).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    (mlp,), (cnn,) = ([c for c in cells if c[:3] == [name, "1", "1"]] for name in ("mlp", "cnn"))
    ours, alls = (
        [f"{float(c[place]):.0%}".replace("%", " %") for c in (mlp, cnn)] for place in (4, 6)
    )
    said = (
        f"network keeps {ours[0]} of its speed and the convolutional one {ours[1]}; with torch's "
        f"own settings for threads it is {alls[0]} and {alls[1]}."
    )
    assert said in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_readme_has_the_accuracies_of_ten_samples() -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    for accuracies in read_record(RECORDS, "finetune")["10"].values():
        assert f"{100 * statistics.mean(accuracies):.1f} %" in readme


@pytest.mark.parametrize("benchmark", [scaling, finetune])
def test_a_record_is_enough_for_the_picture(benchmark: Any, tmp_path: Path) -> None:
    name = benchmark.__name__.rpartition(".")[2]
    benchmark.draw(tmp_path / "picture.png", read_record(RECORDS, name))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_record_has_a_line_for_each_row(tmp_path: Path) -> None:
    results = {f"row {i}": {"seconds": [i / 3, 1.0], "bytes": 123456789} for i in range(9)}
    path = write_record(tmp_path, "some", results, "summary")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert ' "row 1": {"seconds": [0.3333333, 1.0], "bytes": 123456789},' in lines[5]
    assert max(map(len, lines)) <= LINE_WIDTH
    assert read_record(tmp_path, "some")["row 3"] == {"seconds": [1.0, 1.0], "bytes": 123456789}


def test_compact_json_is_the_same_value() -> None:
    value = {"a": [{"b": None, "c": [True, 0.25, "text, {}[]"]}] * 20, "d": {}, "e": []}
    assert json.loads(compact_json(value)) == value
    assert compact_json(value).count("\n") == 23


def test_a_missing_record_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"tests\.benchmarks scaling"):
        read_record(tmp_path, "scaling")
