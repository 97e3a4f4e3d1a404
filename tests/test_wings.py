"""The rules of the layout, checked by reading the syntax trees."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

from tests.support.configs import CHECKOUT
from tests.support.processes import python

PACKAGE = CHECKOUT / "dist_mnist"
# From the top down: a wing may import from itself and from the wings after it. Each has a budget of
# lines, its size when it was last raised: growth is a decision.
BUDGETS = {
    "commands": 897,
    "serve": 533,
    "training": 2770,
    "digits": 890,
    "report": 354,
    "tracking": 713,
    "folder": 804,
    "models": 1165,
    "data": 1811,
    "record": 898,
    "distributed": 1937,
    "config": 1072,
}
WINGS = [*BUDGETS]
ROOMS_TO_DO_WITHOUT = ("digits", "folder", "serve")
SPINE_LINES, SPINE_CODE = 4500, 2500
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# A command line is read, and `--help` is printed, without waiting for torch.
LIGHT = [name for name in FILES if name.startswith(("__", "config/"))]
LIGHT += ["commands/__init__.py", "commands/cli.py", "record/__init__.py", "record/files.py"]
LIGHT += [f"distributed/{name}.py" for name in ("cgroups", "cpu_threads", "signals", "launcher")]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 300, 60, 6


def text(name: str) -> str:
    return FILES[name].read_text(encoding="utf-8")


def tree(name: str) -> ast.Module:
    return ast.parse(text(name))


def imported(node: ast.AST) -> set[str]:
    """Return all imports inside a node as dotted names."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            names |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            names |= {f"{inner.module}.{alias.name}" for alias in inner.names}
    return names


def modules(names: set[str]) -> set[str]:
    """Return the files of this package that dotted names lead to."""
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "dist_mnist":
            paths = ("/".join(parts[1:size]) + ".py" for size in range(len(parts), 1, -1))
            files |= {path for path in paths if path in FILES}
    return files


def wing(name: str) -> str:
    return name.split("/")[0]


def code_lines(path: Path) -> int:
    """Count the lines that are code: no docstrings, comments, blank lines or imports."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    left_out: list[ast.stmt] = [
        node for node in ast.walk(module) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    left_out += [
        node.body[0]
        for node in ast.walk(module)
        if isinstance(node, described) and ast.get_docstring(node) is not None
    ]
    no_code = {line for node in left_out for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    with path.open("rb") as file:
        tokens = [*tokenize.tokenize(file.readline)]
    trivial = (
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    )
    lines = (
        range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in trivial
    )
    return len({line for span in lines for line in span} - no_code)


@pytest.mark.parametrize("name", [name for name in FILES if wing(name) in WINGS])
def test_imports_point_down(name: str) -> None:
    allowed = WINGS[WINGS.index(wing(name)) :]
    names = {path for path in imported(tree(name)) if path.startswith("dist_mnist.")}
    assert {path.split(".")[1] for path in names} <= set(allowed)


def test_every_file_is_in_a_wing() -> None:
    assert {wing(name) for name in FILES if "/" in name} == set(WINGS)


@pytest.mark.parametrize("name", WINGS)
def test_a_wing_keeps_to_its_budget(name: str) -> None:
    lines = sum(len(text(file).splitlines()) for file in FILES if wing(file) == name)
    assert 0.9 * BUDGETS[name] <= lines <= BUDGETS[name]


def test_there_is_no_circle() -> None:
    needs = {name: modules(imported(tree(name))) - {name} for name in FILES}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


def test_the_trainer_needs_no_digits_folder_or_serve(tmp_path: Path) -> None:
    missing = [f"dist_mnist.{room}" for room in ROOMS_TO_DO_WITHOUT]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from dist_mnist.__main__ import main\n"
        "main()\n"
    )
    arguments = ("experiment=smoke", "trainer.max_steps=3", "tracking=disabled")
    done = python("-c", program, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("test accuracy ")


def test_the_spine_is_an_evening() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("<!-- spine -->")
    listed = re.findall(
        r"^(dist_mnist/\S+\.py) ", rest.partition("<!-- /spine -->")[0], re.MULTILINE
    )
    paths = [CHECKOUT / path for path in listed]
    assert {"dist_mnist/training/loop.py", "dist_mnist/training/step.py"} <= {*listed}
    assert len({*listed}) == len(listed) > 20
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= SPINE_LINES
    assert sum(map(code_lines, paths)) <= SPINE_CODE


@pytest.mark.parametrize("name", [name for name in FILES if wing(name) != "distributed"])
def test_only_one_wing_knows_torch_distributed(name: str) -> None:
    forbidden = ("torch.distributed", "torch.nn.parallel")
    assert not [path for path in imported(tree(name)) if path.startswith(forbidden)]
    words = {node.value for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)}
    # Error messages name the rank.
    allowed = {"RANK"} if name in ("__main__.py", "commands/cli.py") else set()
    assert not words & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} - allowed


@pytest.mark.parametrize("name", LIGHT)
def test_a_command_line_is_read_without_torch(name: str) -> None:
    top = [node for node in tree(name).body if not isinstance(node, ast.If)]
    at_once = [node for node in top if not isinstance(node, ast.FunctionDef)]
    names = {name for node in at_once for name in imported(node)}
    assert modules(names) <= set(LIGHT)
    assert not [name for name in names if re.match(r"torch|wandb|matplotlib|numpy", name)]


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_small(name: str) -> None:
    assert len(text(name).splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            assert (node.end_lineno or 0) - first < MOST_LINES_OF_A_FUNCTION, node.name
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [parameter.arg for parameter in parameters if parameter.arg != "self"]
            assert len(named) <= MOST_PARAMETERS, node.name
