"""Classes are matched by their names wherever two sets of them meet."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.mapped import Samples
from dist_mnist.data.test_set import choose_test_set, load_test_set, match_classes
from dist_mnist.record import checkpoint
from tests.support.configs import make_config
from tests.support.picture_folders import FOLDER_DATA, write_digits
from tests.support.runs import run_once

pytestmark = pytest.mark.usefixtures("own_cache", "no_pictures")


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """Return the checkpoint of a network that knows the folders `cats` and `dogs`."""
    write_animals(tmp_path / "animals", cats=0, dogs=1)
    run(tmp_path, "animals", "run")
    return checkpoint.load(tmp_path / "run" / "checkpoints" / "best.safetensors")


def write_animals(root: Path, seed: int = 0, **labels: int) -> None:
    for name, label in labels.items():
        write_digits(root, [label] * 20, seed)
        (root / str(label)).rename(root / name)


def run(folder: Path, data: str, name: str, *overrides: str) -> float:
    return run_once(
        [
            *(*FOLDER_DATA, "model=linear", "trainer.epochs=1", f"data.root={folder / data}"),
            *(f"run_dir={folder / name}", *overrides),
        ]
    )


def test_set(content: dict[str, Any], root: Path, *overrides: str) -> Samples:
    config = make_config(*FOLDER_DATA, f"data.root={root}", *overrides).data
    return load_test_set(choose_test_set(config, content), content["classes"])


test_set.__test__ = False  # type: ignore[attr-defined]


def test_labels_follow_the_names_of_classes(tmp_path: Path, trained: dict[str, Any]) -> None:
    write_animals(tmp_path / "other", seed=1, cats=0, dogs=1)
    (tmp_path / "other" / "apes").mkdir()
    shutil.copytree(tmp_path / "other" / "cats", tmp_path / "zoo" / "dogs")
    shutil.copytree(tmp_path / "other" / "dogs", tmp_path / "zoo" / "cats")
    for name in ("other", "zoo"):
        test = test_set(trained, tmp_path / name)
        assert test.labels.bincount().tolist() == [20, 20]  # the whole tree
    apes = {**trained, "classes": ["dogs", "apes", "cats"]}
    test = test_set(apes, tmp_path / "other")
    assert test.labels.bincount().tolist() == [20, 0, 20]


def test_unknown_and_missing_classes_are_named(
    tmp_path: Path, trained: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_animals(tmp_path / "wild", lions=0, wolves=1)
    message = "has images of lions, wolves, and the network only knows cats, dogs"
    with pytest.raises(InputError, match=message):
        test_set(trained, tmp_path / "wild")
    write_animals(tmp_path / "one", dogs=1)
    assert set(test_set(trained, tmp_path / "one").labels.tolist()) == {1}
    assert "has no images of cats" in caplog.text


def test_pictures_that_were_trained_on_are_not_scored(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    shutil.copytree(tmp_path / "animals", tmp_path / "moved")
    assert len(test_set(trained, tmp_path / "animals")) == 8
    assert len(test_set(trained, tmp_path / "moved")) == 8
    (tmp_path / "moved" / "cats" / "0.png").unlink()
    assert len(test_set(trained, tmp_path / "moved")) == 39


def test_chosen_classes_are_found_in_another_folder(tmp_path: Path) -> None:
    write_animals(tmp_path / "animals", cats=0, cows=2, dogs=1)
    run(tmp_path, "animals", "run", "data.classes=[2,0]")
    content = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert content["classes"] == ["dogs", "cats"]
    write_animals(tmp_path / "more", ants=3, cats=0, cows=2, dogs=1)
    test = test_set(content, tmp_path / "more", "data.classes=[2,0]")
    assert test.labels.bincount().tolist() == [20, 20]
    write_animals(tmp_path / "plants", oaks=0, firs=1)
    with pytest.raises(InputError, match="plants has no images of dogs, cats"):
        test_set(content, tmp_path / "plants", "data.classes=[1,0]")


def test_a_run_does_not_continue_with_other_classes(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    assert trained["classes"] == ["cats", "dogs"]
    (tmp_path / "animals" / "dogs").rename(tmp_path / "animals" / "hounds")
    with pytest.raises(InputError, match="its classes were cats, dogs and are cats, hounds"):
        run(tmp_path, "animals", "run")


def test_a_head_is_transferred_by_the_names_of_classes(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    write_animals(tmp_path / "pets", birds=2, cats=0)
    write_animals(tmp_path / "same", cats=0, dogs=1)
    from_run = (f"transfer.checkpoint={tmp_path / 'run'}", "optimizer.lr=1e-12")
    run(tmp_path, "pets", "other", *from_run)
    theirs = trained["model"]["layers.1.weight"]
    ours = checkpoint.load(tmp_path / "other/checkpoints/best.safetensors")["model"]
    assert torch.allclose(ours["layers.1.weight"][1], theirs[0], atol=1e-6)  # cats
    assert not torch.allclose(ours["layers.1.weight"][0], theirs, atol=1e-3)  # birds


def test_digits_have_one_name() -> None:
    assert match_classes(["0 - zero", "1 - one"], ["1", "0"]).tolist() == [1, 0]
    assert match_classes(["1", "0"], ["0 - zero", "1 - one"]).tolist() == [1, 0]
    assert match_classes(["1 - cat", "2 - dog"], ["1 - dog", "2 - cat"]).tolist() == [-1, -1]
