"""The rules of the house, held by reading the syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dist_mnist"

# From the bottom up: a module may import only from the rows above its own.
LAYERS = [
    {
        "errors",
        "signals",
        "whereabouts",
        "network",
        "seeding",
        "cpu",
        "shared_memory",
        "wandb_files",
    },
    {"atomic_write", "watchdog", "numerics", "sweep"},
    {"journal"},
    {"config", "instantiate", "distributed"},
    {"mnist", "emnist", "models", "losses", "schedules", "precision"},
    {"stopping", "dataset_files", "augmentation", "metrics", "checkpoint", "tracking"},
    {"data", "run_directory", "recorder", "report"},
    {"sampler", "evaluation", "reproducible"},
    {"training_state"},
    {"console"},
    {"train"},
    {"run"},
    {"cli"},
    {"evaluate", "__main__"},
]
REACHED_BY_TARGET_ONLY = {"mnist", "emnist", "models", "losses", "schedules"}
MODULES = {
    path.parent.name if path.stem == "__init__" and path.parent != PACKAGE else path.stem: path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Return what a file imports, as dotted names, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("dist_mnist.")}
    return names & set(MODULES)


def test_every_module_has_a_layer() -> None:
    assert set().union(*LAYERS) >= set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_strictly_down(name: str) -> None:
    level = next(index for index, layer in enumerate(LAYERS) if name in layer)
    allowed = set().union(*LAYERS[:level])
    assert own_imports(MODULES[name]) <= allowed


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_a_config_names_is_imported_by_nobody(name: str) -> None:
    assert not own_imports(MODULES[name]) & REACHED_BY_TARGET_ONLY


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"distributed"}))
def test_only_distributed_knows_torch_distributed(name: str) -> None:
    forbidden = ("torch.distributed", "torch.nn.parallel")
    assert not [path for path in imports(MODULES[name]) if path.startswith(forbidden)]
    variables = {"LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    variables |= (
        set() if name in ("cli", "__main__") else {"RANK"}
    )  # the one that tells errors has to know
    text = ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert not variables & {node.value for node in text if isinstance(node, ast.Constant)}


def test_the_schema_and_the_command_line_start_without_torch() -> None:
    for name in ("config", "errors", "cli"):
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
        top |= {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        assert top <= {
            *(
                "dist_mnist",
                "dist_mnist.config.schema",
                "dist_mnist.config.errors",
                "hydra",
                "hydra.core.hydra_config",
            ),
            *("hydra.core.config_store", "hydra.errors", "hydra.types", "omegaconf"),
            *("omegaconf.errors", "collections.abc", "dataclasses", "enum", "functools", "os"),
            *("contextlib", "pathlib", "signal", "sys", "time", "traceback", "typing"),
        }
