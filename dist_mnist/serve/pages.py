"""The two pages, each in one piece, with a policy that allows its own script and style alone."""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class Page(NamedTuple):
    """A page and its Content-Security-Policy."""

    html: str
    policy: str


def front_page() -> Page:
    """Return the page where you draw."""
    return _page(_with_parts((FOLDER / "page.html").read_text(encoding="utf-8")))


def documentation(openapi: dict[str, Any]) -> Page:
    """Return a readable page of the API, made from its OpenAPI description."""
    template = _with_parts((FOLDER / "docs.html").read_text(encoding="utf-8"))
    operations = [
        _operation(f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, one) for name, one in openapi["components"]["schemas"].items()]
    for key, parts in {"operations": operations, "schemas": schemas}.items():
        template = template.replace(f"<!-- {key} -->", "\n".join(parts))
    return _page(template.replace("<!-- about -->", html.escape(openapi["info"]["description"])))


def _with_parts(template: str) -> str:
    """Put files in the place of comments that name them, as in `/* page.css */`."""
    return re.sub(
        r"/\* (page\.\w+) \*/",
        lambda found: (FOLDER / found[1]).read_text(encoding="utf-8"),
        template,
    )


def _page(text: str) -> Page:
    """Return a page with the policy for it; https://www.w3.org/TR/CSP3/#match-element-to-source-list."""
    allowed = {"style": "'none'", "script": "'none'"}
    for kind, content in INLINE.findall(text):
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
    return Page(text, "; ".join(f"{key} {value}" for key, value in policy.items()))


def _operation(title: str, operation: dict[str, Any]) -> str:
    rows = []
    if "requestBody" in operation:
        body = operation["requestBody"]
        rows.append(("body", html.escape(f"{body['description']} {', '.join(body['content'])}")))
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        rows.append((status, f"{html.escape(response['description'])} {_type(schema)}"))
    text = operation.get("description", f"{operation['summary']}.")
    return f"<section><h2><code>{title}</code></h2><p>{_text(text)}</p>{_table(rows)}</section>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = [
        (key, f"{_type(one)}: {html.escape(one['description'])}")
        for key, one in schema["properties"].items()
    ]
    text = _text(schema["description"])
    return f'<section><h3 id="{name}">{name}</h3><p>{text}</p>{_table(rows)}</section>'


def _text(description: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(description))


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "items" in schema:
        return f"array of {_type(schema['items'])}"
    return str(schema["type"])


def _table(rows: list[tuple[str, str]]) -> str:
    lines = (
        f'<tr><th scope="row"><code>{key}</code></th><td>{value}</td></tr>' for key, value in rows
    )
    return f"<table>{''.join(lines)}</table>"
