"""Sweeps: one job's mistake is not the end of the others, and a sweeper gets a score back."""

from pathlib import Path

import pytest

from dist_mnist.commands import train
from dist_mnist.record.journal import read_journal
from tests.support.command_line import call
from tests.support.configs import make_config
from tests.support.processes import python

RUN = ("data=fashion_mnist", "data.validation_size=50", "trainer.max_steps=4", "model=mlp")


@pytest.mark.usefixtures("no_pictures")
def test_failed_job_does_not_end_a_sweep(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_root: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--multirun", *RUN, f"data.root={small_root}", "optimizer=sgd"]
    arguments += ["trainer.device=cpu", f"run_dir={tmp_path}", "optimizer.lr=1e30,0.01,1e30"]
    status, out, err = call(monkeypatch, capsys, *arguments)
    assert status == 1
    assert err.count("is not finite") == 2
    assert "Traceback" not in err
    assert out.count("test accuracy") == 1
    assert (tmp_path / "1" / "checkpoints" / "best.safetensors").exists()


def test_job_returns_its_validation_accuracy(
    small_root: Path, tmp_path: Path, no_pictures: None
) -> None:
    config = make_config(*RUN, f"data.root={small_root}", f"run_dir={tmp_path}")
    score = train.train_in_session(config, is_sweep=True, overrides=[])
    lines = read_journal(tmp_path / "metrics.jsonl")
    scores = [line["validation/accuracy"] for line in lines if line["kind"] == "epoch"]
    assert score == max(scores)
    assert len(scores) == 4


def test_no_validation_no_score(small_root: Path, tmp_path: Path, no_pictures: None) -> None:
    overrides = ["data.validation_size=0", f"data.root={small_root}", f"run_dir={tmp_path}"]
    assert (
        train.train_in_session(make_config(*RUN, *overrides), is_sweep=False, overrides=[]) is None
    )


def test_sweep_where_nothing_can_be_written() -> None:
    done = python("-m", "dist_mnist", "--multirun", "seed=1,2", *RUN, cwd=Path("/sys"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: multirun")
    assert len(done.stderr.splitlines()) == 1
