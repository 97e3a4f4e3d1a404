"""What several tests need: configs, small data sets in real files, and real processes."""

import gzip
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from dist_mnist.commands.cli import _conf_folder
from dist_mnist.config.schema import Config, build_config, register_schema
from dist_mnist.distributed.gradients import World
from dist_mnist.record import checkpoint
from dist_mnist.record.journal import read_journal

# What no two runs share: the keys of the journal that tell of time.
CLOCK = ("seconds", "images_per_second", "slowest_rank", "slowest_rank_share", "mean_rank_share")
SOLO = World(rank=0, local_rank=0, size=1, local_size=1, device=torch.device("cpu"))


def make_config(*overrides: str) -> Config:
    """Compose the main job's config as the command line would."""
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(_conf_folder())):
        return build_config(compose("config", overrides=list(overrides)))


def write_idx(path: Path, tensor: torch.Tensor, packed: bool = False) -> None:
    """Write a uint8 or int32 tensor in MNIST's file format."""
    kind = {torch.uint8: 8, torch.int32: 12}[tensor.dtype]
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    values = tensor.numpy().astype(tensor.numpy().dtype.newbyteorder(">")).tobytes()
    content = bytes([0, 0, kind, tensor.ndim]) + sizes + values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def make_images(labels: torch.Tensor, num_classes: int, seed: int = 0) -> torch.Tensor:
    """Draw images that a network can learn: a bright bar whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (len(labels), 28, 28), generator=generator)
    rows = 2 + labels * 24 // num_classes
    images[torch.arange(len(labels)), rows] = 255
    return images.to(torch.uint8)


def make_family_files(
    folder: Path, prefix: str, num_classes: int, first_label: int = 0, train: int = 203
) -> None:
    """Write a training and a test set under the names that torchvision looks for."""
    for part, size in (("train", train), ("test" if "emnist" in prefix else "t10k", 101)):
        labels = torch.arange(size) % num_classes
        images = make_images(labels, num_classes, seed=size)
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte", images)
        labels = (labels + first_label).to(torch.uint8)
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte", labels)


def make_small_root(root: Path) -> Path:
    """Write small stand-ins for every data set but MNIST, in torchvision's layout."""
    for name in ("FashionMNIST", "KMNIST"):
        make_family_files(root / name / "raw", "", num_classes=10)
    for split, classes in (
        ("byclass", 62),
        ("bymerge", 47),
        ("balanced", 47),
        ("letters", 26),
        ("digits", 10),
        ("mnist", 10),
    ):
        first_label = 1 if split == "letters" else 0
        make_family_files(root / "EMNIST" / "raw", f"emnist-{split}-", classes, first_label)
    for part in ("train", "test"):
        labels = torch.zeros(150, 8, dtype=torch.int32)
        labels[:, 0] = torch.arange(150) % 10
        folder = root / "QMNIST" / "raw"
        write_idx(folder / f"qmnist-{part}-images-idx3-ubyte", make_images(labels[:, 0], 10))
        write_idx(folder / f"qmnist-{part}-labels-idx2-int", labels)
    return root


def result(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the last checkpoint and the journal without what depends on the clock."""
    lines = [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in read_journal(run_dir / "metrics.jsonl")
    ]
    return checkpoint.load(run_dir / "checkpoints" / "last.pt"), lines


def assert_equal(a: Any, b: Any) -> None:
    """Compare nested containers, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right)
    else:
        assert a == b


def run_ranks(size: int, function: Callable[..., Any], *args: object) -> list[Any]:
    """Call a function of the tests in `size` real processes, as torchrun would start them.

    The processes are forked from a server that has imported torch already, which takes a tenth of
    the time of starting them anew.

    Returns:
        What each rank returned, in order of rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dist_mnist.commands.train", "torch._dynamo"])
    port = free_port()
    ranks = []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_as_rank, args=(sender, rank, size, port, function, args))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    try:
        return [_answer(rank, receiver) for rank, (_, receiver) in enumerate(ranks)]
    finally:
        for process, receiver in ranks:
            process.kill()
            process.join()
            receiver.close()


def _as_rank(
    sender: Connection,
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    args: Sequence[object],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        answer = function(*args)
    except BaseException as error:
        answer = error
    # Plain bytes: torch would hand tensors over as open files of a process about to end.
    sender.send_bytes(pickle.dumps(answer))


def _answer(rank: int, receiver: Connection, timeout: float = 90) -> Any:
    if not receiver.poll(timeout):
        raise TimeoutError(f"rank {rank} has not answered for {timeout} s")
    answer = pickle.loads(receiver.recv_bytes())
    if isinstance(answer, BaseException):
        raise answer
    return answer


def free_port() -> int:
    """Return a port of the loopback address that nobody is listening on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(
    *arguments: str, cwd: Path | None = None, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter as a user would and return what it printed."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def torchrun(
    size: int, *arguments: str, module: str = "dist_mnist", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a module under a real torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    return python(*launcher, "-m", module, *arguments, **options)
