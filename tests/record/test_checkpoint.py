import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dist_mnist.config.errors import InputError
from dist_mnist.record import checkpoint
from tests.support.checkpoints import content
from tests.support.runs import assert_equal


def files(run_dir: Path) -> set[str]:
    return {path.stem for path in (run_dir / "checkpoints").glob("*.safetensors")}


def test_newest_last_and_best_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        checkpoint.save(tmp_path, content(step), step, is_best=step == 9, keep=2)
    assert files(tmp_path) == {"step-100", "step-10", "last", "best"}
    assert checkpoint.load(tmp_path / "checkpoints" / "best.safetensors")["progress"] == {"step": 9}
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest["progress"] == {"step": 100}


def test_set_back_run_drops_later_steps(tmp_path: Path) -> None:
    for step in (10, 20, 30, 15):
        checkpoint.save(tmp_path, content(step), step, is_best=False, keep=5)
    assert files(tmp_path) == {"step-10", "step-15", "last"}


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, content(1), 1, is_best=True, keep=1)
    before = (tmp_path / "checkpoints" / "last.safetensors").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"best.safetensors cannot be written: the disk is full"):
        checkpoint.save(tmp_path, content(2), 2, is_best=True, keep=1)
    assert (tmp_path / "checkpoints" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_damaged_newest_falls_back(tmp_path: Path, damage: bytes | None) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step), step, is_best=False, keep=3)
    for name in ("last.safetensors", "step-2.safetensors"):
        path = tmp_path / "checkpoints" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest["progress"] == {"step": 1}


def test_only_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, content(), 1, is_best=True, keep=1)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
        checkpoint.newest(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    (tmp_path / "older.safetensors").write_bytes(checkpoint.encode({"state_dict": {}}))
    for name in ("foreign.pt", "foreign.safetensors"):
        with pytest.raises(InputError, match="damaged or not a checkpoint"):
            checkpoint.load(tmp_path / name)
    with pytest.raises(InputError, match="not a checkpoint of dist_mnist: it has no model"):
        checkpoint.load(tmp_path / "older.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.load(tmp_path / "nothing.safetensors")


def test_anyone_can_read_the_weights(tmp_path: Path) -> None:
    weights = {"0.weight": torch.randn(3, 2), "0.bias": torch.randn(3)}
    checkpoint.save(tmp_path, {**content(), "model": weights}, 1, is_best=True, keep=1)
    read = load_file(tmp_path / "checkpoints" / "best.safetensors")
    assert_equal(read, {f"model.{name}": tensor for name, tensor in weights.items()})


def test_tied_weights_and_strides_are_kept(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5)
    weights = {"a": image, "b": image, "c": image.to(memory_format=torch.channels_last)}
    weights |= {"d": image[:, ::2], "e": torch.tensor(3.0), "f": torch.empty(0, dtype=torch.int8)}
    checkpoint.save(tmp_path, {**content(), "model": weights}, 1, is_best=True, keep=1)
    assert_equal(checkpoint.load(tmp_path / "checkpoints" / "last.safetensors")["model"], weights)


def test_run_directory_means_best_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, content(1), 1, is_best=True, keep=1)
    checkpoint.save(tmp_path, content(2), 2, is_best=False, keep=1)
    folder = tmp_path / "checkpoints"
    assert checkpoint.resolve(tmp_path) == checkpoint.resolve(folder) == folder / "best.safetensors"
    (folder / "best.safetensors").unlink()
    assert checkpoint.resolve(tmp_path) == folder / "last.safetensors"
    assert checkpoint.resolve(folder / "step-2.safetensors") == folder / "step-2.safetensors"
