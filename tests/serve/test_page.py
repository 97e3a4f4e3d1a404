"""The page in a real Chromium: drawn on with mouse, finger and keyboard."""

import dataclasses
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.browser import (
    answer_by_mouse,
    answer_to,
    draw_by_mouse,
    settled_answer,
    wait_for,
)
from tests.support.digit_shapes import Point
from tests.support.strokes import PENS, Drawing, draw, picture, png

pytest.importorskip("fastapi")

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser

ONE = [[(0.5, 0.2), (0.5, 0.8)]]
SEVEN = [[(0.3, 0.25), (0.68, 0.25), (0.45, 0.8)]]
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 3,
    "has_touch": True,
    "is_mobile": True,
}


def moved(drawing: Drawing, change: Callable[[Point], Point], pen: float = 0.055) -> Drawing:
    strokes = tuple(tuple(map(change, stroke)) for stroke in drawing.strokes)
    return dataclasses.replace(drawing, strokes=strokes, pen=pen)


def placed(drawing: Drawing, size: float, left: float, top: float, pen: float) -> Drawing:
    """Return a drawing that is `size` of the canvas high or wide, with its corner at a place."""
    points = [point for stroke in drawing.strokes for point in stroke]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    scale = size / max(max(xs) - min(xs), max(ys) - min(ys))
    return moved(
        drawing, lambda p: (left + (p[0] - min(xs)) * scale, top + (p[1] - min(ys)) * scale), pen
    )


# The ways of writing taught at school; the slow test has all the others.
TAUGHT = (
    "round",
    "foot",
    "flat",
    "round",
    "closed",
    "hat",
    "curved",
    "plain",
    "one stroke",
    "straight",
)


def taught(digit: int) -> Drawing:
    """Return the first drawing of a digit written the way schools teach it."""
    drawings = (draw(seed) for seed in itertools.count(digit, step=10))
    return next(drawing for drawing in drawings if drawing.way == TAUGHT[digit])


STYLES: dict[str, Callable[[Drawing], Drawing]] = {
    "small": lambda drawing: placed(drawing, 0.25, 0.4, 0.4, PENS[0]),
    "large": lambda drawing: placed(drawing, 0.92, 0.04, 0.04, PENS[1]),
    "off center": lambda drawing: placed(drawing, 0.35, 0.62, 0.62, PENS[1]),
    "thin": lambda drawing: placed(drawing, 0.7, 0.2, 0.15, PENS[0]),
    "thick": lambda drawing: placed(drawing, 0.7, 0.2, 0.15, PENS[2]),
    "slanted": lambda drawing: moved(
        placed(drawing, 0.55, 0.2, 0.2, PENS[1]), lambda p: (p[0] + 0.35 * (0.7 - p[1]), p[1])
    ),
    "fast": lambda drawing: dataclasses.replace(
        placed(drawing, 0.6, 0.2, 0.2, PENS[1]),
        strokes=tuple((*stroke[:-1:2], stroke[-1]) for stroke in drawing.strokes),
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_all_ten_digits_are_read(page: "Page", style: str) -> None:
    drawings = [STYLES[style](taught(digit)) for digit in range(10)]
    answers = [answer_to(page, drawing) for drawing in drawings]
    assert answers == [str(digit) for digit in range(10)]


def test_a_mouse_draws_all_ten(page: "Page") -> None:
    drawings = [STYLES["fast"](taught(digit)) for digit in range(10)]
    answers = [answer_by_mouse(page, drawing) for drawing in drawings]
    assert answers == [str(digit) for digit in range(10)]


def test_a_mouse_draws_and_the_answer_is_complete(page: "Page") -> None:
    draw_by_mouse(page, SEVEN)
    assert settled_answer(page) == "7"
    assert "% sure" in page.locator("#verdict").inner_text()
    assert "The runner-up is " in page.locator("#runner-up").inner_text()
    bars = page.locator("#bars li").all_text_contents()
    assert len(bars) == 10
    assert page.locator("#bars .best .name").inner_text() == "7"
    shares = [int(bar.rpartition(": ")[2].rstrip("%")) for bar in bars]
    assert 95 <= sum(shares) <= 105
    assert page.evaluate("document.getElementById('seen').naturalWidth") == 28
    wait_for(page, "#announcement", "7. ")


def test_the_answer_comes_while_you_draw(page: "Page") -> None:
    area = page.locator("#canvas").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 150, area["y"] + 100)
    page.mouse.down()
    page.mouse.move(area["x"] + 150, area["y"] + 400)
    assert settled_answer(page) == "1"  # the button is still down


def test_undo_and_clear(page: "Page") -> None:
    assert page.locator("#undo").is_disabled()
    assert page.locator("#clear").is_disabled()
    draw_by_mouse(page, ONE)
    draw_by_mouse(page, [[(0.3, 0.5), (0.7, 0.5)]])
    settled_answer(page)
    page.locator("#undo").click()
    assert settled_answer(page) == "1"
    page.locator("#clear").click()
    assert page.locator("#verdict").inner_text() == "Nothing drawn yet"
    assert page.locator("#clear").is_disabled()
    page.keyboard.press("Control+z")
    assert settled_answer(page) == "1"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert page.locator("#undo").is_disabled()
    assert page.locator("#answer").get_attribute("data-state") == "empty"


@pytest.mark.parametrize("clears", [True, False])
def test_an_older_answer_does_not_win(page: "Page", clears: bool) -> None:
    held: list[Route] = []

    def hold_the_first(route: "Route") -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/predict", hold_the_first)
    draw_by_mouse(page, [[(0.5, 0.3), (0.5, 0.5)]])
    page.wait_for_timeout(300)
    assert held
    if clears:
        page.keyboard.press("Escape")
    else:
        page.keyboard.press("Control+z")
    draw_by_mouse(page, SEVEN)
    wait_for(page, "#numerals", "7")
    held[0].continue_()
    page.wait_for_timeout(500)
    assert settled_answer(page) == "7"


def test_the_keyboard_draws(page: "Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    for key in [" ", *["ArrowRight"] * 6, *["ArrowDown"] * 12, " "]:
        page.keyboard.press(key)
    assert settled_answer(page) == "7"
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "undo"
    page.keyboard.press("Enter")
    assert page.locator("#answer").get_attribute("data-state") == "empty"


def test_a_chosen_picture_is_read(page: "Page", tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    path.write_bytes(png(draw(2)))
    page.set_input_files("#file", path)
    wait_for(page, "#numerals", "2")
    draw_by_mouse(page, SEVEN)  # on a new sheet
    assert settled_answer(page) == "7"


GIVE = """({bytes, kind, type}) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "a", {type}));
  const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
    : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_given_picture_is_read(page: "Page", kind: str) -> None:
    page.evaluate(GIVE, {"bytes": [*png(draw(3))], "kind": kind, "type": "image/png"})
    wait_for(page, "#numerals", "3")


def test_several_digits_are_read_together(page: "Page") -> None:
    sheet = Image.new("L", (900, 400), 255)
    for place, digit in enumerate((4, 0, 2)):
        sheet.paste(picture(draw(digit)), (10 + 290 * place, 60))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    page.evaluate(GIVE, {"bytes": [*stream.getvalue()], "kind": "drop", "type": "image/png"})
    wait_for(page, "#numerals", "402")
    assert page.locator("#bars .best .name").inner_text() == "4"
    page.locator("#numerals button").nth(2).click()
    assert page.locator("#bars .best .name").inner_text() == "2"
    pressed = [
        button.get_attribute("aria-pressed") for button in page.locator("#numerals button").all()
    ]
    assert pressed == ["false", "false", "true"]


def test_a_file_that_is_not_a_picture_is_reported(page: "Page") -> None:
    page.evaluate(GIVE, {"bytes": [1, 2, 3], "kind": "drop", "type": "image/png"})
    wait_for(page, "#verdict", "This file is not a picture")


def test_a_picture_without_a_digit_is_reported(page: "Page") -> None:
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), "white").save(stream, "PNG")
    page.evaluate(GIVE, {"bytes": [*stream.getvalue()], "kind": "drop", "type": "image/png"})
    wait_for(page, "#runner-up", "There is no digit in the picture.")


def test_a_lost_server_is_reported(page: "Page") -> None:
    page.route("**/predict", lambda route: route.abort())
    draw_by_mouse(page, ONE)
    settled_answer(page)
    assert page.locator("#verdict").inner_text() == "The server does not answer"
    page.unroute("**/predict")
    page.keyboard.press("Escape")
    draw_by_mouse(page, SEVEN)
    assert settled_answer(page) == "7"


def test_it_says_when_it_is_not_sure(page: "Page") -> None:
    """Scribbles: the words match the server's answer, and some scribbles are unclear."""
    verdicts = set()
    for seed in range(8):
        zigzag = [[(0.2 + 0.1 * i, 0.2 + 0.6 * ((seed * i * i + i) % 3) / 2) for i in range(7)]]
        page.keyboard.press("Escape")
        with page.expect_response("**/predict"):
            draw_by_mouse(page, zigzag)
        settled_answer(page)
        verdict = page.locator("#verdict").inner_text()
        is_unsure = page.locator("#numerals .unsure").count() > 0
        assert is_unsure == (verdict == "Not sure")
        verdicts.add(verdict)
    assert "Not sure" in verdicts


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_finger_draws_on_a_phone(page: "Page") -> None:
    area = page.locator("#canvas").bounding_box()
    assert area is not None
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *points: Point) -> None:
        spots = [
            {"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]}
            for x, y in points
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": spots})

    first, *others = SEVEN[0]
    send("touchStart", first)
    for start, end in zip(SEVEN[0], others, strict=False):
        for step in range(1, 9):
            share = step / 8
            x, y = (a + (b - a) * share for a, b in zip(start, end, strict=True))
            send("touchMove", (x, y))
    send("touchEnd")
    assert settled_answer(page) == "7"
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize(
    "page", [PHONE, {"viewport": {"width": 320, "height": 568}}], indirect=True
)
def test_nothing_is_wider_than_a_phone(page: "Page") -> None:
    draw_by_mouse(page, SEVEN)
    settled_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_shows_the_bars_at_once(page: "Page") -> None:
    bars = page.locator("#bars").bounding_box()
    assert bars is not None
    assert bars["y"] + bars["height"] <= page.evaluate("innerHeight")
    ratio = (
        "document.getElementById('canvas').width / document.getElementById('canvas').clientWidth"
    )
    assert page.evaluate(ratio) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_reduced_motion_turns_transitions_off(page: "Page") -> None:
    duration = "getComputedStyle(document.querySelector('.level')).transitionDuration"
    assert page.evaluate(duration) == "0s"


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE], indirect=True
)
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_everyone_can_use_the_pages(page: "Page", path: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def violations() -> list[Any]:
        rules: list[Any] = axe.run(page).response["violations"]
        return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in rules]

    page.goto(path)
    page.wait_for_timeout(300)
    assert not violations()
    if path == "/docs":
        return
    for strokes in (SEVEN, [[(0.1, 0.3), (0.1, 0.7)]]):  # one digit, then two
        draw_by_mouse(page, strokes)
        settled_answer(page)
        page.wait_for_timeout(500)  # colors have changed by then
        assert not violations()
    assert page.locator("#numerals button").count() == 2


KEEP = """() => {
  const send = window.fetch;
  window.fetch = (path, options) => { window.kept = options?.body; return send(path, options); };
}"""
KEPT = "async () => [...new Uint8Array(await window.kept.arrayBuffer())]"


def test_the_rasterizer_is_the_canvas(page: "Page") -> None:
    """The page sends the picture that tests/support/strokes.py makes of the same strokes."""
    page.evaluate(KEEP)
    for seed in range(20):
        answer_to(page, draw(seed))
        sent = Image.open(io.BytesIO(bytes(page.evaluate(KEPT)))).convert("L")
        ours = picture(draw(seed)).tobytes()
        apart = sum(abs(a - b) for a, b in zip(sent.tobytes(), ours, strict=True))
        assert apart < 0.05 * sum(255 - value for value in ours), seed
