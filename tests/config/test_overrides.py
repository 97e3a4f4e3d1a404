"""Arguments that are not overrides: the words of a command, such as run directories."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dist_mnist.config.compose import compose_config
from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import as_text, gather_words, to_copy


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["output=x"], ["output=x"]),
        (["a", "output=x", "./b=1"], ["output=x", 'runs=["a","./b=1"]']),
        (["a b", 'sagt "ja"', "~/c"], ['runs=["a b","sagt \\"ja\\"","~/c"]']),
        (["--cfg", "job", "a", "--help"], ["--cfg", "job", "--help", 'runs=["a"]']),
        (["-", "-m"], ["-m", 'runs=["-"]']),
        (["runs=[a]", "+key=1", "~key="], ["runs=[a]", "+key=1", "~key="]),
    ],
)
def test_words_become_one_list(arguments: list[str], expected: list[str]) -> None:
    assert gather_words("runs", arguments) == expected


def test_files_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").touch()
    assert gather_words("runs", ["lr=0.1", "lr=0.2"]) == ["lr=0.2", 'runs=["lr=0.1"]']
    long = "lr=" + 5000 * "1"
    assert gather_words("runs", [long]) == [long]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@example("${x}")
@example("\\${x}\\")
@example('a\\"b')
@example("2026_11")
@example("1e3")
@example("null")
def test_any_name_can_be_given_as_a_word(name: str) -> None:
    """Files have any name; Hydra's grammar and OmegaConf's interpolations must leave it alone."""
    (override,) = gather_words("images", [f"./{name}"])
    parsed = OverridesParser.create().parse_overrides([override])[0].value()
    assert OmegaConf.to_object(OmegaConf.create({"images": parsed})) == {"images": [f"./{name}"]}


@pytest.mark.parametrize("name", ["2026_11", "1e3", "007", "1.50", "1.", ".5", "true"])
def test_numbers_are_names_of_runs(name: str) -> None:
    assert compose_config(f"run_dir={name}", f"data.root={name}").run_dir == name
    assert as_text(f"run_dir=a,{name}") == f'run_dir=a,"{name}"'
    for key in ("null", "true", name):
        (word,) = shlex.split(to_copy("run_dir", key))
        assert compose_config(word).run_dir == key


@pytest.mark.parametrize("key", ["data.root", "run_dir", "tracking.name", "model.note"])
def test_what_no_checkpoint_could_hold_is_refused_before_training(key: str) -> None:
    sign = "+" if key == "model.note" else ""
    with pytest.raises(InputError, match=rf"{re.escape(key)}=\$.*could not be loaded"):
        compose_config(sign + shlex.split(to_copy(key, "${x}"))[0])
