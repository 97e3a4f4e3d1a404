"""The image of launch/kubernetes: its pins, and the image itself, built and run."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch.pods import Podman, what_is_missing
from tests.support.configs import CHECKOUT
from tests.support.processes import python

pytestmark = pytest.mark.launch

DOCKERFILE = CHECKOUT / "launch" / "kubernetes" / "Dockerfile"
PINS = dict(
    line.split("==")
    for line in (DOCKERFILE.parent / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def dependencies() -> list[Requirement]:
    """Return the package's dependencies in pyproject.toml."""
    (listed,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", (CHECKOUT / "pyproject.toml").read_text(), re.M | re.S
    )
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', listed)]


def test_every_pin_is_a_name_and_a_version() -> None:
    for name, version in PINS.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[\w.+]+", version), name


def test_the_pins_match_the_requirements() -> None:
    needed = dependencies()
    assert "torch" in {requirement.name for requirement in needed}
    for requirement in needed:
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_runtime_names_the_built_image() -> None:
    (version,) = re.findall(
        r'^version = "(.+)"', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE
    )
    name = f"dist-mnist:{version}"
    assert f"--tag {name} ." in DOCKERFILE.read_text()
    assert f"image: {name}\n" in (DOCKERFILE.parent / "runtime.yaml").read_text()


def what_is_missing_to_build() -> str | None:
    if shutil.which("debootstrap") is None:
        return "needs debootstrap"
    return what_is_missing()


def make_base(podman: Podman, folder: Path) -> None:
    """Make an image of this machine's Debian, with its Python and nothing else."""
    packages = "--include=python3,python3-venv,python3-pip"
    (site, suite), *_ = (
        line.split()
        for line in _printed("apt-get", "indextargets", "--format=$(SITE) $(RELEASE)").splitlines()
    )
    root = folder / "base"
    _printed("debootstrap", "--variant=minbase", packages, suite, str(root), site)
    archive = folder / "base.tar"
    _printed("tar", "--create", f"--file={archive}", f"--directory={root}", ".")
    shutil.rmtree(root)
    podman("import", str(archive), "base", timeout=300)
    archive.unlink()


def _printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pip_of_this_machine(folder: Path) -> list[str]:
    """Return podman options that give a build this machine's way to packages, the image none."""
    listed = python("-m", "pip", "config", "list").stdout.splitlines()
    options = {}
    for key, value in (line.split("=", 1) for line in listed):
        options[key.rpartition(".")[2]] = ast.literal_eval(value)
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {options[key]}\n" for key in options))
    volumes = {f"{config}:/etc/pip.conf"}
    for word in " ".join(options.values()).split():
        # An index on the disk links to files beside it.
        path = Path(word.removeprefix("file://")).parent if "file://" in word else Path(word)
        if path.is_absolute() and path.exists():
            volumes.add(f"{path}:{path}")
    return [f"--volume={volume}:ro" for volume in sorted(volumes)]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Podman]:
    podman = Podman(tmp_path)
    try:
        make_base(podman, tmp_path)
        options = (*pip_of_this_machine(tmp_path), "--network=host", "--build-arg=BASE=base")
        podman(
            *("build", *options, f"--file={DOCKERFILE}", "--tag=dist-mnist", str(CHECKOUT)),
            timeout=1800,
        )
        yield podman
    finally:
        podman.close()


@pytest.mark.slow
@pytest.mark.skipif(what_is_missing_to_build() is not None, reason=str(what_is_missing_to_build()))
def test_the_image_trains(image: Podman) -> None:
    """As an ordinary user, without a network, where only /tmp and /work can be written to."""
    only = ("--network=none", "--read-only", "--tmpfs=/tmp", "--volume=work:/work")
    run = ("run", "--rm", "--init", *only)
    overrides = ("model=mlp", "trainer.max_steps=20", "trainer.device=cpu")
    printed = image(*run, "--env=NPROC_PER_NODE=2", "dist-mnist", *overrides, timeout=300)
    assert ": 2 x " in printed
    assert printed.splitlines()[-1].startswith("test accuracy ")
    work = Path(image("volume", "inspect", "--format={{.Mountpoint}}", "work"))
    (run_dir,) = (work / "outputs").iterdir()
    assert run_dir.stat().st_uid == 1000
    code = (
        "from importlib.metadata import distributions\n"
        "for package in distributions(): print(package.name, package.version)"
    )
    listed = image(*run, "--entrypoint=python", "dist-mnist", "-c", code)
    installed = dict(line.split() for line in listed.splitlines())
    assert installed.pop("dist_mnist")
    pinned = {(canonicalize_name(name), version) for name, version in installed.items()}
    assert pinned <= PINS.items()
