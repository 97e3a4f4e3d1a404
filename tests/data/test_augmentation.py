import pytest
import torch

from dist_mnist.config.schema import AugmentationConfig
from dist_mnist.data import augmentation
from dist_mnist.data.augmentation import (
    Changes,
    change_stroke_width,
    draw_changes,
    rotate_and_scale,
)
from dist_mnist.data.images import ImageTensors


def some_images(count: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 6:22, 6:22] = torch.randint(
        1, 256, (count, 1, 16, 16), generator=generator, dtype=torch.uint8
    )
    return images


def drawn(config: AugmentationConfig, count: int, seed: int = 0) -> Changes:
    torch.manual_seed(seed)
    return draw_changes(config, count, torch.device("cpu"))


def augment(
    images: torch.Tensor, config: AugmentationConfig, changes: Changes | None = None
) -> torch.Tensor:
    """Change all images of a set, in the order of the set."""
    samples = ImageTensors(images, torch.zeros(len(images)), config.margin)
    changes = changes or drawn(config, len(images))
    return augmentation.augment(samples, torch.arange(len(images)), config, changes)


def test_no_augmentation_changes_nothing() -> None:
    images = some_images()
    assert torch.equal(augment(images, AugmentationConfig(0, 0.0, 0.0)), images)


@pytest.mark.parametrize("config", [(2, 0.0, 0.0), (0, 10.0, 0.0), (2, 10.0, 0.1)])
def test_each_index_gets_its_image(config: tuple[int, float, float]) -> None:
    images, limits = some_images(), AugmentationConfig(*config)
    samples = ImageTensors(images, torch.zeros(50), limits.margin)
    chosen, changes = torch.tensor([7, 0, 49, 7]), drawn(limits, 4)
    fetched = augmentation.augment(samples, chosen, limits, changes)
    assert torch.equal(fetched, augment(images[chosen], limits, changes))
    assert torch.equal(samples.images, images)


def test_shift_moves_whole_images() -> None:
    images = some_images(400)
    moved = augment(images, AugmentationConfig(2, 0.0, 0.0))
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(after, before.roll((down, right), dims=(1, 2)))
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) == 25


def test_shift_does_not_wrap_around() -> None:
    images = torch.full((200, 1, 28, 28), 9, dtype=torch.uint8)
    moved = augment(images, AugmentationConfig(1, 0.0, 0.0))
    assert set(moved.unique().tolist()) == {0, 9}
    assert int((moved[:, :, 1:-1, 1:-1] != 9).sum()) == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_colours_of_an_image_move_together(memory_format: torch.memory_format) -> None:
    grey = some_images()
    colours = torch.cat((grey, grey // 2, grey // 3), dim=1).to(memory_format=memory_format)
    limits = AugmentationConfig(2, 0.0, 0.0)
    moved = augment(grey, limits)
    expected = torch.cat((moved, moved // 2, moved // 3), dim=1)
    assert torch.equal(augment(colours, limits), expected)


def test_affine_keeps_shape_dtype_and_center() -> None:
    images = torch.zeros(20, 3, 29, 29, dtype=torch.uint8)
    images[:, :, 13:16, 13:16] = 200
    changed = augment(images, AugmentationConfig(0, 45.0, 0.2))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert bool((changed[:, :, 14, 14] == 200).all())
    assert not torch.equal(changed, images)


def test_affine_by_zero_and_by_90_degrees() -> None:
    images = some_images()
    zero, size = torch.zeros(50), torch.ones(50)
    assert torch.equal(rotate_and_scale(images, zero, size, zero), images)
    turned = rotate_and_scale(images, zero + 90, size, zero)
    assert torch.equal(turned, images.rot90(1, (2, 3)))


def test_slant_leaves_the_middle() -> None:
    images = torch.zeros(1, 1, 29, 29, dtype=torch.uint8)
    images[:, :, 4:25, 14] = 200
    zero, size = torch.zeros(1), torch.ones(1)
    leaning = rotate_and_scale(images, zero, size, torch.tensor([45.0]))[0, 0]
    assert leaning.argmax(dim=1)[4:25].tolist() == list(range(24, 3, -1))  # to the right at the top
    assert int(leaning[14, 14]) == 200


def test_stroke_width() -> None:
    images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 12:15] = 200
    changed = change_stroke_width(images, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))[:, 0, 14]
    assert changed[:, 10:17].tolist() == [
        [0, 0, 0, 200, 0, 0, 0],
        [0, 0, 100, 200, 100, 0, 0],
        [0, 0, 200, 200, 200, 0, 0],
        [0, 100, 200, 200, 200, 100, 0],
        [0, 200, 200, 200, 200, 200, 0],
    ]


@pytest.mark.parametrize("config", [(2, 0.0, 0.0), (1, 10.0, 0.1), (1, 10.0, 0.1, 12.0, 0.5)])
def test_augmentation_ignores_batch_mates(
    config: tuple[int, float, float],
) -> None:
    images, limits = some_images(), AugmentationConfig(*config)
    changes = drawn(limits, 50)
    together = augment(images, limits, changes)
    for rank in range(3):
        share = augment(images[rank::3], limits, changes.at(slice(rank, None, 3)))
        assert torch.equal(share, together[rank::3])
    assert not torch.equal(together, augment(images, limits, drawn(limits, 50, seed=1)))
