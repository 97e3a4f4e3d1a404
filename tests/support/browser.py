"""Pages in a real Chromium, and drawings put on that of `serve` with its pointer."""

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.support.configs import CHECKOUT
from tests.support.digit_shapes import Point
from tests.support.strokes import Drawing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Debian's and Ubuntu's names; playwright would download another one.
NAMES = ("chromium", "chromium-browser", "google-chrome")
SETTLED = "#answer[aria-busy=false]"

# Strokes as pointer events, faster than a driver sends them one by one. The page cannot tell them
# from a mouse, except that a pointer which does not exist cannot be captured.
DRAW = """async ({strokes, pen}) => {
  const canvas = document.getElementById("canvas"), answer = document.getElementById("answer");
  const area = canvas.getBoundingClientRect();
  canvas.setPointerCapture = () => {};
  document.querySelector(`[name=pen][value="${pen}"]`).checked = true;
  for (const stroke of strokes) {
    const send = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
      pointerId: 1, isPrimary: true, button: 0, bubbles: true,
      clientX: area.left + x * area.width, clientY: area.top + y * area.height,
    }));
    send("pointerdown", stroke[0]);
    for (const point of stroke.slice(1)) send("pointermove", point);
    send("pointerup", stroke[stroke.length - 1]);
  }
  while (answer.ariaBusy === "true") await new Promise((done) => setTimeout(done, 5));
  return document.getElementById("numerals").textContent;
}"""


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Start Chromium; skip the test where it, or playwright, is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    # A container's root has no namespaces for the sandbox, and the page is our own.
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


def save_screenshot(page: "Page", name: str, colors: int) -> None:
    """Save a page as a PNG of few colors in .pictures/, for the README."""
    path = CHECKOUT / ".pictures" / name
    shown = Image.open(io.BytesIO(page.screenshot()))
    shown.convert("RGB").quantize(colors).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def answer_to(page: "Page", drawing: Drawing) -> str:
    """Clear the page, draw, and return the numerals that it shows once it has settled."""
    page.keyboard.press("Escape")
    strokes = [[*stroke] for stroke in drawing.strokes]
    return str(page.evaluate(DRAW, {"strokes": strokes, "pen": drawing.pen}))


def draw_by_mouse(page: "Page", strokes: Iterable[Iterable[Point]]) -> None:
    """Draw with the browser's own mouse; points are in shares of the canvas."""
    area = page.locator("#canvas").bounding_box()
    assert area is not None
    for stroke in strokes:
        points = [
            (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def answer_by_mouse(page: "Page", drawing: Drawing) -> str:
    """Like `answer_to`, with the browser's own mouse."""
    page.keyboard.press("Escape")
    page.locator(f'[name=pen][value="{drawing.pen}"]').check()
    draw_by_mouse(page, drawing.strokes)
    return settled_answer(page)


def settled_answer(page: "Page") -> str:
    """Wait until no request is under way; return the numerals."""
    page.wait_for_selector(SETTLED)
    return str(page.locator("#numerals").inner_text())


def wait_for(page: "Page", selector: str, text: str) -> None:
    """Wait until an element shows a text; the page's policy lets no script ask for it."""
    page.locator(selector).filter(has_text=text).first.wait_for(state="attached")
