"""Arguments that are no overrides: the words of a command, such as run directories."""

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
        (["runs=[a]", "+key=1", "~key="], ["runs=[a]", "+key=1", "~key="]),
    ],
)
def test_words_become_one_list(arguments: list[str], expected: list[str]) -> None:
    assert gather_words("runs", arguments) == expected
