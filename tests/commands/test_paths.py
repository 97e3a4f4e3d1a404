"""Paths as users type them: home folders, blanks, signs that Hydra's grammar has a use for."""

import re
import shlex
from pathlib import Path

import pytest

from dist_mnist.config.compose import compose_config
from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import to_copy
from dist_mnist.record import checkpoint
from tests.support.command_line import call


@pytest.mark.parametrize(
    "value", ["a/lr=0.1", "läufe/x", "a#b", "a(1)", "a/{b}", 'sagt "ja"=x', "it's=x"]
)
def test_unquoted_value_gets_a_hint(value: str) -> None:
    with pytest.raises(InputError) as raised:
        compose_config(f"run_dir={value}")
    message = str(raised.value)
    assert message.startswith(f"run_dir={value} cannot be read (")
    (copied,) = shlex.split(message.partition("quote it: ")[2])
    assert compose_config(copied).run_dir == value


@pytest.mark.parametrize("override", ["run_dir=[1,2", "run_dir='a", "läufe=3"])
def test_no_hint_where_quotes_do_not_help(override: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*check its brackets and quotes"):
        compose_config(override)


@pytest.mark.parametrize(
    "folder", ["runs/first", "my runs/a", "läufe/lr=0.1", "a'b", "$HOME", "a,b"]
)
def test_copied_override_keeps_its_value(folder: str) -> None:
    (copied,) = shlex.split(to_copy("run_dir", folder))
    assert compose_config(copied).run_dir == folder


@pytest.mark.parametrize("name", ["home", "zu hause=ä"])
def test_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / name
    monkeypatch.setenv("HOME", str(home))
    config = compose_config("run_dir=~/runs", 'data.root="~/data"', 'tracking.name="~b"')
    assert config.run_dir == f"{home}/runs"
    assert config.data.root == f"{home}/data"
    assert config.tracking.name == "~b"
    assert checkpoint.resolve(Path("~/runs")) == home / "runs"
    assert compose_config("run_dir=~").run_dir == str(home)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ([], "run_dir=", "run_dir= is not allowed: it must be a folder, or null"),
        ([], "data.root=", "data.root= is not allowed: it must be a folder"),
        ([], "hydra.run.dir=x", "hydra.run.dir=x is not used, .* set run_dir=x to choose"),
        (["evaluate"], "checkpoint=", "checkpoint is missing"),
        (["evaluate"], "checkpoint=~/nowhere", "/home/me/nowhere does not exist"),
    ],
)
def test_unusable_path_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: list[str],
    override: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    status, out, err = call(monkeypatch, capsys, *command, override)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert re.match(f"error: {message}", err)
    assert not list(tmp_path.iterdir())


def test_hydras_folder_in_a_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "experiment" / "own.yaml"
    experiment.parent.mkdir()
    experiment.write_text("# @package _global_\nhydra: {run: {dir: x}}\n")
    status, out, err = call(monkeypatch, capsys, f"--config-dir={tmp_path}", "experiment=own")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert re.match("error: hydra.run.dir=x is not used, .* set run_dir=x to choose", err)


def test_hydras_folder_is_refused_in_a_notebook() -> None:
    with pytest.raises(InputError, match=r"hydra\.run\.dir=x is not used"):
        compose_config("hydra.run.dir=x")


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        (f"run_dir={LONG}", "trainer.max_steps=1"),
        (f"run_dir=a/{LONG}/b", "trainer.max_steps=1"),
        (f"data.root={LONG}",),
        (f"transfer.checkpoint={LONG}",),
        ("evaluate", f"checkpoint={LONG}"),
        ("export", "format=safetensors", f"output={LONG}.safetensors"),
        ("predict", LONG),
        ("report", LONG),
    ],
    ids=lambda arguments: arguments[0][:20],
)
def test_a_name_too_long_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    is_training = "=" in arguments[0]
    status, _, err = call(
        monkeypatch, capsys, *arguments, *(["tracking=disabled"] if is_training else [])
    )
    assert status == 1
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "ile name too long" in err
