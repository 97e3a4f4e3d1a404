"""Real wandb runs without a server, read back with wandb's own reader."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.signals import STOPPED, Stopped
from dist_mnist.record.journal import read_journal
from dist_mnist.training.run import run
from tests.support.configs import SOLO, make_config
from tests.support.tracking import folders, numbers, start, track
from tests.support.wandb_cli import history, inspect

OVERRIDES = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "tracking=offline",
    "trainer.global_batch_size=50",
    "trainer.epochs=2",
    "trainer.log_every_steps=1",
    "trainer.device=cpu",
    "optimizer.lr=0.000001",  # learns next to nothing, so there are mistakes to show
)


def train(root: Path, run_dir: Path, *overrides: str) -> None:
    run(make_config(*OVERRIDES, f"data.root={root}", f"run_dir={run_dir}", *overrides), SOLO)


@pytest.fixture(scope="module")
def finished_run(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("offline") / "my_run"
    train(small_root, run_dir)
    return run_dir


def test_rows_are_the_journal(finished_run: Path) -> None:
    (file,) = finished_run.glob("wandb/offline-run-*/*.wandb")
    journal, rows = read_journal(finished_run / "metrics.jsonl"), history(file)
    assert [row["_step"] for row in rows] == numbers(journal)
    assert [row["step"] for row in rows] == [line["step"] for line in journal]
    for kind, key, shown_as in (
        ("step", "train/loss", "train/loss_step"),
        ("epoch", "train/loss", "train/loss"),
        ("epoch", "validation/accuracy", "validation/accuracy"),
        ("test", "test/correct", "test/correct"),
        ("test", "seconds", "test/seconds"),
    ):
        values = [line[key] for line in journal if line["kind"] == kind]
        assert [row[shown_as] for row in rows if shown_as in row] == pytest.approx(values)


def test_summary_and_pictures(finished_run: Path) -> None:
    (file,) = finished_run.glob("wandb/offline-run-*/*.wandb")
    shown = json.loads(inspect(file, "--summary"))
    test = read_journal(finished_run / "metrics.jsonl")[-1]
    assert (shown["state"], shown["exit_code"], shown["name"]) == ("finished", 0, "my_run")
    assert shown["run_id"] == (finished_run / "wandb_run_id").read_text()
    assert shown["config"]["optimizer"]["lr"] == 0.000001
    assert shown["summary"]["test/accuracy"] == test["test/accuracy"]
    for name in ("curves", "confusion_matrix", "mistakes"):
        picture = file.parent / "files" / shown["summary"][f"plots/{name}"]["path"]
        assert picture.read_bytes() == (finished_run / "plots" / f"{name}.png").read_bytes()
    path = file.parent / "files" / shown["summary"]["test/worst_mistakes"]["path"]
    table = json.loads(path.read_text())
    assert table["columns"] == ["image", "label", "prediction", "confidence"]
    assert len(table["data"]) == len(test["test/mistakes"]) > 0


def test_new_start_replaces_the_folder(
    finished_run: Path, small_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run, run_dir, symlinks=True)
    train(small_root, run_dir, "trainer.epochs=3")
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert file.stem == f"run-{(run_dir / 'wandb_run_id').read_text()}"
    rows, journal = history(file), read_journal(run_dir / "metrics.jsonl")
    assert [row["_step"] for row in rows] == numbers(journal)
    assert [row["epoch"] for row in rows if "validation/accuracy" in row] == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ZeroDivisionError(), 1), (Stopped("SIGTERM"), STOPPED)]
)
def test_exit_code_of_a_run_cut_short(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("dist_mnist.training.run.fit", fail)
    with pytest.raises(type(error)):
        train(small_root, tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads(inspect(file, "--summary"))["exit_code"] == exit_code


@pytest.mark.parametrize(
    ("choice", "variable", "expected"),
    [
        ("auto", "", ["offline-run"]),  # no key on this machine
        ("auto", "disabled", []),
        ("auto", "dryrun", ["offline-run"]),
        ("offline", "online", ["offline-run"]),
        ("disabled", "offline", []),
    ],
)
def test_mode(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    variable: str,
    expected: list[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    track(tmp_path, choice, [], [])
    assert folders(tmp_path) == expected


def test_unknown_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE=sometimes"):
        start(tmp_path, "auto")


def test_online_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no key; `wandb login`.*tracking=offline"):
        start(tmp_path, "online")


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_refused_name(tmp_path: Path, mode: str) -> None:
    with pytest.raises(InputError, match="project=a/b"):
        start(tmp_path, mode, project="a/b").finish(exit_code=0)


@pytest.mark.parametrize("content", ["", "\0\0\0\0", "../x"])
def test_damaged_id_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb_run_id").write_text(content)
    track(tmp_path, "offline", [], [])
    run_id = (tmp_path / "wandb_run_id").read_text()
    assert re.fullmatch("[0-9a-f]{8}", run_id)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.name == f"run-{run_id}.wandb"
