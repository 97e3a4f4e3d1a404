"""The README stays short, and its links and those of the manuals lead somewhere."""

import re

import pytest

from tests.support.configs import CHECKOUT

MOST_LINES, MOST_WORDS = 230, 1_800
LINK = re.compile(r"\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"https?://")


def links(path: str) -> list[str]:
    """Return the targets of links and pictures, without whole addresses."""
    targets = LINK.findall((CHECKOUT / path).read_text(encoding="utf-8"))
    return [target for target in targets if not ADDRESS.match(target)]


def anchors(path: str) -> set[str]:
    """Return the addresses of headings within a page."""
    headings = re.findall(r"^#+ (.+)$", (CHECKOUT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return {f"#{heading.lower().replace(' ', '-')}" for heading in headings}


def test_readme_is_short() -> None:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS


def test_readme_links_to_pictures_alone() -> None:
    """A package page has the README and none of the other files."""
    assert {target.split("/")[0] for target in links("README.md")} == {".pictures"}


@pytest.mark.parametrize("path", [f"{f}README.md" for f in ("", "conf/", "launch/", "tests/")])
def test_links_lead_somewhere(path: str) -> None:
    folder = (CHECKOUT / path).parent
    for target in links(path):
        assert target in anchors(path) if target[0] == "#" else (folder / target).is_file(), target
