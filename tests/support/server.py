"""A real server on the loopback address, and requests as its clients send them."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = "open "


class Server(NamedTuple):
    """A server that listens.

    Attributes:
        url: Where, such as http://127.0.0.1:40123.
        process: Its process.
        printed: Its output before the address.
    """

    url: str
    process: "subprocess.Popen[str]"
    printed: str

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


class Response(NamedTuple):
    """The answer of a server."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(*overrides: str, cwd: Path) -> Iterator[Server]:
    """Run `python -m dist_mnist serve` on a free port until the block ends."""
    command = [sys.executable, "-m", "dist_mnist", "serve", "port=0", *overrides]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell makes background programs ignore Ctrl-C, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            printed: list[str] = []
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(SHOWN):
                    url = line.removeprefix(SHOWN).split()[0]
                    yield Server(url, process, "".join(printed))
                    return
                printed.append(line)
            raise AssertionError(f"the server has not started:\n{''.join(printed)}")
        finally:
            process.kill()


def request(
    server: Server,
    method: str,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
    **headers: str,
) -> Response:
    """Send one request; `content_type="image/png"` gives a header of that name."""
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        return _response(connection.getresponse())
    finally:
        connection.close()


def _response(answer: http.client.HTTPResponse) -> Response:
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Response(answer.status, headers, answer.read())


def post(server: Server, picture: bytes, content_type: str = "image/png") -> Response:
    """Have a picture classified; its bytes are sent unchanged."""
    return request(server, "POST", "/predict", picture, content_type=content_type)


def form(picture: bytes, field: str = "file") -> tuple[bytes, str]:
    """Return a form with a picture, as a browser sends it, and its content type."""
    head = (
        f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n'
        f"Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + picture + b"\r\n--limit--\r\n"
    return body, "multipart/form-data; boundary=limit"
