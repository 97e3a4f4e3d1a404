"""The names that a notebook or a script imports from the package."""

from pathlib import Path

import pytest
import torch

import dist_mnist
from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import load_part
from tests.support.processes import python


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A short run: its directory, and its accuracy on the test set."""
    config = dist_mnist.compose_config(
        *("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"),
        *("trainer.global_batch_size=20", "trainer.epochs=2", "trainer.device=cpu"),
        f"run_dir={tmp_path_factory.mktemp('library') / 'run'}",
    )
    result = dist_mnist.train(config)
    return result.run_dir, result.test.accuracy


def test_loaded_classifier_scores_as_its_run(small_root: Path, trained: tuple[Path, float]) -> None:
    run_dir, accuracy = trained
    config = dist_mnist.compose_config("data=fashion_mnist", f"data.root={small_root}")
    test, _ = load_part(config.data, train=False)
    probabilities = dist_mnist.load_classifier(run_dir)(test.resident().images)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(test)))
    assert float((probabilities.argmax(1) == test.labels).float().mean()) == pytest.approx(accuracy)


def test_classifier_knows_its_classes(trained: tuple[Path, float]) -> None:
    classifier = dist_mnist.load_classifier(str(trained[0]))
    assert len(classifier.classes) == 10
    assert not classifier.model.training


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 28, 28), torch.zeros(28, 28, dtype=torch.uint8)],
    ids=["float", "two dimensions"],
)
def test_other_images_are_refused(trained: tuple[Path, float], images: torch.Tensor) -> None:
    classifier = dist_mnist.load_classifier(trained[0])
    with pytest.raises(InputError, match=r"images must be torch\.uint8 of shape"):
        classifier(images)


def test_unknown_key_is_named() -> None:
    with pytest.raises(InputError, match="modle"):
        dist_mnist.compose_config("modle=mlp")


def test_import_does_not_wait_for_torch() -> None:
    code = "import dist_mnist, sys; assert 'torch' not in sys.modules; dist_mnist.__version__"
    assert python("-c", code).returncode == 0
