"""`dist-mnist evaluate`: one checkpoint in detail, several side by side, and as an ensemble."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dist_mnist.models.classifier import SHIPPED
from dist_mnist.record import checkpoint
from tests.support.command_line import call
from tests.support.datasets import make_images, write_idx

PLOTS = ("confusion_matrix.png", "mistakes.png", "calibration.png")


@pytest.fixture
def evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mnist_root: Path
) -> Any:
    """A function that runs `evaluate` on the real MNIST and returns the lines it prints."""

    def run(*arguments: str) -> list[str]:
        options = (f"data.root={mnist_root}", "trainer.device=cpu")
        status, out, err = call(monkeypatch, capsys, "evaluate", *options, *arguments)
        assert (status, err) == (0, "")
        return out.splitlines()

    return run


@pytest.fixture
def blurred(tmp_path: Path) -> Path:
    """The network of the package, a little worse."""
    content = checkpoint.load(SHIPPED)
    name = next(name for name in content["model"] if content["model"][name].ndim == 4)
    torch.manual_seed(0)
    content["model"][name] += 0.02 * torch.randn_like(content["model"][name])
    path = tmp_path / "blurred.safetensors"
    path.write_bytes(checkpoint.encode(content))
    return path


def test_details_and_pictures(evaluated: Any, tmp_path: Path) -> None:
    lines = evaluated(f"save={tmp_path / 'new' / 'folder'}")
    assert lines[0].split() == [
        *["label", "precision", "recall", "support", "|", "taken", "for"],
        *"0123456789",
    ]
    rows = [line.split() for line in lines[1:11]]
    assert [row[0] for row in rows] == list("0123456789")
    support = [int(row[5].replace(",", "")) for row in rows]
    assert sum(support) == 10_000
    assert [sum(map(int, row[7:])) for row in rows] == support
    right = sum(int(row[7 + place]) for place, row in enumerate(rows))
    assert lines[11].startswith("calibration error 0.0")
    assert lines[12].startswith("worst mistakes: image ")
    assert lines[-1].startswith(f"test accuracy {right / 10_000:.4f} ({right}/10000) loss 0.")
    assert lines[-1].endswith(f" s -> {SHIPPED}")
    plots = tmp_path / "new" / "folder" / "plots"
    assert {path.name for path in plots.iterdir()} == set(PLOTS)
    for name in PLOTS:
        with Image.open(plots / name) as picture:
            assert min(picture.size) >= 300


def test_json_has_all_of_it(evaluated: Any) -> None:
    (line,) = evaluated("format=json")
    score = json.loads(line)
    assert score["checkpoint"] == str(SHIPPED)
    assert score["accuracy"] == score["correct"] / 10_000
    assert sum(score["confusion"][digit][digit] for digit in range(10)) == score["correct"]
    for digit, class_score in enumerate(score["classes"]):
        answers = score["confusion"][digit]
        assert class_score["name"] == str(digit)
        assert class_score["support"] == sum(answers)
        assert class_score["recall"] == answers[digit] / sum(answers)
    assert len(score["mistakes"]) == min(24, 10_000 - score["correct"])


def test_several_side_by_side_and_as_one(evaluated: Any, blurred: Path) -> None:
    lines = evaluated(f"checkpoint=[{SHIPPED},{blurred}]", "ensemble=true")
    assert lines[0].split() == ["accuracy", "loss", "calibration", "error"]
    names = [str(SHIPPED), str(blurred), "ensemble of 2"]
    assert [line.split(maxsplit=4)[-1] for line in lines[1:4]] == names
    results = lines[5:]
    assert [line.partition(" s -> ")[2] for line in results] == names
    accuracies = [float(line.split()[2]) for line in results]
    assert min(accuracies) > 0.9
    assert [f"{100 * accuracy:.2f}" for accuracy in accuracies] == [
        line.split()[0] for line in lines[1:4]
    ]


def test_the_unseen_digits_of_qmnist(evaluated: Any, tmp_path: Path) -> None:
    labels = torch.zeros(10_030, 8, dtype=torch.int32)
    labels[10_000:, 0] = torch.arange(30) % 10  # only these are not in MNIST's test set
    folder = tmp_path / "QMNIST" / "raw"
    write_idx(folder / "qmnist-test-images-idx3-ubyte", make_images(labels[:, 0].long(), 10))
    write_idx(folder / "qmnist-test-labels-idx2-int", labels)
    lines = evaluated("unseen=true", f"data.root={tmp_path}")
    assert "/30) loss " in lines[-1]
    assert all(line.partition("  |")[0].endswith(" 3") for line in lines[1:11])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint=[3]", "checkpoint=[3] is not a path, or a list of paths"),
        ("checkpoint=[]", "checkpoint=[] is not a path, or a list of paths"),
        ("save=", "save= is not allowed: it must be a folder"),
        ("format=xml", "Invalid value 'xml'"),
    ],
)
def test_mistakes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    status, out, err = call(monkeypatch, capsys, "evaluate", override)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err
