"""Networks of one's own: some work, and the others are refused before training."""

import threading
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.models.build import build_model
from dist_mnist.models.classifier import load_classifier
from dist_mnist.models.dry_run import dry_run
from tests.support.configs import SMALL_DATA, make_config
from tests.support.processes import run_ranks
from tests.support.runs import run_once

SGD_ALONE = ("momentum", "nesterov", "weight_decay", "fused")
LBFGS = ("optimizer._target_=torch.optim.LBFGS", *(f"~optimizer.{key}" for key in SGD_ALONE))


@pytest.fixture
def small(small_root: Path, tmp_path: Path) -> list[str]:
    """Overrides of a small run with a network of the tests."""
    return [
        *(*SMALL_DATA, f"data.root={small_root}", "trainer.epochs=1"),
        *(f"run_dir={tmp_path / 'run'}", "trusted_modules=[tests.support.networks]", "model=mlp"),
    ]


def odd(how: str) -> list[str]:
    return ["model._target_=tests.support.networks.Odd", f"+model.how={how}"]


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tutorial_cnn_trains(size: int, small: list[str]) -> None:
    run_ranks(size, run_once, [*small, "model._target_=tests.support.networks.TutorialCNN"])


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("tuple", "model returns a tuple: it must return one tensor"),
        ("auxiliary", "model returns a tuple in train mode: it must return one tensor"),
        ("frozen", "model has no trainable parameters"),
        ("sparse", r"model\.table\.weight has sparse gradients"),
        ("complex", r"model\.phase has complex gradients"),
    ],
)
def test_refused_before_training(how: str, told: str, small: list[str]) -> None:
    with pytest.raises(InputError, match=told):
        run_once([*small, *odd(how)])


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_too_little_memory_names_the_key(small: list[str], is_training: bool) -> None:
    size = "trainer.global_batch_size=20" if is_training else "trainer.global_batch_size=2"
    told = f"enough memory .*lower {size}" if is_training else "lower trainer.evaluation_batch_size"
    with pytest.raises(InputError, match=told):
        run_once([*small, *odd("hungry"), size, "trainer.reproducible=false"])


def test_lazy_layers_train_and_load(small: list[str], tmp_path: Path) -> None:
    run_once([*small, *odd("lazy")])
    trusted = ["tests.support.networks"]
    classifier = load_classifier(tmp_path / "run", trusted_modules=trusted)
    assert classifier(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 10)


@pytest.mark.parametrize("reproducible", ["false", "true"])
def test_network_that_cannot_be_copied(small: list[str], reproducible: str) -> None:
    run_once([*small, *odd("locked"), f"trainer.reproducible={reproducible}"])


def test_lbfgs_is_refused(small: list[str]) -> None:
    with pytest.raises(InputError, match="choose another one, such as optimizer=adam"):
        run_once([*small, *odd("plain"), "optimizer=sgd", *LBFGS])


def test_unused_layer_trains(small: list[str]) -> None:
    run_ranks(2, run_once, [*small, *odd("unused")])


def test_layer_that_comes_and_goes(small: list[str]) -> None:
    with pytest.raises(InputError, match=r"trainer\.find_unused_parameters=true"):
        run_ranks(2, run_once, [*small, *odd("skips"), "trainer.find_unused_parameters=false"])
    run_ranks(2, run_once, [*small, *odd("skips"), "trainer.find_unused_parameters=true"])


@pytest.mark.parametrize("how", ["random", "last"])
def test_skipped_layer_is_told_in_its_step(how: str, small: list[str]) -> None:
    # The last of the 8 steps too, which no forward pass follows.
    with pytest.raises(InputError, match=r"trainer\.find_unused_parameters=true"):
        run_ranks(2, run_once, [*small, *odd(how), "trainer.find_unused_parameters=false"])


def test_layer_that_thaws(small: list[str]) -> None:
    run_ranks(2, run_once, [*small, *odd("thaws")])


def test_batch_norm_of_one_image(small: list[str]) -> None:
    # 153 samples in batches of 19: the last batch is one sample.
    for overrides in (["trainer.global_batch_size=19"], ["trainer.micro_batch_size=1"]):
        with pytest.raises(InputError, match="batch norm cannot train on a single image"):
            run_once([*small, *odd("norm"), *overrides])
    run_once([*small, *odd("plain"), "trainer.global_batch_size=19"])


def test_batch_norm_never_meets_one_image(small: list[str]) -> None:
    run_once([*small, *odd("norm"), "trainer.global_batch_size=19", "trainer.max_steps=4"])


def test_sync_batch_norm_of_one_image_each(small: list[str]) -> None:
    # Its statistics are of both images; only the CPU is refused.
    both = ["trainer.global_batch_size=2", "trainer.max_steps=4", "trainer.sync_batch_norm=true"]
    with pytest.raises(InputError, match="needs GPUs"):
        run_ranks(2, run_once, [*small, *odd("norm"), *both])


@pytest.mark.parametrize("is_copied", [True, False])
def test_trial_leaves_no_trace(is_copied: bool) -> None:
    config = make_config("model=cnn")
    model = build_model(config)
    model.register_buffer("spread", torch.zeros(1, 1).expand(1, 10))
    if not is_copied:
        model.lock = threading.Lock()  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    dry_run(model, config.data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
