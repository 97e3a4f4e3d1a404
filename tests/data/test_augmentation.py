import pytest
import torch

from dist_mnist.config.schema import AugmentationConfig
from dist_mnist.data.augmentation import (
    NUMBERS_PER_IMAGE,
    augment,
    change_stroke_width,
    rotate_and_scale,
)


def some_images(count: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 6:22, 6:22] = torch.randint(
        1, 256, (count, 1, 16, 16), generator=generator, dtype=torch.uint8
    )
    return images


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(NUMBERS_PER_IMAGE, count, generator=torch.Generator().manual_seed(seed))


def test_nothing_is_changed_where_nothing_may_be() -> None:
    images = some_images()
    assert augment(images, AugmentationConfig(0, 0.0, 0.0), numbers(50)) is images


def test_a_shift_moves_each_image_whole_by_so_many_pixels_at_most() -> None:
    images = some_images(400)
    moved = augment(images, AugmentationConfig(2, 0.0, 0.0), numbers(400))
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
    moved = augment(images, AugmentationConfig(1, 0.0, 0.0), numbers(200))
    assert set(moved.unique().tolist()) == {0, 9}
    assert int((moved[:, :, 1:-1, 1:-1] != 9).sum()) == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_colours_of_an_image_move_together(memory_format: torch.memory_format) -> None:
    grey = some_images()
    colours = torch.cat((grey, grey // 2, grey // 3), dim=1).to(memory_format=memory_format)
    limits = AugmentationConfig(2, 0.0, 0.0)
    moved = augment(grey, limits, numbers(50))
    expected = torch.cat((moved, moved // 2, moved // 3), dim=1)
    assert torch.equal(augment(colours, limits, numbers(50)), expected)


def test_turning_and_scaling_keeps_shape_type_and_centre() -> None:
    images = torch.zeros(20, 3, 29, 29, dtype=torch.uint8)
    images[:, :, 13:16, 13:16] = 200
    changed = augment(images, AugmentationConfig(0, 45.0, 0.2), numbers(20))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert bool((changed[:, :, 14, 14] == 200).all())
    assert not torch.equal(changed, images)


def test_turning_by_nothing_changes_nothing_and_by_a_right_angle_all() -> None:
    images = some_images()
    zero, size = torch.zeros(50), torch.ones(50)
    assert torch.equal(rotate_and_scale(images, zero, size, zero), images)
    turned = rotate_and_scale(images, zero + 90, size, zero)
    assert torch.equal(turned, images.rot90(1, (2, 3)))


def test_a_slant_moves_rows_and_leaves_the_middle() -> None:
    images = torch.zeros(1, 1, 29, 29, dtype=torch.uint8)
    images[:, :, 4:25, 14] = 200
    zero, size = torch.zeros(1), torch.ones(1)
    leaning = rotate_and_scale(images, zero, size, torch.tensor([45.0]))[0, 0]
    assert leaning.argmax(dim=1)[4:25].tolist() == list(range(24, 3, -1))  # to the right at the top
    assert int(leaning[14, 14]) == 200


def test_strokes_get_thicker_and_thinner() -> None:
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
def test_what_happens_to_an_image_does_not_depend_on_its_company(
    config: tuple[int, float, float],
) -> None:
    images, limits, drawn = some_images(), AugmentationConfig(*config), numbers(50)
    together = augment(images, limits, drawn)
    for rank in range(3):
        share = augment(images[rank::3], limits, drawn[:, rank::3])
        assert torch.equal(share, together[rank::3])
    assert not torch.equal(together, augment(images, limits, numbers(50, seed=1)))
