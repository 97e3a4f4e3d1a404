"""The API over real connections."""

import base64
import io
import re
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from threading import Lock
from typing import Any

import pytest
from PIL import Image

from tests.support.server import Server, form, post, request
from tests.support.strokes import draw, png

pytest.importorskip("fastapi")
pytestmark = pytest.mark.serve

MEGABYTE = 2**20


def test_an_answer_is_complete(server: Server) -> None:
    answer = post(server, png(draw(3)))
    assert answer.status == 200
    said = answer.json
    assert said["label"] == "3"
    assert len(said["probabilities"]) == 10
    assert sum(said["probabilities"]) == pytest.approx(1, abs=1e-5)
    ranked = sorted(said["probabilities"], reverse=True)
    assert said["confidence"] == said["probabilities"][3] == ranked[0]
    assert said["probabilities"][int(said["runner_up"])] == ranked[1]
    left, top, right, bottom = said["box"]
    assert 0 <= left < right <= 280
    assert 0 <= top < bottom <= 280
    seen = Image.open(io.BytesIO(base64.b64decode(said["picture"])))
    assert (seen.format, seen.size, seen.mode) == ("PNG", (28, 28), "L")
    assert seen.getextrema() == (0, 255)


def test_a_form_is_answered_like_a_body(server: Server) -> None:
    picture = png(draw(5))
    body, kind = form(picture)
    as_form = request(server, "POST", "/predict", body, content_type=kind)
    assert as_form.json == post(server, picture).json
    assert as_form.json == post(server, picture, "application/octet-stream").json


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_formats(server: Server, kind: str) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(draw(0)))).save(stream, kind)
    answer = post(server, stream.getvalue(), f"image/{kind.lower()}")
    assert answer.json["label"] == "0"


def test_concurrent_requests_get_the_right_answers(server: Server) -> None:
    pictures = [png(draw(seed)) for seed in range(40)]
    alone = [post(server, picture).json for picture in pictures]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda picture: post(server, picture).json, pictures * 3))
    assert together == alone * 3


def test_a_declared_size_is_refused_at_once(server: Server) -> None:
    answer = request(
        server, "POST", "/predict", b"", content_type="image/png", content_length="99999999999"
    )
    assert answer.status == 413
    assert answer.json["detail"] == "the picture is larger than 10 MB: send a smaller one."


def test_an_undeclared_size_is_counted(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b"\0" * MEGABYTE

    answer = request(server, "POST", "/predict", chunks(), content_type="image/png")
    assert answer.status == 413


def test_a_large_form_is_refused(server: Server) -> None:
    body, kind = form(b"\0" * 11 * MEGABYTE)
    assert request(server, "POST", "/predict", body, content_type=kind).status == 413


@pytest.mark.slow
def test_a_slow_client_is_given_up(server: Server) -> None:
    with closing(HTTPConnection(server.address, timeout=60)) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"the beginning")
        answer = connection.getresponse()
        assert answer.status == 408
        assert b"the picture did not arrive within 20 s" in answer.read()


@pytest.mark.parametrize(
    "kind", ["application/json", "text/html", "application/x-www-form-urlencoded", "", "nonsense"]
)
def test_other_content_types_are_refused(server: Server, kind: str) -> None:
    answer = post(server, png(draw(1)), kind)
    assert answer.status == 415
    assert "is not a picture: send image/png" in answer.json["detail"]


def bomb(side: int) -> bytes:
    """Return a PNG of a few kilobytes whose header claims side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * MEGABYTE))


def blank() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (280, 280), 255).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "not a picture"),
        (png(draw(2))[:-300], "damaged"),
        (bomb(60_000), "pixels"),
        (bomb(2**31 - 1), "pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (blank(), "no digit"),
    ],
    ids=["empty", "text", "cut", "bomb", "huge", "svg", "blank"],
)
def test_unreadable_pictures_are_refused(server: Server, picture: bytes, reason: str) -> None:
    answer = post(server, picture)
    assert answer.status == 422
    assert reason in answer.json["detail"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(png(draw(4)), field="picture")[0], "multipart/form-data; boundary=limit"),
        (form(png(draw(4)))[0][:-40], "multipart/form-data; boundary=limit"),
        (form(png(draw(4)))[0], "multipart/form-data; boundary=another"),
        (form(png(draw(4)))[0], "multipart/form-data"),
        (form(png(draw(4)))[0][:-11] * 2, "multipart/form-data; boundary=limit"),
        (b"--limit\r\n" + b"a: b\r\n" * 20_000, "multipart/form-data; boundary=limit"),
    ],
    ids=["field", "cut", "boundary", "no boundary", "two", "headers"],
)
def test_malformed_forms_are_refused(server: Server, body: bytes, kind: str) -> None:
    answer = request(server, "POST", "/predict", body, content_type=kind)
    assert answer.status == 422
    assert "form" in answer.json["detail"]


def test_every_answer_has_strict_headers(server: Server) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/health"),
        ("GET", "/nowhere"),
        ("PUT", "/predict"),
    ):
        headers = request(server, method, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_fetches_nothing(server: Server, path: str) -> None:
    answer = request(server, "GET", path)
    assert answer.status == 200
    text = answer.body.decode()
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", text)
    assert not re.findall(r"@import|url\(|<script [^>]*src|<link [^>]*stylesheet", text)
    assert not re.findall(r"/\* \S+\.(?:css|js) \*/", text)  # files that would be put there


def test_the_api_describes_itself(server: Server) -> None:
    description = request(server, "GET", "/openapi.json").json
    assert set(description["paths"]) == {"/predict", "/health", "/model"}
    answers = description["paths"]["/predict"]["post"]["responses"]
    assert set(answers) == {"200", "408", "413", "415", "422"}


def test_the_docs_say_what_the_description_says(server: Server) -> None:
    description = request(server, "GET", "/openapi.json").json
    docs = request(server, "GET", "/docs").body.decode()
    rows = documented_rows(docs)
    body = rows["post /predict"].pop("body")
    request_body = description["paths"]["/predict"]["post"]["requestBody"]
    assert body.startswith(request_body["description"].rstrip(".").lower())
    assert all(content_type in body for content_type in request_body["content"])
    expected = described_rows(description)
    answer = expected["answer"]
    assert expected.pop("digitanswer") == {key: answer[key] for key in answer if key != "more"}
    assert rows.pop("digitanswer") == {}  # one sentence that points to the answer
    assert rows == expected
    assert 'href="openapi.json"' in docs


def documented_rows(docs: str) -> dict[str, dict[str, str]]:
    """Return the table of each section of the page, in lower case and without tags."""

    def plain(html: str) -> str:
        return re.sub(r"<.*?>", "", html).lower()

    sections = re.findall(r"<section>\s*<h[23].*?>(.*?)</h[23]>(.*?)</section>", docs, re.DOTALL)
    row = re.compile(r"<tr><th.*?>(.*?)</th><td>(.*?)</td></tr>")
    return {
        plain(title): {plain(key): plain(text) for key, text in row.findall(content)}
        for title, content in sections
    }


def described_rows(description: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the statuses and fields of an OpenAPI description, in lower case."""
    rows = {}
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            rows[f"{method} {path}"] = {
                status: f"{type_of(answer['content']['application/json']['schema'])}: "
                f"{answer['description']}".lower()
                for status, answer in operation["responses"].items()
            }
    for name, schema in description["components"]["schemas"].items():
        rows[name.lower()] = {
            key: f"{type_of(field)}: {field['description']}".lower()
            for key, field in schema["properties"].items()
        }
    return rows


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(map(type_of, schema["anyOf"]))
    if schema["type"] == "array":
        # FastAPI describes a tuple by its items, which all have one type here.
        (item,) = {type_of(item) for item in schema.get("prefixItems", [schema.get("items")])}
        return f"array of {item}"
    return str(schema["type"])


def test_the_network_is_described(server: Server) -> None:
    assert request(server, "GET", "/health").json == {"status": "ok"}
    model = request(server, "GET", "/model").json
    assert model["classes"] == [*"0123456789"]
    assert model["checkpoint"] is None
    assert model["parameters"] > 0


def test_the_network_answers_one_picture_at_a_time() -> None:
    from dist_mnist.models.classifier import load_classifier
    from dist_mnist.serve.app import read

    classifier = load_classifier()
    inside, most_inside = [0], [0]

    def enter(*_: Any) -> None:
        inside[0] += 1
        most_inside[0] = max(most_inside[0], inside[0])
        time.sleep(0.01)  # so that another thread would come in

    def leave(*_: Any) -> None:
        inside[0] -= 1

    classifier.model.register_forward_pre_hook(enter)
    classifier.model.register_forward_hook(leave)
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(partial(read, classifier, Lock()), [png(draw(3))] * 8)]
    assert {answer.label for answer in answers} == {"3"}
    assert most_inside == [1]
