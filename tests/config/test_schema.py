"""The config that a user sees: every choice runs, and every mistake is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.config.schema import plain_config
from dist_mnist.record.journal import read_journal
from dist_mnist.training.run import run
from tests.support.configs import CHECKOUT, SOLO, make_config
from tests.support.picture_folders import write_digits

CONF = CHECKOUT / "conf"
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
ELSEWHERE = (
    ("tracking", "online"),  # needs a key: see tracking/
    ("model", "resnet18"),  # needs color pictures: trained in training/test_transfer.py
)


@pytest.mark.usefixtures("no_pictures", "own_cache")
@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c not in ELSEWHERE])
def test_every_choice_composes_and_runs(
    small_root: Path,
    mnist_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    choice: str,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    real = (group, choice) == ("data", "mnist")
    root = mnist_root if real else small_root
    if choice in ("image_folder", "photos"):
        root = tmp_path / "pictures"
        write_digits(root, [0, 1] * 60)
    config = make_config(
        *([] if group == "data" or choice == "photos" else ["data=fashion_mnist"]),
        *([] if group == "tracking" else ["tracking=disabled"]),
        f"{group}={choice}",
        f"data.root={root}",
        f"run_dir={tmp_path}",
        "data.validation_size=30",
        "trainer.max_steps=3",
        "trainer.global_batch_size=16",
        "trainer.log_every_steps=1",
        "trainer.evaluation_batch_size=100",
    )
    test = run(config, SOLO).test
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["step"] * 3 + ["epoch", "test"]
    assert test.count == lines[-1]["test/count"] > 0


def test_documented_groups_exist() -> None:
    assert {group for group, _ in CHOICES} == {
        *("data", "model", "loss", "optimizer", "scheduler"),
        *("augmentation", "trainer", "tracking", "experiment"),
    }


def test_the_tutorial_is_as_it_was() -> None:
    config = make_config("experiment=tutorial")
    assert config.model["hidden_sizes"] == [64, 64, 64]
    assert config.model["log_probabilities"] is True
    assert config.loss["_target_"].endswith("NegativeLogLikelihood")
    assert (config.optimizer["_target_"], config.optimizer["lr"]) == ("torch.optim.Adam", 0.001)
    assert (config.trainer.global_batch_size, config.trainer.epochs) == (10, 3)
    assert (config.data.validation_size, config.data.normalize) == (0, False)


def test_override_precedence() -> None:
    assert make_config("experiment=tutorial").trainer.epochs == 3
    assert make_config("experiment=tutorial", "trainer.epochs=1").trainer.epochs == 1


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lrr=1",
        "trainer.epochs=many",
        "trainer.epochs=1.5",
        "trainer.precision=fp8",
        "nonsense=1",
        "data.rot=x",
        "resume=perhaps",
    ],
)
def test_unknown_keys_and_wrong_types(override: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0]):
        make_config(override)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.global_batch_size=0",
        "trainer.epochs=0",
        "trainer.max_steps=0",
        "trainer.micro_batch_size=-1",
        "trainer.log_every_steps=0",
        "trainer.checkpoint_every_steps=0",
        "trainer.gradient_clip_norm=0",
        "trainer.timeout_seconds=0",
        "data.validation_size=-1",
        "data.num_classes=1",
        "augmentation.shift_pixels=-1",
        "augmentation.scale=1",
        "seed=-1",
    ],
)
def test_values_that_cannot_be_are_named(override: str) -> None:
    with pytest.raises(InputError, match=override.replace(".", r"\.")):
        make_config(override)


def test_mse_of_log_probabilities_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.log_probabilities=True"):
        make_config("experiment=tutorial", "loss=mse")
    make_config("experiment=tutorial", "loss=mse", "model.log_probabilities=false")


def test_a_config_survives_its_plain_form() -> None:
    config = make_config("experiment=tutorial", "trainer.precision=bf16", "resume=must")
    plain = plain_config(config)
    assert plain["trainer"]["precision"] == "bf16"
    assert config_from_plain(plain, {}) == config
    assert config_from_plain(plain, {"trainer": {"epochs": 7, "device": None}}).trainer.epochs == 7


@pytest.mark.parametrize(
    "plain",
    [{}, {"data": 3}, {"nonsense": 1}, {"run_dir": "${oc.env:HOME}"}, {"run_dir": "\\${a}"}],
)
def test_wrong_container_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="config cannot be used"):
        config_from_plain(plain, {})
