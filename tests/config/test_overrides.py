"""Arguments that are not overrides: the words of a command, such as run directories."""

from pathlib import Path

import pytest

from dist_mnist.config.overrides import gather_words


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
