"""The rules of the house, checked by reading the syntax trees."""

import ast
import re

import pytest

from tests.support.configs import CHECKOUT

PACKAGE = CHECKOUT / "dist_mnist"
# From the top down: a wing may import from itself and from the wings after it.
WINGS = (
    *("commands", "serve", "training", "digits", "report", "tracking", "folder"),
    *("models", "data", "record", "distributed", "config"),
)
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# What a command shows before its work begins, so it must not wait for torch.
LIGHT = [name for name in FILES if name.startswith(("__", "commands/", "config/"))]
LIGHT += [f"distributed/{name}.py" for name in ("cgroups", "cpu_threads", "signals", "launcher")]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 300, 40, 6


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> set[str]:
    """Return what is imported anywhere inside a node, as dotted names."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            found |= {f"{inner.module}.{alias.name}" for alias in inner.names}
    return found


def modules(names: set[str]) -> set[str]:
    """Return the files of this package that dotted names lead to."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "dist_mnist":
            paths = ("/".join(parts[1:size]) + ".py" for size in range(len(parts), 1, -1))
            found |= {path for path in paths if path in FILES}
    return found


def wing(name: str) -> str:
    return name.split("/")[0]


@pytest.mark.parametrize("name", [name for name in FILES if wing(name) in WINGS])
def test_imports_point_down(name: str) -> None:
    allowed = WINGS[WINGS.index(wing(name)) :]
    names = {path for path in imported(tree(name)) if path.startswith("dist_mnist.")}
    assert {path.split(".")[1] for path in names} <= set(allowed)


def test_every_file_is_in_a_wing() -> None:
    assert {wing(name) for name in FILES if "/" in name} == set(WINGS)


def test_there_is_no_circle() -> None:
    needs = {name: modules(imported(tree(name))) - {name} for name in FILES}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


@pytest.mark.parametrize("name", [name for name in FILES if wing(name) != "distributed"])
def test_only_one_wing_knows_torch_distributed(name: str) -> None:
    forbidden = ("torch.distributed", "torch.nn.parallel")
    assert not [path for path in imported(tree(name)) if path.startswith(forbidden)]
    words = {node.value for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)}
    # Whoever reports an error has to know the rank.
    known = {"RANK"} if name in ("__main__.py", "commands/cli.py") else set()
    assert not words & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} - known


@pytest.mark.parametrize("name", LIGHT)
def test_a_command_line_is_read_without_torch(name: str) -> None:
    top = [node for node in tree(name).body if not isinstance(node, ast.If)]
    at_once = [node for node in top if not isinstance(node, ast.FunctionDef)]
    names = {name for node in at_once for name in imported(node)}
    assert modules(names) <= set(LIGHT)
    assert not [name for name in names if re.match(r"torch|wandb|matplotlib|numpy", name)]


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_small(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            assert (node.end_lineno or 0) - first < MOST_LINES_OF_A_FUNCTION, node.name
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [parameter.arg for parameter in parameters if parameter.arg != "self"]
            assert len(named) <= MOST_PARAMETERS, node.name
