"""The manual's examples of a user's data set and network run exactly as printed there."""

import re
import shlex
from pathlib import Path

import pytest

from dist_mnist.models.classifier import load_classifier
from tests.support.configs import CHECKOUT
from tests.support.processes import python
from tests.support.runs import run_once

MANUAL = (CHECKOUT / "conf" / "README.md").read_text(encoding="utf-8")
SHORT = ("trainer.max_steps=20", "trainer.global_batch_size=50", "trainer.device=cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the examples, which begin with a comment with their names."""
    for name, text in re.findall(r"```\w+\n# (my_[\w/]+\.\w+)\n(.*?)```", MANUAL, re.DOTALL):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def command(word: str) -> list[str]:
    """Return the arguments of the manual's only command with a word in it."""
    (line,) = re.findall(rf"^python -m dist_mnist (.*{re.escape(word)}.*)$", MANUAL, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.usefixtures("no_pictures")
def test_a_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    accuracy = run_once([*command("my_bars.Bars"), *SHORT, f"run_dir={folder / 'run'}"])
    assert accuracy > 0.9
    assert load_classifier(folder / "run").classes == ("nothing", "bar")


def test_a_network_and_config_files(folder: Path) -> None:
    arguments = [*command("--config-dir my_conf"), *SHORT, "run_dir=run"]
    done = python("-m", "dist_mnist", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Wide with" in done.stdout
    assert "of class bar" in done.stdout
