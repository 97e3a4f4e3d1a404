"""The sign of a launch that has saved: storage that is gone is no reason to train again."""

import shutil
from pathlib import Path

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.record.saved import SIGN, has_saved
from tests.support.configs import SMALL_DATA
from tests.support.runs import run_once

pytestmark = pytest.mark.usefixtures("no_pictures")


def overrides(small_root: Path, *more: str) -> list[str]:
    return [*SMALL_DATA, "model=linear", "trainer.epochs=1", f"data.root={small_root}", *more]


@pytest.mark.parametrize("given", [True, False])
def test_a_run_directory_that_was_unmounted(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "monday-1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if given:
        monkeypatch.setenv(SIGN, str(tmp_path / "sign"))
    monkeypatch.setattr("dist_mnist.training.recorder.forget_saved", lambda _: None)  # a kill
    storage, where = tmp_path / "outputs", [] if given else [f"run_dir={tmp_path}/outputs/run"]
    run_once(overrides(small_root, *where))
    storage.rename(tmp_path / "unmounted")
    storage.mkdir()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(InputError, match=r"holds no checkpoint, but .* mount its storage again"):
        run_once(overrides(small_root, *where))
    shutil.rmtree(storage)
    (tmp_path / "unmounted").rename(storage)
    run_once(overrides(small_root, *where))
    shutil.rmtree(storage)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # a new launch with the same name
    run_once(overrides(small_root, *where))


def test_a_finished_run_leaves_no_sign(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGN, str(tmp_path / "sign"))
    run_once(overrides(small_root, f"run_dir={tmp_path / 'run'}"))
    assert not has_saved(tmp_path / "run")
    assert (tmp_path / "sign").read_text() == ""  # its time says that there was progress
