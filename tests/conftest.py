"""Fixtures that several test files share."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The environment of the tests and of their programs. torch is not imported before it is set.
os.environ["WANDB_MODE"] = "disabled"  # except in the tests of wandb
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.devnull  # no test may find a developer's key and upload a run
# Threads sleep while they wait for each other. Otherwise small steps take ten times as long as soon
# as something else runs on the same cores.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Processes that are started in any folder import this checkout, and tests.support.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--slow`."""
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests, unless `--slow` is given."""
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with small stand-ins for every data set but MNIST."""
    from tests.support.datasets import make_small_root

    return make_small_root(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def darker_root(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data folder, but the training images of Fashion-MNIST are darker."""
    root = tmp_path_factory.mktemp("darker")
    shutil.copytree(small_root / "FashionMNIST", root / "FashionMNIST")
    images = root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    content = images.read_bytes()
    images.write_bytes(content[:16] + bytes(value // 2 for value in content[16:]))
    return root


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a test's own, for decoded pictures; matplotlib's stays where it is."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    monkeypatch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(parent / "matplotlib")))
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that the real MNIST is unpacked into."""
    return tmp_path_factory.mktemp("mnist")


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    """Undo the console logging of a command or of Hydra: later tests have another console."""
    loggers = [logging.getLogger(name) for name in ("", "hydra", "dist_mnist")]
    before = [(logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, which takes longer than a small training."""
    monkeypatch.setattr("dist_mnist.training.final_test.draw_plots", lambda *_: [])


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium for a file of tests: playwright's event loop must end before another one begins."""
    from tests.support.browser import chromium

    with chromium() as running:
        yield running


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look-up of a host fail at once, as it does on a cluster's nodes."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
