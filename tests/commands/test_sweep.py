"""Sweeps: one job's mistake is not the end of the others, and a sweeper gets a score back."""

from pathlib import Path

import pytest

from dist_mnist.commands import train
from dist_mnist.config.errors import InputError
from dist_mnist.record.journal import read_journal
from tests.support.configs import make_config
from tests.support.processes import python

RUN = ("data=fashion_mnist", "data.validation_size=50", "trainer.max_steps=4", "model=mlp")


def test_failed_job_is_told_and_the_next_one_runs(small_root: Path, tmp_path: Path) -> None:
    done = python(
        *("-m", "dist_mnist", "--multirun", *RUN, f"data.root={small_root}", "optimizer=sgd"),
        *("trainer.device=cpu", f"run_dir={tmp_path}", "optimizer.lr=1e30,0.01,1e30"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.count("is not finite") == 2
    assert "Traceback" not in done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert (tmp_path / "1" / "checkpoints" / "best.safetensors").exists()


def test_job_returns_its_validation_accuracy(
    small_root: Path, tmp_path: Path, no_pictures: None
) -> None:
    config = make_config(*RUN, f"data.root={small_root}", f"run_dir={tmp_path}")
    score = train._run(config, is_sweep=True, overrides=[])
    lines = read_journal(tmp_path / "metrics.jsonl")
    scores = [line["validation/accuracy"] for line in lines if line["kind"] == "epoch"]
    assert score == max(scores)
    assert len(scores) == 4


def test_no_validation_no_score(small_root: Path, tmp_path: Path, no_pictures: None) -> None:
    own = ["data.validation_size=0", f"data.root={small_root}", f"run_dir={tmp_path}"]
    assert train._run(make_config(*RUN, *own), is_sweep=False, overrides=[]) is None


def test_empty_paths_are_refused() -> None:
    for key in ("run_dir", "data.root"):
        with pytest.raises(InputError, match=f"{key}= is not allowed: it is empty"):
            make_config(f"{key}=''")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = make_config("run_dir='~/runs/1'", "data.root='~/data'")
    assert (config.run_dir, config.data.root) == ("/home/me/runs/1", "/home/me/data")


@pytest.mark.parametrize("override", ["run_dir=a/lr=0.1", "run_dir=Häuser{"])
def test_grammar_error_hints_at_quotes(override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(InputError, match="quote what has special characters") as error:
        make_config(override)
    assert f"'{key}=\"{value}\"'" in str(error.value)


def test_sweep_where_nothing_can_be_written() -> None:
    done = python("-m", "dist_mnist", "--multirun", "seed=1,2", *RUN, cwd=Path("/sys"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: multirun")
    assert len(done.stderr.splitlines()) == 1


def test_run_dir_of_hydra_is_refused(tmp_path: Path) -> None:
    done = python("-m", "dist_mnist", "hydra.run.dir=there", *RUN, cwd=tmp_path)
    assert not (tmp_path / "there").exists()
    assert done.returncode == 1
    assert done.stderr == "error: hydra.run.dir=there has no effect here: use run_dir=there.\n"
