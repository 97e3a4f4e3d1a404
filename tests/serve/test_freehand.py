"""Hundreds of freehand drawings on the page, in a browser that the benchmark starts itself."""

import pytest

from tests.benchmarks.freehand import read_drawings, share_right

pytest.importorskip("fastapi")


@pytest.mark.slow
@pytest.mark.browser
def test_freehand_drawings_are_read() -> None:
    assert share_right(read_drawings(200)) > 0.985
