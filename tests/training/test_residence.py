"""Samples on the host: the same run, bit for bit, with one copy for all processes of a machine."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.mapped import MappedImages
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.world import World
from tests.support.configs import SMALL_DATA, make_config
from tests.support.picture_folders import FOLDER_DATA, write_digits
from tests.support.processes import run_ranks
from tests.support.runs import assert_equal, result, run_once

RUN = (*SMALL_DATA, "trainer.epochs=2", "model.channels=[4,8]", "model.kernel_sizes=[5,3]")


def run_with_cache(cache: str, overrides: Sequence[str]) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    run_once([*overrides])


def train(folder: Path, root: Path, ranks: int, *overrides: str) -> tuple[object, object]:
    """Train in a folder of its own; return weights, optimizer and journal."""
    given = [*RUN, f"data.root={root}", f"run_dir={folder}", *overrides]
    cache = os.environ["XDG_CACHE_HOME"]
    if ranks == 1:
        run_with_cache(cache, given)
    else:
        run_ranks(ranks, run_with_cache, cache, given)
    content, lines = result(folder)
    return {key: content[key] for key in ("model", "optimizer")}, lines


@pytest.mark.usefixtures("no_pictures", "own_cache")
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ["augmentation=affine"]),
        (1, ["augmentation=none", "trainer.reproducible=true"]),
        pytest.param(2, ["augmentation=shift"], marks=pytest.mark.slow),
    ],
)
def test_same_bits_from_the_host(
    tmp_path: Path, small_root: Path, ranks: int, options: list[str]
) -> None:
    on_device = train(tmp_path / "device", small_root, ranks, "data.residence=device", *options)
    on_host = train(tmp_path / "host", small_root, ranks, "data.residence=host", *options)
    assert_equal(on_host, on_device)


@pytest.mark.usefixtures("no_pictures", "own_cache")
def test_continues_on_the_host_in_an_epoch(tmp_path: Path, small_root: Path) -> None:
    whole = train(tmp_path / "whole", small_root, 1, "data.residence=device")
    train(tmp_path / "parts", small_root, 1, "data.residence=host", "trainer.max_steps=11")
    assert_equal(train(tmp_path / "parts", small_root, 1, "data.residence=host"), whole)


def host_samples(root: Path) -> MappedImages:
    config = make_config(*SMALL_DATA, f"data.root={root}", "data.residence=host")
    train = load_splits(config.data, 0).train
    assert isinstance(train, MappedImages)
    return train


def test_processes_share_one_file(small_root: Path, own_cache: Path) -> None:
    first, second = host_samples(small_root), host_samples(small_root)
    files = [
        path for path in (own_cache / "dist_mnist" / "shared").iterdir() if path.stat().st_size
    ]
    assert len(files) == 2  # training and test
    assert torch.equal(first.resident().images, second.resident().images)
    with Path("/proc/self/maps").open() as maps:
        mapped = {line.split()[1] for line in maps if str(own_cache) in line}
    assert mapped == {"r--s"}


def test_batches_are_read_ahead(small_root: Path, own_cache: Path) -> None:
    train = host_samples(small_root)
    asked: list[int] = []

    def shares() -> Iterator[tuple[torch.Tensor, int]]:
        for number, places in enumerate(torch.arange(len(train)).split(20)):
            asked.append(number)
            yield places, 20

    delivered = train.with_margin(1).deliver(shares())
    first = next(delivered)
    assert asked == [0, 1, 2]
    assert torch.equal(first.samples.images, train.block(slice(20))[0])
    assert first.samples.padded.shape[-1] == 30
    labels = torch.cat([batch.samples.labels for batch in (first, *delivered)])
    assert torch.equal(labels, train.labels)


@pytest.mark.usefixtures("own_cache")
def test_the_cache_must_be_writable(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        host_samples(small_root)


# Trains on a folder of pictures with more bytes than the process may have in memory of its own.
LIMITED = """
import resource, sys
import torch
from tests.support.runs import run_once
import dist_mnist.training.run, matplotlib.backends.backend_agg
text = open("/proc/self/status").read()
used = int(text.partition("VmData:")[2].split()[0]) * 1024
most = used + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
run_once(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's RLIMIT_DATA")
@pytest.mark.usefixtures("own_cache")
def test_a_set_larger_than_the_memory(tmp_path: Path) -> None:
    write_digits(tmp_path / "data" / "train", [0, 1, 2] * 120)
    write_digits(tmp_path / "data" / "test", [0, 1, 2] * 4)
    overrides = [
        *FOLDER_DATA,
        "data.image_shape=[3,640,640]",  # 442 MB
        f"data.root={tmp_path / 'data'}",
        f"run_dir={tmp_path / 'run'}",
        "data.validation_size=10",
        "trainer.evaluation_batch_size=4",
        "trainer.global_batch_size=4",
        "trainer.max_steps=6",
        "model.channels=[2,4]",
        "model.kernel_sizes=[8,8]",
        "model.strides=[8,8]",
        "augmentation=none",
        "tracking=disabled",
    ]
    command = [sys.executable, "-c", LIMITED, str(400 * 2**20), *overrides]
    trained = subprocess.run(command, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    command += ["data.residence=device", f"run_dir={tmp_path / 'other'}"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "memory" in refused.stderr.lower()


def test_shares_on_the_way_to_a_world(small_root: Path, own_cache: Path) -> None:
    config = make_config(*SMALL_DATA, f"data.root={small_root}", "data.residence=auto")
    world = World(rank=0, local_rank=0, size=1, local_size=10**9, device=torch.device("cpu"))
    assert isinstance(load_splits(config.data, 0, world=world).train, MappedImages)
