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
from tests.benchmarks.measure import LINE_WIDTH, Spread, compact_json, read_record, write_record
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
    "reproducible_accuracy": reproducible.accuracy_summary,
    "balance": balance.summary,
    "beside": beside.summary,
    "residence": residence.summary,
    "freehand": freehand.summary,
    "serving": serving.summary,
    "finetune": finetune.summary,
}


def text_of(path: str) -> str:
    return (CHECKOUT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SUMMARIES)
def test_results_has_the_tables_of_the_record(name: str) -> None:
    lines = SUMMARIES[name](read_record(RECORDS, name)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    results = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    assert rows
    assert not [row for row in rows if row not in results.splitlines()]


def test_manual_has_the_effect_of_balancing() -> None:
    manual = text_of("conf/README.md").splitlines()
    for choice, figures in read_record(RECORDS, "balance").items():
        eights, accuracy = (
            f"{100 * statistics.median(figures[name]):.1f} %" for name in ("recall", "accuracy")
        )
        assert f"| `data.balance={choice}` | {eights} | {accuracy} |" in manual


def test_results_count_kills() -> None:
    runs = json.loads((RECORDS / "faults.json").read_text(encoding="utf-8"))
    kills = sum(len(run["instants"]) for run in runs)
    torn, equal = (sum(run[key] for run in runs) for key in ("torn", "is_equal"))
    row = f"| all | {len(runs)} | {kills} | {torn} | {equal} |"
    assert row in (FOLDER / "RESULTS.md").read_text(encoding="utf-8").splitlines()


def test_readme_has_the_share_of_drawings() -> None:
    results = read_record(RECORDS, "freehand")
    count = sum(row["drawings"] for row in results.values())
    ways = sum(map(len, WAYS.values()))
    share = 100 * freehand.share_right(results)
    sentence = (
        f"It reads {share:.1f} % of {count:,} synthetic drawings "
        f"({ways} ways of writing the ten digits)."
    )
    assert sentence in text_of("README.md")


def test_manual_has_the_speed_beside_others() -> None:
    rows = beside.summary(read_record(RECORDS, "beside")).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    (mlp,), (cnn,) = ([c for c in cells if c[:3] == [name, "1", "1"]] for name in ("mlp", "cnn"))
    ours, alls = (
        [f"{float(c[place]):.0%}".replace("%", " %") for c in (mlp, cnn)] for place in (4, 6)
    )
    sentence = (
        f"the MLP keeps {ours[0]} of its speed and the CNN {ours[1]}; "
        f"torch's defaults keep {alls[0]} and {alls[1]}."
    )
    assert sentence in text_of("launch/README.md")


def test_readme_has_the_speed_beside_other_loops() -> None:
    times = [
        _times_as_fast(measured["contenders"])
        for measured in read_record(RECORDS, "peers").values()
    ]
    sentence = (
        f"the MLP trains {times[0]:.2g} times (one process) and {times[1]:.2g} times (two) as fast "
        f"as the fastest of four other loops; the CNN {times[2]:.2g} and {times[3]:.2g} times."
    )
    assert sentence in text_of("README.md")


def _times_as_fast(contenders: dict[str, Any]) -> float:
    """Return how many times the seconds of ours the fastest other loop takes."""
    ours = contenders["dist_mnist"]["epoch_seconds"]
    others = [name for name in contenders if not name.startswith("dist_mnist")]
    assert len(others) == 4
    return min(Spread.of_ratios(contenders[name]["epoch_seconds"], ours).median for name in others)


def test_readme_has_the_time_to_accuracy() -> None:
    ours = read_record(RECORDS, "time_to_990")["ours"]
    accuracy = statistics.mean(100 * share for share in ours["test_accuracy"])
    seconds = statistics.median(ours["training_seconds"])
    sentence = (
        f"`experiment=speed` reaches {accuracy:.2f} % in {seconds:.1f} s of training "
        f"(mean of {len(ours['seed'])} seeds)."
    )
    assert sentence in text_of("README.md")


def test_manual_has_the_accuracies_of_ten_samples() -> None:
    manual = text_of("conf/README.md")
    scratch, frozen, thawed = (
        f"{100 * statistics.mean(read_record(RECORDS, 'finetune')['10'][way]):.1f} %"
        for way in ("from scratch", "frozen features", "everything thawed")
    )
    sentence = (
        f"the test accuracy is {scratch} from scratch, {thawed} with everything trained and "
        f"{frozen} with frozen features."
    )
    assert sentence in manual


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
