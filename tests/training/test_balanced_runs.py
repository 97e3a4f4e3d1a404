"""Runs on classes of different sizes, and on folders of pictures, from the config to the report."""

import os
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import with_num_classes
from dist_mnist.data.splits import load_part, load_splits
from dist_mnist.models.classifier import load_classifier
from dist_mnist.training.build import build_training_state
from dist_mnist.training.evaluation import Evaluation
from tests.support.command_line import call
from tests.support.configs import SMALL_DATA, SOLO, make_config
from tests.support.picture_folders import (
    FOLDER_DATA,
    assert_same_training,
    write_digits,
    write_images,
)
from tests.support.processes import run_ranks
from tests.support.runs import assert_equal, result, run_once

pytestmark = pytest.mark.usefixtures("no_pictures", "own_cache")

UNEVEN = [0] * 60 + [1] * 60 + [2] * 6
RUN = (*FOLDER_DATA, "trainer.epochs=4", "model=mlp", "data.validation_size=0.2")


@pytest.fixture(scope="module")
def uneven_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uneven")
    write_digits(root / "train", UNEVEN)
    write_digits(root / "test", UNEVEN, seed=1)
    return root


def run_with_cache(cache: str, overrides: list[str]) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    run_once(overrides)


def test_a_folder_makes_a_network(
    uneven_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_once([*RUN, f"data.root={uneven_root}", f"run_dir={tmp_path}", "data.balance=sample"])
    classifier = load_classifier(tmp_path)
    assert classifier.classes == ("0", "1", "2")
    probabilities = classifier(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    assert probabilities.shape == (2, 3)
    names = ["0/0.png", "1/61.png", "2/121.png"]
    right = [
        classifier(classifier.read(uneven_root / "test" / name)).argmax().item() for name in names
    ]
    assert right == [0, 1, 2]
    pictures = [str(uneven_root / "test" / name) for name in names]
    sheet = tmp_path / "sheet.png"
    status, out, _ = call(
        monkeypatch, capsys, "predict", *pictures, f"checkpoint={tmp_path}", f"save={sheet}"
    )
    assert (status, sheet.exists()) == (0, True)
    assert [line.split()[-2] for line in out.splitlines()] == ["0", "1", "2"]
    content, lines = result(tmp_path)
    assert (
        content["config"]["data"]["num_classes"] == content["config"]["model"]["num_classes"] == 3
    )
    assert content["class_counts"] == [48, 48, 5]
    assert lines[-1]["test/balanced_accuracy"] is not None
    assert "validation/balanced_accuracy" in lines[-2]
    log = (tmp_path / "train.log").read_text()
    assert "balanced test accuracy" in log
    assert f"  0         48  {'#' * 40}" in log


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["weights", "sample"])
def test_balance_has_the_same_bits_on_any_ranks(
    uneven_root: Path, tmp_path: Path, balance: str
) -> None:
    overrides = [*RUN, f"data.root={uneven_root}", f"data.balance={balance}"]
    overrides += ["trainer.reproducible=true"]
    alone = [*overrides, f"run_dir={tmp_path / 'alone'}"]
    run_once([*alone, "trainer.max_steps=8"])  # in the middle of the second epoch
    run_once(alone)
    cache = os.environ["XDG_CACHE_HOME"]
    run_ranks(2, run_with_cache, cache, [*overrides, f"run_dir={tmp_path / 'both'}"])
    (a, lines_a), (b, lines_b) = result(tmp_path / "alone"), result(tmp_path / "both")
    for key in ("model", "optimizer"):
        assert_equal(a[key], b[key])
    assert lines_a == lines_b


def test_balance_is_fixed_for_a_run(uneven_root: Path, tmp_path: Path) -> None:
    more_root = tmp_path / "more"
    write_digits(more_root / "train", [*UNEVEN, 0, 1, 2, 2])
    write_digits(more_root / "test", UNEVEN, seed=1)
    overrides = [*RUN, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=3"]
    run_once([*overrides, f"data.root={uneven_root}", "data.balance=weights"])
    with pytest.raises(InputError, match=r"data\.balance=none does not fit this run"):
        run_once([*overrides, f"data.root={uneven_root}"])
    with pytest.raises(InputError, match="training samples was 126 and is 130"):
        run_once([*overrides, f"data.root={more_root}", "data.balance=weights"])


def test_weights_count_classes_alike(uneven_root: Path) -> None:
    """The loss of a step on all samples is the mean of the classes' mean losses."""
    config = make_config(
        *RUN,
        f"data.root={uneven_root}",
        "trainer.global_batch_size=126",
        "data.validation_size=0",
        "data.balance=weights",
        "augmentation=none",
    )
    splits = load_splits(config.data, config.seed)
    state = build_training_state(with_num_classes(config, 3), SOLO, splits)
    labels = splits.train.labels
    with torch.no_grad():
        losses = state.loss(
            state.model(splits.normalization(splits.train.resident().images)), labels
        )
    expected = torch.stack([losses[labels == label].mean() for label in range(3)]).mean()
    (batch,) = state.batches()
    state.step(batch)
    assert state.metrics.reduced().loss == pytest.approx(float(expected), rel=1e-5)


def test_pictures_train_to_the_same_bits(small_root: Path, tmp_path: Path) -> None:
    """A data set that is written out as numbered pictures is the same data set."""
    config = make_config(*SMALL_DATA, f"data.root={small_root}")
    for train, name in ((True, "train"), (False, "test")):
        part, _ = load_part(config.data, train)
        write_images(
            tmp_path / "pictures" / name, part.resident().images[:, 0], part.labels.tolist()
        )
    options = [*SMALL_DATA[1:], "trainer.epochs=2", "model=mlp"]
    run_once(["data=fashion_mnist", *options, f"data.root={small_root}", f"run_dir={tmp_path}/a"])
    folder = ["data=image_folder", "data.image_shape=[1,28,28]"]
    run_once([*folder, *options, f"data.root={tmp_path / 'pictures'}", f"run_dir={tmp_path}/b"])
    assert_same_training(tmp_path / "a", tmp_path / "b")


def test_balanced_accuracy() -> None:
    labels = torch.tensor([0] * 8 + [3] * 2)
    predictions = torch.tensor([0] * 8 + [3, 0])
    evaluation = Evaluation(labels, predictions, torch.ones(10), torch.ones(10))
    assert evaluation.accuracy == pytest.approx(0.9)
    assert evaluation.balanced_accuracy == pytest.approx(0.75)
    assert evaluation.is_uneven
    assert evaluation.most_confused(2, 4).tolist() == [0, 3]
    assert evaluation.confusion_among(torch.tensor([0, 3]), 4).tolist() == [[8, 0], [1, 1]]
