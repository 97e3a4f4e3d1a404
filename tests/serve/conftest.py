"""A server for each test file, with the network in the package, and its page in Chromium."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import wait_for
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESK = {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(cwd=tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def page(browser: "Browser", server: Server, request: pytest.FixtureRequest) -> "Iterator[Page]":
    """The page, in a window with the options of a parameter.

    Fails if the page logs an error or sends a request to any other server.
    """
    options = getattr(request, "param", DESK)
    context = browser.new_context(base_url=server.url, **options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if is_error(said.text) else None)
    page.on("request", lambda sent: wrong.append(sent.url) if is_elsewhere(sent.url) else None)

    def is_elsewhere(url: str) -> bool:
        return not url.startswith((server.url, "data:", "blob:"))

    def is_error(text: str) -> bool:
        return not text.startswith("Failed to load resource")  # a status that is not 200

    page.goto("/")
    wait_for(page, "#model", "parameters")
    yield page
    context.close()
    assert not wrong
