"""The network that comes with the package."""

import os
from pathlib import Path

import pytest
import torch

from dist_mnist import load_classifier
from dist_mnist.config.errors import InputError
from dist_mnist.data.mnist import MNIST
from dist_mnist.digits.flagged_ones import COUNT, MNISTWithFlaggedOnes, draw_flagged_one
from dist_mnist.models.classifier import SHIPPED, find_checkpoint
from dist_mnist.record import checkpoint
from tests.ship import best_temperature, with_temperature, without_training


def test_it_is_small_and_good(mnist_root: Path) -> None:
    assert SHIPPED.stat().st_size < 200_000
    classifier, test = load_classifier(), MNIST(str(mnist_root), train=False)
    batches = zip(test.data.unsqueeze(1).split(500), test.targets.split(500), strict=True)
    right = sum(int((classifier(one).argmax(1) == labels).sum()) for one, labels in batches)
    assert right > 9940
    assert classifier.classes == tuple("0123456789")


def test_it_keeps_what_it_needs_to_answer() -> None:
    content = checkpoint.load(SHIPPED)
    assert content["optimizer"] == {}
    assert content["config"]["run_dir"] is None
    whole = {**content, "optimizer": {"state": {}}, "scaler": {"scale": 1.0}}
    whole["config"] = {**content["config"], "run_dir": "runs/x"}
    assert without_training(whole).keys() == content.keys()
    assert without_training(whole)["config"] == content["config"]


def test_temperature_changes_no_answer() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (2000,))
    logits = torch.randn(2000, 10)
    logits[torch.arange(2000), labels] += 3
    temperature = best_temperature(logits * 2, labels)
    assert best_temperature(logits, labels) == pytest.approx(temperature / 2, abs=0.011)
    content = checkpoint.load(SHIPPED)
    weight, bias = list(content["model"])[-2:]
    assert (content["model"][weight].shape, content["model"][bias].shape) == ((10, 576), (10,))
    scaled = with_temperature(content, 0.5)["model"]
    assert torch.equal(scaled[weight], content["model"][weight] * 2)
    assert torch.equal(scaled[bias], content["model"][bias] * 2)


def test_latest_is_the_run_that_was_saved_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no run under"):
        find_checkpoint("latest")
    for age, name in enumerate(("newest", "older", "oldest")):
        folder = tmp_path / "outputs" / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in ("best.safetensors", "last.safetensors"):
            (folder / file).write_bytes(SHIPPED.read_bytes())
            os.utime(folder / file, (1e9 - age, 1e9 - age))
    expected = Path("outputs/newest/checkpoints/best.safetensors")
    assert find_checkpoint("latest") == expected
    assert load_classifier("latest").classes == tuple("0123456789")
    assert find_checkpoint(None) == SHIPPED
    assert find_checkpoint("outputs/older").parts[1] == "older"


def test_flagged_ones_are_behind_mnist(mnist_root: Path) -> None:
    plain, more = MNIST(str(mnist_root)), MNISTWithFlaggedOnes(str(mnist_root))
    assert len(more) == len(plain) + COUNT
    assert torch.equal(more.data[:60_000], plain.data)
    assert set(more.targets[60_000:].tolist()) == {1}
    assert torch.equal(draw_flagged_one(7), more.data[60_007])
    assert len({bytes(image.numpy()) for image in more.data[60_000:]}) == COUNT
    assert len(MNISTWithFlaggedOnes(str(mnist_root), train=False)) == 10_000
