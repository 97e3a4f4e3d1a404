"""Files from elsewhere: they run no code, take no memory, and end in one sentence."""

import copy
import gzip
import hashlib
import json
import pickle
import resource
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_mnist.commands.evaluate import load_candidate
from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import load_part, load_splits
from dist_mnist.record import checkpoint
from dist_mnist.training.build import build_training_state
from dist_mnist.training.resume import restore
from dist_mnist.training.run import run
from tests.support.checkpoints import Intruder
from tests.support.checkpoints import content as plain_content
from tests.support.configs import SOLO, make_config

FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
OVERRIDES = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "model=linear",
    "optimizer=sgd",
    "trainer.max_steps=2",
    "trainer.global_batch_size=20",
    "trainer.device=cpu",
)
MEMORY_BYTES = 300 * 2**20  # far more than any of these files may take


def signed(content: bytes) -> bytes:
    """Return the bytes of a forged file with the checksum that they need."""
    checksum = hashlib.sha256(content).hexdigest()
    return content.replace(b"0" * 64, checksum.encode(), 1)


def forged(
    text: str = "{}", tensors: dict[str, Any] | None = None, data: bytes = b"", size: int = 0
) -> bytes:
    """Return a file in the format of safetensors, with anything in it.

    Args:
        text: The JSON text of everything but the tensors.
        tensors: What the header says about tensors.
        data: What follows the header.
        size: The header's size, if it shall lie about it.
    """
    metadata = {"format": "pt", "dist_mnist": text, "checksum": "0" * 64}
    header = {"__metadata__": metadata, **(tensors or {})}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return signed(struct.pack("<Q", size or len(encoded)) + encoded + data)


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


REFERENCE = json.dumps({**plain_content(), "model": {"w": {checkpoint.TENSOR: "model.w"}}})
DEEP = json.dumps(plain_content())[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
FORGED = {
    "claims a header of exabytes": forged(size=2**63),
    "claims a header of gigabytes": forged(size=2**32),
    "claims an empty header": forged(size=1),
    "claims a tensor of gigabytes": forged(REFERENCE, {"model.w": tensor([2**30], 0, 2**32)}),
    "claims a tensor larger than its bytes": forged(
        REFERENCE, {"model.w": tensor([2**30], 0, 4)}, bytes(4)
    ),
    "claims a shape beyond any number": forged(
        REFERENCE, {"model.w": tensor([2**40, 2**40], 0, 4)}, bytes(4)
    ),
    "claims a negative shape": forged(REFERENCE, {"model.w": tensor([-1], 0, 4)}, bytes(4)),
    "has tensors that share their bytes": forged(
        REFERENCE, {"model.w": tensor([1], 0, 4), "model.v": tensor([1], 0, 4)}, bytes(4)
    ),
    "has bytes that belong to no tensor": forged(
        REFERENCE, {"model.w": tensor([1], 0, 4)}, bytes(400)
    ),
    "has an unknown dtype": forged(REFERENCE, {"model.w": tensor([1], 0, 4, "X99")}, bytes(4)),
    "names a tensor that is not there": forged(REFERENCE),
    "is deep": forged(DEEP),
    "is a list": forged("[]"),
    "is not JSON": forged("{"),
    "has a number of a million digits": forged('{"model": ' + "9" * 10**6 + "}"),
    "has a parameter with no number": forged(
        json.dumps({**plain_content(), "optimizer": {"state": {"x": {}}}})
    ),
    "has an optimizer that is a list": forged(json.dumps({**plain_content(), "optimizer": [1]})),
    "has the checksum of something else": forged(json.dumps(plain_content()))[:-1] + b" ",
    "has no checksum": struct.pack("<Q", 20) + b'{"__metadata__": {}}',
    "has a checksum that is a number": struct.pack("<Q", 33) + b'{"__metadata__": {"checksum": 1}}',
    "is a pickle": pickle.dumps({**plain_content(), "model": Intruder()}),
}


@pytest.fixture
def no_gigabytes() -> Iterator[None]:
    """Fail where the test has taken much memory, even for a moment."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * unit < MEMORY_BYTES


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gigabytes: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("forged.safetensors").write_bytes(FORGED[name])
    with pytest.raises(InputError, match="not a checkpoint") as refused:
        checkpoint.load(Path("forged.safetensors"))
    assert len(str(refused.value)) < 300
    assert not Path("intruded").exists()


def test_harmless_file_is_read(tmp_path: Path) -> None:
    honest = forged(REFERENCE, {"model.w": tensor([4], 0, 16)}, bytes(16))
    (tmp_path / "honest.safetensors").write_bytes(honest)
    model = checkpoint.load(tmp_path / "honest.safetensors")["model"]
    assert model["w"].tolist() == [0, 0, 0, 0]


def test_a_checkpoint_of_torch_save_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**plain_content(), "model": Intruder()}, "evil.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load(Path("evil.pt"))
    assert not Path("intruded").exists()


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short real run."""
    run_dir = tmp_path_factory.mktemp("trained")
    run(make_config(*OVERRIDES, f"data.root={small_root}", f"run_dir={run_dir}"), SOLO)
    return run_dir


def evaluate_file(path: Path) -> float:
    changes = {"trainer": {"device": "cpu"}, "trusted_modules": []}
    return load_candidate(path, changes, SOLO).evaluate(SOLO).accuracy


TARGETS: list[dict[str, Any]] = [
    {"_target_": "os.system", "command": "touch intruded"},
    {"_target_": "torch.os.system", "command": "touch intruded"},
    {"_target_": "dist_mnist.commands.cli.os.system", "command": "touch intruded"},
    {"_target_": "builtins.eval", "_args_": ["open('intruded', 'w')"]},
    {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "m", "source": "local"},
    {"_target_": "torch.load", "f": "evil.pt", "weights_only": False},
    {"_target_": "functools.partial", "_args_": ["os.system", "touch intruded"]},
    {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system"}]},
    {"_target_": "torch.nn.Module.__init__.__globals__"},
    {"_target_": "torch.nn.Module.__subclasses__"},
    {"_target_": "torch.nn:Module.__init__"},
    {"_target_": "torch:os.system", "command": "touch intruded"},
    {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": ["evil.cpp"]},
    {"_target_": "torch.utils.bottleneck.__main__.main"},
    {"_target_": "torch.distributed.run.main", "args": ["evil.py"]},
    {"_target_": "evil.Network"},
    {"_target_": "${oc.env:HOME}"},
    {"_target_": "torch.nn.Linear", "in_features": "${oc.env:HOME}"},
    {"_target_": "torch.nn.Linear", "in_features": "${oc.create:{_target_: os.system}}"},
    {"_target_": ["torch.nn.Linear"]},
    {"_target_": None},
    {},
]


@pytest.mark.parametrize("part", ["model", "loss", "data"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.get("_target_")))
def test_a_checkpoints_config_chooses_no_code(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
    target: dict[str, Any],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('intruded', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    content = checkpoint.load(trained / "checkpoints" / "last.safetensors")
    content["config"]["trusted_modules"] = ["os", "builtins", "functools", "evil", "torch"]
    place = content["config"]["data"] if part == "data" else content["config"]
    place["dataset" if part == "data" else part] = target
    (tmp_path / "hostile.safetensors").write_bytes(checkpoint.encode(content))
    with pytest.raises(InputError):
        evaluate_file(tmp_path / "hostile.safetensors")
    assert not (tmp_path / "intruded").exists()
    assert "evil" not in sys.modules


@pytest.mark.usefixtures("no_pictures")
def test_resume_ignores_config_in_checkpoint(
    trained: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    content = checkpoint.load(last)
    content["config"] |= {
        "trusted_modules": ["os", "builtins"],
        "loss": {"_target_": "os.system", "command": "touch intruded"},
        "scheduler": {"_target_": "os.system", "command": "touch intruded"},
    }
    content["config"]["data"]["dataset"] = {"_target_": "os.system", "command": "touch intruded"}
    last.write_bytes(checkpoint.encode(content))
    overrides = [*OVERRIDES, f"data.root={small_root}", f"run_dir={tmp_path / 'run'}"]
    run(make_config(*overrides, "trainer.max_steps=4"), SOLO)
    assert not (tmp_path / "intruded").exists()
    content["config"]["model"] = {"_target_": "os.system", "command": "touch intruded"}
    last.write_bytes(checkpoint.encode(content))
    with pytest.raises(InputError, match="does not fit this run"):
        run(make_config(*overrides, "trainer.max_steps=6"), SOLO)
    assert not (tmp_path / "intruded").exists()


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside nested containers."""
    inner = value if isinstance(value, dict) else {}
    inner = dict(enumerate(value)) if isinstance(value, list) else inner
    for key, part in inner.items():
        yield (*path, key)
        yield from places(part, (*path, key))


OTHERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["???", "auto", "${seed}", "torch.nn.Linear", "torch.optim.SGD"]),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=3) | st.integers(), st.integers(), max_size=2),
    st.sampled_from([(2, 3), (0,), ()]).map(torch.zeros),
    st.just((1, (2, {"a": []}))),
)


def test_values_of_wrong_types(
    trained: Path,
    small_root: Path,
    tmp_path: Path,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a changed data.root may be a folder below it
    whole = checkpoint.load(trained / "checkpoints" / "last.safetensors")
    config = make_config(*OVERRIDES, f"data.root={small_root}")
    state = build_training_state(config, SOLO, load_splits(config.data, 0))
    path = tmp_path / "changed.safetensors"
    outcomes = {"refused": 0, "harmless": 0}

    @settings(FUZZ, max_examples=50)
    @given(st.sampled_from(list(places(whole))), OTHERS)
    def replaced(place: tuple[Any, ...], value: object) -> None:
        content = copy.deepcopy(whole)
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        path.write_bytes(checkpoint.encode(content))
        for use in (lambda: evaluate_file(path), lambda: restore(state, checkpoint.load(path))):
            try:
                use()
                outcomes["harmless"] += 1
            except InputError as error:
                outcomes["refused"] += 1
                assert len(str(error)) < 2000  # noqa: PT017

    replaced()
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 1.0},
        {"step": True},
        {"step": None},
        {"best_accuracy": "0.9"},
        {"epoch_seconds": None},
        {"epoch_totals": {"loss_sum": "1", "correct": 0.0, "count": 0.0}},
        {"logged_totals": []},
        {"another": 1},
    ],
    ids=str,
)
def test_a_progress_that_is_none_is_refused(
    trained: Path, small_root: Path, change: dict[str, Any]
) -> None:
    config = make_config(*OVERRIDES, f"data.root={small_root}")
    state = build_training_state(config, SOLO, load_splits(config.data, 0))
    content = checkpoint.load(trained / "checkpoints" / "last.safetensors")
    with pytest.raises(InputError, match="does not fit this run"):
        restore(state, {**content, "progress": {**content["progress"], **change}})


IDX_NAMES = {
    "fashion_mnist": ("FashionMNIST", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "emnist": (
        *("EMNIST", "emnist-balanced-train-images-idx3-ubyte"),
        "emnist-balanced-train-labels-idx1-ubyte",
    ),
    "qmnist": ("QMNIST", "qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
}
SIZES = st.one_of(st.integers(0, 30), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 28, 784]))


@st.composite
def idx_files(draw: st.DrawFn) -> bytes:
    """Draw a file of arbitrary bytes, or one whose header lies about the data after it."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    sizes = draw(st.lists(SIZES, max_size=4))
    kind = draw(st.sampled_from([8, 9, 11, 12, 13, 14, 0, 255]))
    dimensions = draw(st.just(len(sizes)) | st.integers(0, 255))
    header = bytes([0, 0, kind, dimensions]) + b"".join(struct.pack(">I", n) for n in sizes)
    content = header + bytes(draw(st.sampled_from([0, 1, 8, 150, 784, 150 * 784])))
    return gzip.compress(content)[:-5] if draw(st.integers(0, 9)) == 0 else content


@pytest.mark.parametrize("name", IDX_NAMES)
def test_fuzzed_idx_files(
    name: str, small_root: Path, tmp_path: Path, no_network: None, no_gigabytes: None
) -> None:
    folder, *files = IDX_NAMES[name]
    raw = tmp_path / folder / "raw"
    shutil.copytree(small_root / folder / "raw", raw)
    honest = {file: (raw / file).read_bytes() for file in files}
    config = make_config(f"data={name}", f"data.root={tmp_path}").data

    @settings(FUZZ, max_examples=40)
    @given(st.sampled_from(files), idx_files())
    def replaced(file: str, content: bytes) -> None:
        for other in files:
            (raw / other).write_bytes(honest[other])
        (raw / file).write_bytes(content)
        try:
            part, _ = load_part(config, train=True)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert part.resident().images.shape[1:] == (1, 28, 28)
            assert len(part.resident().images) == len(part.labels)

    replaced()


@pytest.mark.parametrize("content", [{}, 3, (1,), (torch.zeros(3), torch.zeros(3)), ([], [])])
def test_fuzzed_torchvision_files(content: object, tmp_path: Path, no_network: None) -> None:
    folder = tmp_path / "FashionMNIST" / "processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(content, folder / name)
    with pytest.raises(InputError):
        load_part(make_config("data=fashion_mnist", f"data.root={tmp_path}").data, train=True)
