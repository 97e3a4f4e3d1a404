import os
import pickle
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.record import checkpoint
from tests.support.checkpoints import Intruder, content


def files(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def test_the_newest_few_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        checkpoint.save(tmp_path, content(step), step, is_best=step == 9, keep=2)
    assert files(tmp_path) == {"step-100.pt", "step-10.pt", "last.pt", "best.pt"}
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["progress"] == {"step": 9}
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest["progress"] == {"step": 100}


def test_a_run_that_was_set_back_drops_the_steps_it_will_make_again(tmp_path: Path) -> None:
    for step in (10, 20, 30, 15):
        checkpoint.save(tmp_path, content(step), step, is_best=False, keep=5)
    assert files(tmp_path) == {"step-10.pt", "step-15.pt", "last.pt"}


def test_a_save_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, content(1), 1, is_best=True, keep=1)
    before = (tmp_path / "checkpoints" / "last.pt").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"best.pt cannot be written: the disk is full"):
        checkpoint.save(tmp_path, content(2), 2, is_best=True, keep=1)
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_newest_one_gives_way_to_the_one_before(
    tmp_path: Path, damage: bytes | None
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step), step, is_best=False, keep=3)
    for name in ("last.pt", "step-2.pt"):
        path = tmp_path / "checkpoints" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest["progress"] == {"step": 1}


def test_only_damaged_ones_are_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, content(), 1, is_best=True, keep=1)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
        checkpoint.newest(tmp_path)


def test_loading_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**content(), "model": Intruder()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({**content(), "model": Intruder()}))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "intruded").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="no checkpoint of dist_mnist"):
        checkpoint.load(tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="there is no such file"):
        checkpoint.load(tmp_path / "nothing.pt")


def test_a_run_directory_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, content(1), 1, is_best=True, keep=1)
    checkpoint.save(tmp_path, content(2), 2, is_best=False, keep=1)
    folder = tmp_path / "checkpoints"
    assert checkpoint.resolve(tmp_path) == checkpoint.resolve(folder) == folder / "best.pt"
    (folder / "best.pt").unlink()
    assert checkpoint.resolve(tmp_path) == folder / "last.pt"
    assert checkpoint.resolve(folder / "step-2.pt") == folder / "step-2.pt"
