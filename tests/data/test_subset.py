"""Some classes of a data set, and a few samples of each."""

from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import DataSplits, load_part, load_splits
from tests.support.configs import make_config

LAST_THREE = ("data.classes=[9,7,8]", "data.num_classes=3", "data.validation_size=12")


def splits(root: Path, *overrides: str, seed: int = 0) -> DataSplits:
    config = make_config("data=fashion_mnist", f"data.root={root}", *overrides)
    return load_splits(config.data, seed)


def test_classes_are_numbered_as_given(small_root: Path) -> None:
    config = make_config("data=fashion_mnist", f"data.root={small_root}")
    whole, names = load_part(config.data, train=False)
    chosen = splits(small_root, *LAST_THREE)
    assert chosen.classes == (names[9], names[7], names[8])
    for label, original in enumerate((9, 7, 8)):
        ours, theirs = chosen.test.labels == label, whole.labels == original
        assert torch.equal(chosen.test.resident().images[ours], whole.resident().images[theirs])
    assert len(chosen.train) + len(chosen.validation) == 60  # of 203: 20 of each of the last ones


@pytest.mark.parametrize("count", [1, 5])
def test_as_many_samples_of_each_class(small_root: Path, count: int) -> None:
    chosen = splits(small_root, *LAST_THREE, f"data.samples_per_class={count}")
    assert chosen.train.labels.bincount().tolist() == [count] * 3
    assert chosen.validation.labels.bincount().tolist() == [4] * 3


def test_more_samples_keep_the_fewer(small_root: Path) -> None:
    few, more = (
        splits(small_root, *LAST_THREE, f"data.samples_per_class={count}").train for count in (4, 9)
    )
    found = (few.resident().images.unsqueeze(1) == more.resident().images).flatten(2).all(2).any(1)
    assert len(found) == 12
    assert found.all()


def test_samples_depend_on_the_seed(small_root: Path) -> None:
    one, same, other = (
        splits(small_root, *LAST_THREE, "data.samples_per_class=9", seed=seed)
        .train.resident()
        .images
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.classes=[5,6]"], r"data\.num_classes=10 is not allowed: .* needs 2"),
        (["data.classes=[5,5]", "data.num_classes=2"], "must be different labels"),
        (["data.classes=[5,-1]", "data.num_classes=2"], "must be different labels"),
        (["data.classes=[5,10]", "data.num_classes=2"], "has no class 10: its labels go from 0"),
        (["data.samples_per_class=0"], "must be at least 1"),
        (["data.samples_per_class=17"], "more than the 1[0-9] training images of class T-shirt"),
    ],
)
def test_refused_choices(small_root: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        splits(small_root, "data.validation_size=50", *overrides)
