"""Files from elsewhere: whatever is in them runs no code, takes no memory, ends in a sentence."""

import copy
import gzip
import io
import pickle
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_mnist.commands.evaluate import evaluate_checkpoint
from dist_mnist.commands.train import run
from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import EvaluationConfig, EvaluationDataConfig, EvaluationTrainerConfig
from dist_mnist.data.splits import load_part, load_splits
from dist_mnist.record import checkpoint
from dist_mnist.training.build import build_training_state, restore
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


def forge(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive as torch does, with any pickle in it and one record of 16 bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, record in {
            "data.pkl": pickled,
            "byteorder": b"little",
            "data/0": bytes(16),
            "version": b"3\n",
        }.items():
            archive.writestr(f"archive/{name}", record)


def tensor_pickle(elements: int, size: int, stride: int = 1, key: bytes = b"X\1\0\0\0000") -> bytes:
    """Pickle a float32 tensor of one dimension whose storage has so many elements."""
    number = b"\x8a\x08" + struct.pack("<q", elements)
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\n" + key + b"X\3\0\0\0cpu" + number + b"tQ"
    shape = b"".join(b"\x8a\x08" + struct.pack("<q", n) + b"\x85" for n in (size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + b"\x89NtR"


def with_model(pickled: bytes) -> bytes:
    """Pickle the content of a checkpoint whose model is what another pickle makes."""
    rest = pickle.dumps({**plain_content(), "model": None}, protocol=2)
    return rest[:-1] + b"(X\5\0\0\0model" + pickled + b"u."


LAUGHS = b"]q\0" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(40))
SYSTEM = b"cos\nsystem\n(X\x0e\0\0\0touch intrudedtR"
PICKLES = {
    "calls os.system": SYSTEM,
    "calls posix.system": SYSTEM.replace(b"cos\n", b"cposix\n"),
    "calls eval": b"c__builtin__\neval\n(X\4\0\0\0open\x85R",
    "names torch.load": b"ctorch\nload\n(X\4\0\0\0evilX\4\0\0\0evil\x86R",
    "names torch.hub.load": b"ctorch.hub\nload\n(X\1\0\0\0aX\1\0\0\0btR",
    "compiles": b"ctorch.utils.cpp_extension\nload_inline\n(X\1\0\0\0aX\1\0\0\0btR",
    "names a module of ours": b"cdist_mnist.cli\nmain\n)R",
    "instantiates": b"(X\x0e\0\0\0touch intrudedios\nsystem\n",
    "uses the newer opcode": b"X\2\0\0\0osX\6\0\0\0system\x93X\x0e\0\0\0touch intruded\x85R",
    "hides it in a storage's key": tensor_pickle(4, 4, key=SYSTEM),
    "hides it in a persistent id": SYSTEM + b"Q",
    "sets a state": b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb",
    "claims a storage of gigabytes": tensor_pickle(2**32, 2**32),
    "claims a storage a little larger": tensor_pickle(1000, 1000),
    "claims a tensor of gigabytes": tensor_pickle(4, 2**32),
    "repeats a number for gigabytes": tensor_pickle(4, 2**40, stride=0),
    "asks for gigabytes": b"c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\4\x85R",
    "is a billion laughs": LAUGHS,
    "holds itself": b"}q\0X\1\0\0\0ah\0s",
    "is deep": b"]" * 5000 + b"a" * 4999,
    "is cut off": b"X\xff\xff\xff\x7f",
}  # fmt: skip


@pytest.fixture
def no_gigabytes() -> Iterator[None]:
    """Fail where the test has taken much memory, even for a moment."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * unit < MEMORY_BYTES


@pytest.mark.parametrize("name", PICKLES)
def test_a_checkpoint_with_any_pickle_in_it_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gigabytes: None
) -> None:
    monkeypatch.chdir(tmp_path)
    forge(tmp_path / "hostile.pt", with_model(PICKLES[name]))
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(tmp_path / "hostile.pt")
    assert not (tmp_path / "intruded").exists()


def test_what_is_forged_here_would_be_read_if_it_were_honest(tmp_path: Path) -> None:
    forge(tmp_path / "honest.pt", with_model(b"}X\1\0\0\0w" + tensor_pickle(4, 4) + b"s"))
    model = checkpoint.load(tmp_path / "honest.pt")["model"]
    assert model["w"].tolist() == [0, 0, 0, 0]


def test_older_formats_and_packed_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gigabytes: None
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = {**plain_content(), "model": Intruder()}
    torch.save(evil, "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(plain_content(), "honest-legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(plain_content(), "zip.pt")
    Path("both.pt").write_bytes(Path("legacy.pt").read_bytes() + Path("zip.pt").read_bytes())
    with tarfile.open("tar.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(pickle.dumps(evil))
            archive.addfile(info, io.BytesIO(pickle.dumps(evil)))
    forge(Path("packed.pt"), with_model(b"}"), zipfile.ZIP_DEFLATED)
    bomb = b"}X\1\0\0\0wX" + struct.pack("<I", 2**30) + bytes(2**25)
    forge(Path("bomb.pt"), with_model(bomb), zipfile.ZIP_DEFLATED)
    refused = 0
    for name in ("legacy", "honest-legacy", "tar", "packed", "bomb"):
        with pytest.raises(InputError, match="damaged or no checkpoint"):
            checkpoint.load(Path(f"{name}.pt"))
        refused += 1
    assert checkpoint.load(Path("both.pt"))["model"] == {}  # the verified half alone
    assert refused == 5
    assert not Path("intruded").exists()


def test_records_that_share_their_bytes_are_refused(tmp_path: Path, no_gigabytes: None) -> None:
    # Each record begins within the one before it and ends with it: 400 MB from a file of 1 MB.
    content, directory = bytes(2**20), b""
    for number in range(400):
        name = b"archive/data/%03d" % number
        sizes = struct.pack("<III", zlib.crc32(content), len(content), len(content))
        content = b"PK\3\4\x14" + bytes(9) + sizes + struct.pack("<HH", 16, 0) + name + content
    whole = len(content)
    for number in range(400):
        name = b"archive/data/%03d" % number
        offset = (399 - number) * 46
        directory += b"PK\1\2\x14\0\x14" + bytes(9) + content[offset + 14 : offset + 26]
        directory += struct.pack("<HHHHHII", 16, 0, 0, 0, 0, 0, offset) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 400, 400, len(directory), whole, 0)
    (tmp_path / "overlap.pt").write_bytes(content + directory + end)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(tmp_path / "overlap.pt")


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short real run."""
    run_dir = tmp_path_factory.mktemp("trained")
    run(make_config(*OVERRIDES, f"data.root={small_root}", f"run_dir={run_dir}"), SOLO)
    return run_dir


def evaluate_file(path: Path) -> float:
    options = EvaluationConfig(
        checkpoint=str(path),
        data=EvaluationDataConfig(root=None),
        trainer=EvaluationTrainerConfig("cpu", None, 1000, 60),
        trusted_modules=[],
    )
    return evaluate_checkpoint(options, SOLO).accuracy


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
    content = checkpoint.load(trained / "checkpoints" / "last.pt")
    content["config"]["trusted_modules"] = ["os", "builtins", "functools", "evil", "torch"]
    place = content["config"]["data"] if part == "data" else content["config"]
    place["dataset" if part == "data" else part] = target
    torch.save(content, tmp_path / "hostile.pt")
    with pytest.raises(InputError):
        evaluate_file(tmp_path / "hostile.pt")
    assert not (tmp_path / "intruded").exists()
    assert "evil" not in sys.modules


def test_a_run_that_goes_on_takes_no_config_from_its_checkpoint(
    trained: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    content = checkpoint.load(last)
    content["config"] |= {
        "trusted_modules": ["os", "builtins"],
        "loss": {"_target_": "os.system", "command": "touch intruded"},
        "scheduler": {"_target_": "os.system", "command": "touch intruded"},
    }
    content["config"]["data"]["dataset"] = {"_target_": "os.system", "command": "touch intruded"}
    torch.save(content, last)
    overrides = [*OVERRIDES, f"data.root={small_root}", f"run_dir={tmp_path / 'run'}"]
    run(make_config(*overrides, "trainer.max_steps=4"), SOLO)
    assert not (tmp_path / "intruded").exists()
    content["config"]["model"] = {"_target_": "os.system", "command": "touch intruded"}
    torch.save(content, last)
    with pytest.raises(InputError, match="cannot continue a run"):
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


def test_values_of_other_types_are_refused_or_harmless(
    trained: Path, small_root: Path, tmp_path: Path, no_network: None
) -> None:
    whole = checkpoint.load(trained / "checkpoints" / "last.pt")
    config = make_config(*OVERRIDES, f"data.root={small_root}")
    state = build_training_state(config, SOLO, load_splits(config.data, 0))
    path = tmp_path / "changed.pt"
    outcomes = {"refused": 0, "harmless": 0}

    @settings(FUZZ, max_examples=50)
    @given(st.sampled_from(list(places(whole))), OTHERS)
    def replaced(place: tuple[Any, ...], value: object) -> None:
        content = copy.deepcopy(whole)
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        torch.save(content, path)
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
    content = checkpoint.load(trained / "checkpoints" / "last.pt")
    with pytest.raises(InputError, match="does not fit this run"):
        restore(state, {**content, "progress": {**content["progress"], **change}})


IDX_NAMES = {
    "fashion_mnist": ("FashionMNIST", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "emnist_letters": (
        *("EMNIST", "emnist-letters-train-images-idx3-ubyte"),
        "emnist-letters-train-labels-idx1-ubyte",
    ),
    "qmnist": ("QMNIST", "qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
}
SIZES = st.one_of(st.integers(0, 30), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 28, 784]))


@st.composite
def idx_files(draw: st.DrawFn) -> bytes:
    """Draw a file of arbitrary bytes, or one whose header lies about what follows."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    sizes = draw(st.lists(SIZES, max_size=4))
    kind = draw(st.sampled_from([8, 9, 11, 12, 13, 14, 0, 255]))
    dimensions = draw(st.just(len(sizes)) | st.integers(0, 255))
    header = bytes([0, 0, kind, dimensions]) + b"".join(struct.pack(">I", n) for n in sizes)
    content = header + bytes(draw(st.sampled_from([0, 1, 8, 150, 784, 150 * 784])))
    return gzip.compress(content)[:-5] if draw(st.integers(0, 9)) == 0 else content


@pytest.mark.parametrize("name", IDX_NAMES)
def test_data_files_with_anything_in_them_are_refused_or_right(
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
            assert part.images.shape[1:] == (1, 28, 28)
            assert len(part.images) == len(part.labels)

    replaced()


@pytest.mark.parametrize("content", [{}, 3, (1,), (torch.zeros(3), torch.zeros(3)), ([], [])])
def test_torchvisions_older_files_with_anything_in_them_are_refused(
    content: object, tmp_path: Path, no_network: None
) -> None:
    folder = tmp_path / "FashionMNIST" / "processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(content, folder / name)
    with pytest.raises(InputError):
        load_part(make_config("data=fashion_mnist", f"data.root={tmp_path}").data, train=True)
