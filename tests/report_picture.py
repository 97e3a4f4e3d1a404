"""`python -m tests.report_picture`: trains, and writes .pictures/report.png, for the README.

It needs Chromium and a quiet machine: the picture shows the training's speed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.browser import chromium, save_screenshot

WIDTH, HEIGHT, SCALE = 1100, 1600, 0.8
COLORS = 128  # enough for two accents, their shades and the grays


def main() -> None:
    """Train with the defaults, open the report, point at a curve, and save a screenshot."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        train = [sys.executable, "-m", "dist_mnist", "tracking=disabled"]
        subprocess.run(train, cwd=folder, check=True)
        (report,) = Path(folder).glob("outputs/*/report.html")
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE
        )
        page.goto(report.as_uri())
        page.add_style_tag(content=".path { display: none }")  # a temporary folder
        page.locator("svg.plot").first.hover()
        save_screenshot(page, "report.png", COLORS)


if __name__ == "__main__":
    main()
