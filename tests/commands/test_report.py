"""The command, and its pages in a real browser: values under the pointer, zoom, pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dist_mnist.report.page import read_run, render
from tests.support.command_line import call
from tests.support.reports import data_of, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


def test_one_run_is_reported_in_its_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "a run")
    status, out, _ = call(monkeypatch, capsys, "report", str(run_dir))
    assert (status, out) == (0, f"1 run -> {run_dir / 'report.html'}\n")
    assert data_of((run_dir / "report.html").read_text())[0]["name"] == "a run"


def test_several_runs_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    make_run(Path("b"))
    assert call(monkeypatch, capsys, "report", "a", "b")[1] == "2 runs -> comparison.html\n"
    assert call(monkeypatch, capsys, "report", "b", "a", "output=c.html")[0] == 0
    names = [run["name"] for run in data_of(Path("c.html").read_text())]
    assert names == ["b", "a"]


def test_latest_run_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = make_run(Path("outputs") / "new") / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "last.safetensors").touch()
    status, out, _ = call(monkeypatch, capsys, "report", "latest")
    assert (status, out) == (0, "1 run -> outputs/new/report.html\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the run directory is missing: name one"),
        (["nowhere"], "nowhere holds no run: metrics.jsonl is missing"),
    ],
)
def test_missing_run_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    status, out, err = call(monkeypatch, capsys, "report", *words)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@contextmanager
def opened(browser: "Browser", folder: Path, runs: list[Path], **options: Any) -> "Iterator[Page]":
    """Open the page of runs from a file; no error may be logged, and nothing fetched."""
    path = folder / "page.html"
    path.write_text(render([read_run(run) for run in runs]))
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("request", lambda sent: wrong.append(sent.url) if is_elsewhere(sent.url) else None)

    def is_elsewhere(url: str) -> bool:
        return not url.startswith((path.as_uri(), "data:", "blob:"))

    page.goto(path.as_uri())
    yield page
    context.close()
    assert not wrong


@pytest.mark.browser
def test_pointer_tells_values_and_zooms(browser: "Browser", tmp_path: Path) -> None:
    with opened(browser, tmp_path, [make_run(tmp_path / "run")]) as page:
        plot = page.locator(".plot").first
        area = plot.bounding_box()
        assert area is not None
        ticks = plot.locator("text").all_text_contents()

        def point(step: float) -> tuple[float, float]:
            left, right = 54, area["width"] - 14  # the margins of charts.js
            return area["x"] + left + step / 6 * (right - left), area["y"] + 80

        page.mouse.move(*point(2.1))
        tip = page.locator(".tip").first.inner_text().split("\n")
        assert tip[0] == "step 2"
        assert "train0.5" in "".join(tip)
        page.mouse.move(*point(3.0))
        page.mouse.down()
        page.mouse.move(*point(5.2))
        page.mouse.up()
        zoomed = plot.locator("text").all_text_contents()
        assert zoomed != ticks
        assert "0" not in zoomed
        plot.dblclick()
        assert plot.locator("text").all_text_contents() == ticks
        page.keyboard.press("Tab")
        plot.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".tip").first.inner_text().startswith("step ")


@pytest.mark.browser
def test_cells_show_their_pictures(browser: "Browser", tmp_path: Path) -> None:
    with opened(browser, tmp_path, [make_run(tmp_path / "run")]) as page:
        detail = page.locator("#cell")
        assert detail.inner_text().startswith("4 taken for 9\n")  # the most frequent mistake
        assert detail.locator(".picture").count() == 2
        page.get_by_label("3 taken for 5: 1").click()
        assert detail.inner_text().startswith("3 taken for 5\n")
        assert detail.locator("figcaption").all_inner_texts() == ["70 %"]
        page.keyboard.press("ArrowLeft")
        assert detail.inner_text().startswith("3 taken for 4\n")
        # The picture is white, on a sheet that begins with it.
        middle = page.locator(".mistakes .picture").first.screenshot()
        assert len(set(middle[-2000:])) > 1
        assert page.locator(".mistakes figure").count() == 3


@pytest.mark.browser
def test_curves_can_be_hidden(browser: "Browser", tmp_path: Path) -> None:
    with opened(browser, tmp_path, [make_run(tmp_path / "run")]) as page:
        curves = page.locator(".plot").first.locator(".curve")
        assert curves.count() == 2
        page.get_by_role("button", name="train").click()
        assert curves.count() == 1
        page.get_by_role("button", name="train").click()
        assert curves.count() == 2


@pytest.mark.browser
def test_interruptions_are_told(browser: "Browser", tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    starts = run_dir / "starts.jsonl"
    start, end = starts.read_text().splitlines()
    starts.write_text("\n".join([start, start, end.replace("finished", "stopped by SIGTERM"), ""]))
    with opened(browser, tmp_path, [run_dir]) as page:
        line = page.locator(".timeline").inner_text()
        assert "killed: it recorded no end" in line
        assert "stopped by SIGTERM" in line
        assert page.locator(".status").inner_text() == "stopped"


@pytest.mark.browser
def test_compared_runs_show_what_differs(browser: "Browser", tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", width="1"), make_run(tmp_path / "b", width="2")]
    with opened(browser, tmp_path, runs) as page:
        assert page.locator("h1").inner_text() == "2 runs side by side"
        assert page.locator("table.texts tbody tr").all_inner_texts() == ["model.width\t1\t2"]
        assert page.locator(".plot").first.locator(".curve").count() == 4


@pytest.mark.browser
def test_page_fits_phones_and_dark_rooms(browser: "Browser", tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    with opened(browser, tmp_path, [run_dir], **PHONE, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    with opened(browser, tmp_path, [run_dir], color_scheme="light") as page:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


@pytest.mark.browser
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_everyone_can_read_the_page(browser: "Browser", tmp_path: Path, color_scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    run_dir = make_run(tmp_path / "run", width="1")
    with opened(browser, tmp_path, [run_dir], color_scheme=color_scheme) as page:
        violations = axe.run(page).response["violations"]
        assert not [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations]
