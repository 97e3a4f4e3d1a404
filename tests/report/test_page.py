"""The report's data: the journal's numbers, in one file that fetches nothing."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from dist_mnist.config.errors import InputError
from dist_mnist.record.journal import Journal, read_journal
from dist_mnist.report.page import MOST_POINTS, read_run, render, write_report
from tests.support.reports import HITS, MISTAKES, data_of, make_run
from tests.support.runs import run_once


def test_page_has_the_journals_numbers(tmp_path: Path) -> None:
    journal = read_journal(make_run(tmp_path / "run") / "metrics.jsonl")
    (run,) = data_of(write_report(tmp_path / "run").read_text())
    for kind in ("step", "epoch"):
        lines = [line for line in journal if line["kind"] == kind]
        for key, values in run[kind].items():
            assert values == [line.get(key) for line in lines]
    assert run["test"] == journal[-1]


def test_training_leaves_a_whole_report(small_root: Path, tmp_path: Path) -> None:
    overrides = ["data=fashion_mnist", f"data.root={small_root}", f"run_dir={tmp_path}"]
    overrides += ["data.validation_size=50", "trainer.log_every_steps=1", "model=linear"]
    run_once(overrides)
    (run,) = data_of((tmp_path / "report.html").read_text())
    assert run["test"]["classes"][0] == "T-shirt/top"
    assert run["config"]["data.name"] == "fashion_mnist"
    assert len(run["step"]["train/loss"]) == run["epoch"]["step"][-1]
    examples = run["test"]["test/examples"]
    with Image.open(io.BytesIO(base64.b64decode(run["pictures"]))) as sheet:
        assert sheet.size == (20 * 28, -(-len(examples) // 20) * 28)
    start, end = run["starts"]
    assert (start["event"], start["step"], start["machine"]["processes"]) == ("start", 0, 1)
    assert "fashion_mnist: 153 images" in start["description"]
    assert (end["event"], end["reason"]) == ("end", "finished")
    assert end["step"] == run["epoch"]["step"][-1]


def test_page_fetches_nothing(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert "--accent: " in page  # the style of style.css
    without_data = page.replace(page[page.index('id="runs">') : page.index("</script>")], "")
    assert re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", without_data) == ["data:,"]
    assert "{{" not in re.sub(r"\$\{\{?", "", without_data)
    assert len(page) < 100_000


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    name = tmp_path / "<img src=x onerror=alert(1)>"
    page = render([read_run(make_run(name, kind=bad))])
    assert page.count("<script") == page.count("</script") == 2
    assert "<img" not in page
    (run,) = data_of(page)
    assert run["config"]["model.kind"] == bad
    assert run["name"] == name.name


def test_long_curves_keep_their_means(tmp_path: Path) -> None:
    steps = 4 * MOST_POINTS
    run = read_run(make_run(tmp_path / "run", steps))
    losses = run["step"]["train/loss"]
    assert len(losses) == MOST_POINTS
    assert run["step"]["step"][-1] == steps
    mean = sum(1 / step for step in range(1, steps + 1)) / steps
    assert sum(losses) / len(losses) == pytest.approx(mean, rel=1e-5)
    assert len(render([run])) < 250_000


def test_overrides_are_listed(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", dropout="0.5"))
    assert run["overrides"] == ["model.dropout=0.5"]
    assert run["typed"] == ["model.dropout"]
    assert run["config"] == {"model.dropout": "0.5", "seed": "0"}


def test_journal_alone_is_enough(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write({"kind": "step", "epoch": 1, "step": 1, "train/loss": float("nan")})
    journal.close()
    (run,) = data_of(write_report(tmp_path).read_text())
    assert run["step"]["train/loss"] == [None]
    assert (run["test"], run["starts"], run["config"], run["pictures"]) == (None, [], {}, None)


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run: metrics\.jsonl is missing"):
        read_run(tmp_path)


def test_compared_runs_have_distinct_names(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a" / "0"), make_run(tmp_path / "b" / "0")]
    runs = data_of(render([read_run(folder) for folder in folders]))
    assert [run["name"] for run in runs] == [str(folder) for folder in folders]
    assert [run["pictures"] for run in runs] == [None, None]
    assert runs[0]["test"]["test/examples"] == MISTAKES + HITS
