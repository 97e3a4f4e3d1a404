"""The drawings that judge the page: the same for the same seed, and of every kind."""

from tests.support.digit_shapes import WAYS
from tests.support.strokes import PENS, SIDE, draw, picture

MANY = [draw(seed) for seed in range(1000)]


def test_a_seed_is_a_drawing() -> None:
    assert [draw(seed) for seed in range(50)] == MANY[:50]
    assert len({drawing.strokes for drawing in MANY}) == len(MANY)


def test_every_way_of_writing_occurs() -> None:
    drawn = {(drawing.digit, drawing.way) for drawing in MANY}
    assert drawn == {(digit, way) for digit, ways in WAYS.items() for way in ways}
    assert {drawing.pen for drawing in MANY} == set(PENS)


def test_strokes_lie_on_the_canvas() -> None:
    for drawing in MANY:
        points = [point for stroke in drawing.strokes for point in stroke]
        assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points)
        assert len(points) >= 3


def test_a_picture_is_black_on_white() -> None:
    made = picture(MANY[8])
    assert (made.mode, made.size) == ("L", (SIDE, SIDE))
    assert made.getextrema() == (0, 255)
    assert made.getpixel((0, 0)) == 255
