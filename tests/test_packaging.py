"""Installations are complete: from a wheel, editable, and from a bare checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.configs import CHECKOUT
from tests.support.processes import python

SMALL = ("experiment=smoke", "trainer.max_steps=2", "trainer.device=cpu")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    built = python("-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(CHECKOUT))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.removeprefix("dist_mnist/") for name in names if name.startswith("dist_mnist/")}
    conf = {f"conf/{path.relative_to(CHECKOUT / 'conf')}" for path in CHECKOUT.glob("conf/**/*.*")}
    assert conf <= inside
    report = (CHECKOUT / "dist_mnist" / "report" / "web").iterdir()
    assert {f"report/web/{path.name}" for path in report} <= inside
    assert len([name for name in inside if name.endswith("-ubyte.gz")]) == 4
    assert {f"serve/{name}" for name in ("docs.html", "page.html", "page.css", "page.js")} <= inside
    assert "style.css" in inside
    assert "models/shipped.safetensors" in inside
    assert {name.split("/")[0] for name in names} == {"dist_mnist", "dist_mnist-0.1.0.dist-info"}


@pytest.mark.slow
def test_wheel_trains_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ("--no-deps", "--no-index", "--quiet", "--target", str(site))
    installed = python("-m", "pip", "install", *options, str(wheel))
    assert installed.returncode == 0, installed.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    show = ("-c", "import dist_mnist; print(dist_mnist.__file__)")
    where = python(*show, cwd=elsewhere, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))
    trained = python("-m", "dist_mnist", *SMALL, cwd=elsewhere, PYTHONPATH=str(site))
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1].startswith("test accuracy ")
    assert (elsewhere / "data" / "MNIST" / "raw").is_dir()
    assert len(list((elsewhere / "outputs").iterdir())) == 1


@pytest.mark.slow
def test_a_bare_checkout_trains(mnist_root: Path, tmp_path: Path) -> None:
    """With the package of the checkout and no other: -S keeps an editable install away."""
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]; sys.path += {site_packages!r};"
        "from dist_mnist import __main__ as door;"
        "assert door.__file__.startswith(sys.path[0]); door.main()"
    )
    trained = python(
        *("-S", "-c", code, *SMALL, f"data.root={mnist_root}", f"run_dir={tmp_path / 'run'}"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()


def test_the_console_script_is_there() -> None:
    script = Path(sys.executable).with_name("dist-mnist")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "torchrun" in shown.stdout


def test_top_level() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    visible = {name for name in top if not name.startswith(".")}
    expected = {"conf", "dist_mnist", "launch", "tests", "pyproject.toml", "README.md"}
    assert visible - {"LICENSE"} == expected
