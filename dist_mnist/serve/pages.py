"""The two pages, each in one piece, with a policy that allows only its own script and style."""

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
PART = re.compile(r"/\* (\S+\.(?:css|js)) \*/")  # a comment that names the file to put there


class Page(NamedTuple):
    """A page and its Content-Security-Policy."""

    html: str
    policy: str


def load_page(name: str) -> Page:
    """Return a page of this folder, with the files that its comments name put into it.

    The policy names the style and the script by their hashes:
    https://www.w3.org/TR/CSP3/#match-element-to-source-list
    """
    html = PART.sub(lambda comment: _read(comment[1]), _read(name))
    allowed = {"style": "'none'", "script": "'none'"}
    for kind, content in INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        allowed[kind] = f"'sha256-{digest}'"
    policy = {
        "default-src": "'none'",
        "script-src": allowed["script"],
        "style-src": allowed["style"],
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(html, "; ".join(f"{key} {value}" for key, value in policy.items()))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
