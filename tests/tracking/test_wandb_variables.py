"""wandb's own variables: they beat a default, never a typed value, and never a run's own id."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from dist_mnist.config.errors import InputError
from dist_mnist.record.journal import Line
from dist_mnist.tracking import wandb_variables
from dist_mnist.tracking.wandb_run import start_tracking
from tests.support import tracking
from tests.support.configs import CHECKOUT, SMALL_DATA, make_config
from tests.support.processes import python
from tests.support.wandb_cli import inspect
from tests.support.wandb_server import WandbServer, wandb_server

STEPS: list[Line] = [{"kind": "step", "epoch": 1, "step": step} for step in range(1, 5)]
NAMES = {
    "WANDB_PROJECT": "digits",
    "WANDB_ENTITY": "lab",
    "WANDB_NAME": "blue",
    "WANDB_TAGS": "a, b,",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.delenv("WANDB_MODE")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # it remembers what it found in the environment
        yield server
        wandb.teardown()


def described(run_dir: Path, variables: dict[str, str], *overrides: str) -> dict[str, Any]:
    """Track a run offline, as a command line says, and return wandb's record of its start."""
    run_dir.mkdir()
    config = make_config("tracking=offline", *overrides)
    wandb.teardown()  # it remembers what it found in the environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        start_tracking(config.tracking, run_dir, {}, []).finish(exit_code=0)
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records = [json.loads(text) for text in inspect(file).splitlines()]
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    return {key: run.get(key) for key in ("project", "entity", "display_name", "tags")}


def track(run_dir: Path, mode: str, lines: Sequence[Line], new: Sequence[Line]) -> None:
    run_dir.mkdir(exist_ok=True)
    tracking.track(run_dir, mode, lines, new)


def test_names(tmp_path: Path) -> None:
    assert described(tmp_path / "run", NAMES) == {
        "project": "digits",
        "entity": "lab",
        "display_name": "blue",
        "tags": ["a", "b"],
    }
    typed = ["tracking.project=p", "tracking.entity=e", "tracking.name=n", "tracking.tags=[t]"]
    assert [*described(tmp_path / "typed", NAMES, *typed).values()] == ["p", "e", "n", ["t"]]
    empty = described(
        tmp_path / "empty", dict.fromkeys([*NAMES, "WANDB_RUN_ID", "WANDB_RESUME"], "")
    )
    assert [*empty.values()] == ["dist_mnist", None, "empty", None]


def test_folder_is_shared_by_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for run_id in ("exp", "exp1", "my-exp", "exp"):
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        track(tmp_path / run_id, "offline", [], STEPS)
    files = {path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert files == {"run-exp.wandb", "run-exp1.wandb", "run-my-exp.wandb"}
    assert not (tmp_path / "exp" / "wandb").exists()


def run_id(run_dir: Path) -> str:
    return (run_dir / "wandb_run_id").read_text()


def test_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "chosen-1")
    track(tmp_path / "a", "offline", [], [])
    track(tmp_path / "b", "offline", [], [])  # as another job of a sweep in this process
    assert run_id(tmp_path / "a") == "chosen-1"
    assert re.fullmatch("[0-9a-f]{8}", run_id(tmp_path / "b"))
    monkeypatch.setenv("WANDB_RUN_ID", "chosen-2")
    track(tmp_path / "a", "offline", [], [])
    assert run_id(tmp_path / "a") == "chosen-1"
    (tmp_path / "c").mkdir()
    assert wandb_variables.run_id(tmp_path / "c") == "chosen-2"  # which `a` did not need
    monkeypatch.setenv("WANDB_RUN_ID", "a/b")
    with pytest.raises(InputError, match="WANDB_RUN_ID=a/b is not a valid run id"):
        tracking.start(tmp_path / "a", "offline")


def test_trial_is_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    for trial, run_dir in (("trial-1", "a"), ("trial-1", "a"), ("trial-2", "b")):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        (tmp_path / run_dir).mkdir(exist_ok=True)
        assert wandb_variables.run_id(tmp_path / run_dir) == trial
    with pytest.raises(InputError, match=r"WANDB_RUN_ID=trial-2, .* leave out --multirun"):
        wandb_variables.run_id(tmp_path / "c")


@pytest.mark.parametrize("variable", ["chosen", ""])
def test_sweep_restarts_without_repeats(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    monkeypatch.setenv("WANDB_RUN_ID", variable) if variable else None
    track(tmp_path, "online", [], STEPS[:2])
    first = run_id(tmp_path)
    assert first == (variable or first)
    assert server.projects == {first: "digits"}
    wandb.teardown()
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # started again by hand
        monkeypatch.delenv(name, raising=False)
    track(tmp_path, "online", STEPS[:2], STEPS[2:])
    assert server.numbers(tmp_path) == [3, 6, 9, 12]
    assert list(server.rows) == [first]


def test_resume_must_find_a_run(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setenv("WANDB_RUN_ID", "known")
    with pytest.raises(InputError, match="wandb cannot start"):
        track(tmp_path / "a", "online", [], [])
    server.rows["other"] = {}
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    track(tmp_path / "b", "online", [], STEPS)
    assert server.numbers(tmp_path / "b") == [3, 6, 9, 12]
    monkeypatch.setenv("WANDB_RESUME", "never")
    track(tmp_path / "b", "online", STEPS, [])  # goes on, as a restart must
    assert server.numbers(tmp_path / "b") == [3, 6, 9, 12]


@pytest.mark.slow
def test_agent_runs_the_sweep_of_the_manual(
    server: WandbServer, small_root: Path, tmp_path: Path
) -> None:
    manual = (CHECKOUT / "conf" / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n# sweep\.yaml(.*?)```", manual, re.DOTALL)
    sweep = yaml.safe_load(f"#{text}")
    assert sweep["command"] == ["python", "-m", "dist_mnist", "${args_no_hyphens}"]
    sweep["command"] += [*SMALL_DATA, f"data.root={small_root}", "trainer.max_steps=2"]
    server.sweep = yaml.safe_dump(sweep)
    rates = dict(zip(("t1", "t2"), sweep["parameters"]["optimizer.lr"]["values"], strict=False))
    server.trials = {run: {"optimizer.lr": rate, "model": "mlp"} for run, rate in rates.items()}
    python("-m", "wandb", "agent", "e/digits/s", cwd=tmp_path).check_returncode()
    assert server.projects == dict.fromkeys(rates, "digits")
    for run_dir in (tmp_path / "outputs").iterdir():
        run = (run_dir / "wandb_run_id").read_text()
        (epoch,) = [row for row in server.rows[run].values() if "validation/accuracy" in row]
        assert epoch["_step"] in server.numbers(run_dir)
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == rates.pop(run)
    assert not rates
    assert sweep["metric"]["name"] == "validation/accuracy"
