"""Images and labels of a data set of one's own: used if they fit, else named in an error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.data.mapped import Samples
from dist_mnist.data.splits import load_part
from tests.support.configs import make_config

Load = Callable[..., Samples]
DIGITS = torch.arange(20) % 10
PIXELS = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function that loads a data set with the given images and labels."""
    (tmp_path / "my_own.py").write_text(
        "import torch\n"
        "class Own(torch.utils.data.Dataset):\n"
        "    def __init__(self, root, train, download):\n"
        "        self.data, self.targets = torch.load(f'{root}/content.pt')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def load(data: object, targets: object, *overrides: str) -> Samples:
        torch.save((data, targets), tmp_path / "content.pt")
        target = "data.dataset._target_=my_own.Own"
        config = make_config("data.name=own", target, f"data.root={tmp_path}", *overrides).data
        return load_part(config, train=True, trusted_modules=["my_own"])[0]

    return load


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_one_hot_labels_get_a_hint(own: Load, dtype: torch.dtype) -> None:
    one_hot = torch.nn.functional.one_hot(DIGITS).to(dtype)
    with pytest.raises(InputError, match=r"shape \[20, 10\].*targets\.argmax\(1\)"):
        own(PIXELS, one_hot)


def test_a_table_of_labels_is_refused(own: Load) -> None:
    with pytest.raises(InputError, match=r"shape \[20, 3\].*one integer for each image\."):
        own(PIXELS, DIGITS[:, None].expand(20, 3).clone())


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
def test_gray_images_come_in_any_order(own: Load, shape: tuple[int, ...]) -> None:
    part = own(PIXELS.view(20, *shape), DIGITS)
    assert torch.equal(part.resident().images, PIXELS[:, None])
    assert torch.equal(part.labels, DIGITS)


def test_colors_come_first_or_last(own: Load) -> None:
    pixels = torch.randint(0, 256, (20, 3, 8, 12), dtype=torch.uint8)
    for data in (pixels, pixels.movedim(1, -1)):
        assert torch.equal(own(data, DIGITS, "data.image_shape=[3,8,12]").resident().images, pixels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            PIXELS.view(20, 784),
            r"data.image_shape=\[1, 28, 28\] .* its images are of shape \[784\]",
        ),
        (PIXELS.view(20, 1, 1, 28, 28), r"of shape \[1, 1, 28, 28\]"),
        (PIXELS[:, None].expand(20, 3, 28, 28), r"of shape \[3, 28, 28\]"),
        (PIXELS / 255, r"own has images of torch.float32: give torch.uint8, from 0 to 255"),
    ],
)
def test_images_that_do_not_fit_are_named(own: Load, data: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        own(data.clone(), DIGITS)


def test_qmnist_gives_an_item_as_mnist_does(small_root: Path) -> None:
    from dist_mnist.data.qmnist import QMNIST

    test_set = QMNIST(str(small_root), train=False)
    image, label = test_set[3]
    assert (image.size, label) == ((28, 28), 3)
    assert test_set.targets.shape == (150,)
