"""Pictures are decoration: nobody's settings change them, and no run fails for want of them."""

import hashlib
from pathlib import Path

import pytest
import torch

from dist_mnist.record.journal import read_journal
from dist_mnist.report.plots import draw_confusion
from tests.support.processes import python
from tests.support.runs import run_once

SHORT = (
    *("data=fashion_mnist", "data.validation_size=50", "model=linear"),
    *("trainer.max_steps=1", "trainer.device=cpu"),
)


def digest(run_dir: Path, classes: list[str]) -> str:
    path = draw_confusion(run_dir, torch.eye(3, dtype=torch.int64), classes)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_users_settings_change_no_picture(tmp_path: Path) -> None:
    import matplotlib

    plain = digest(tmp_path, ["a", "b", "c"])
    with matplotlib.rc_context({"text.usetex": True, "savefig.format": "pdf", "font.size": 30}):
        assert digest(tmp_path, ["a", "b", "c"]) == plain
        assert matplotlib.rcParams["font.size"] == 30  # it is still the user's


@pytest.mark.parametrize("name", ["$", "a$b$c", r"$\frac{$", r"\alpha_{"])
def test_class_names_are_written_as_they_are(tmp_path: Path, name: str) -> None:
    assert digest(tmp_path, [name, "b", "c"]) != digest(tmp_path, ["alpha", "b", "c"])


@pytest.mark.slow
def test_notebook_backend_does_not_show(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: true\n")
    done = python(
        *("-m", "dist_mnist", *SHORT, f"data.root={small_root}", "run_dir=run"),
        cwd=tmp_path,
        MPLBACKEND="module://not_installed.here",
        MPLCONFIGDIR=str(tmp_path / "cache"),  # empty, so that matplotlib looks for fonts
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "plots").glob("*.png"))) == 4
    assert "fontManager" not in done.stdout
    assert "WARNING" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("test accuracy")


def test_run_without_pictures_ends_well(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").touch()  # where the folder of the pictures should be
    run_once([*SHORT, f"data.root={small_root}", f"run_dir={tmp_path}"])
    assert read_journal(tmp_path / "metrics.jsonl")[-1]["kind"] == "test"
    log = (tmp_path / "train.log").read_text().splitlines()
    assert [line for line in log if " WARNING " in line and "its plots could not be drawn" in line]
    assert len([line for line in log if " WARNING " in line]) == 1


@pytest.mark.usefixtures("no_pictures")
def test_run_ends_well_without_its_report(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # where the report should be
    run_once([*SHORT, f"data.root={small_root}", f"run_dir={tmp_path}"])
    assert read_journal(tmp_path / "metrics.jsonl")[-1]["kind"] == "test"
    (warning,) = [
        line for line in (tmp_path / "train.log").read_text().splitlines() if " WARNING " in line
    ]
    assert "the run has no report: InputError" in warning
