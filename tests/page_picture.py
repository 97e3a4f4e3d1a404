"""`python -m tests.page_picture`: draws on the page and writes .pictures/page.png, for the README.

It needs Chromium, and the font Inter to look as it does there (Debian's fonts-inter).
"""

import tempfile
from pathlib import Path

from tests.support.browser import answer_by_mouse, chromium, save_screenshot
from tests.support.server import serving
from tests.support.strokes import draw

DRAWING = 462  # a 2 with a loop
WIDTH, HEIGHT = 1200, 760
COLORS = 64  # enough for one accent and its grays


def main() -> None:
    """Draw, wait for the answer, and save a screenshot of the window."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(cwd=Path(folder)) as server,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(server.url)
        answer = answer_by_mouse(page, draw(DRAWING))
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # the bars have risen by then
        save_screenshot(page, "page.png", COLORS)
    print(f"read as {answer}")


if __name__ == "__main__":
    main()
