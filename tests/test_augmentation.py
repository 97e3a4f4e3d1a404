import pytest
import torch

from dist_mnist.augmentation import augment, random_rotation_and_scale, random_shift
from dist_mnist.config import AugmentationConfig


def some_images(count: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 6:22, 6:22] = torch.randint(
        1, 256, (count, 1, 16, 16), generator=generator, dtype=torch.uint8
    )
    return images


def test_nothing_is_changed_where_nothing_may_be() -> None:
    images = some_images()
    assert augment(images, AugmentationConfig(0, 0.0, 0.0)) is images


def test_a_shift_moves_each_image_whole_by_so_many_pixels_at_most() -> None:
    images = some_images(400)
    moved = random_shift(images, pixels=2)
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


def test_a_shift_lets_nothing_come_in_from_the_other_side() -> None:
    images = torch.full((200, 1, 28, 28), 9, dtype=torch.uint8)
    moved = random_shift(images, pixels=1)
    assert set(moved.unique().tolist()) == {0, 9}
    assert int((moved[:, :, 1:-1, 1:-1] != 9).sum()) == 0


def test_turning_and_scaling_keeps_shape_type_and_centre() -> None:
    images = torch.zeros(20, 3, 29, 29, dtype=torch.uint8)
    images[:, :, 13:16, 13:16] = 200
    changed = random_rotation_and_scale(images, degrees=45, scale=0.2)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert bool((changed[:, :, 14, 14] == 200).all())
    assert not torch.equal(changed, images)


def test_turning_by_nothing_changes_nothing() -> None:
    images = some_images()
    assert torch.equal(random_rotation_and_scale(images, degrees=0, scale=0), images)


@pytest.mark.parametrize("config", [(2, 0.0, 0.0), (1, 10.0, 0.1)])
def test_the_seed_decides(config: tuple[int, float, float]) -> None:
    images, limits = some_images(), AugmentationConfig(*config)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augment(images, limits))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
