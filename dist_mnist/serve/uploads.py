"""Request bodies: one picture each, limited in size and time."""

import asyncio
from collections.abc import Awaitable, Callable

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 10 * 1024 * 1024
READING_SECONDS = 20.0  # for a client to send its picture

FORM = "multipart/form-data"
RAW = "application/octet-stream"
PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff")

# The OpenAPI description of the body, and the statuses of bodies that are refused.
_BINARY = {"type": "string", "format": "binary"}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"file": _BINARY},
        "required": ["file"],
        "additionalProperties": False,
    },
    "encoding": {"file": {"contentType": ", ".join(PICTURES)}},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": f"One picture of at most {MOST_BYTES // 2**20} MB.",
        "content": {kind: {"schema": _BINARY} for kind in (*PICTURES, RAW)} | {FORM: _FORM},
    }
}
PROBLEMS = {
    408: f"The picture did not arrive within {READING_SECONDS:.0f} s.",
    413: f"The picture is larger than {MOST_BYTES // 2**20} MB.",
    415: "The content type is not an image.",
    422: "The picture cannot be decoded, or there is no digit in it.",
}


async def read_upload(request: Request) -> bytes:
    """Return the picture in a request: the whole body, or the `file` of a form.

    Raises:
        HTTPException: With a status of `PROBLEMS`, or 400 if the client has gone.
    """
    kind = request.headers.get("content-type", RAW).partition(";")[0].strip().lower()
    if kind != FORM and kind != RAW and not kind.startswith("image/"):
        raise HTTPException(
            415,
            f"content-type={kind} is not a picture: send image/png or another image type, or a "
            f"form ({FORM}) with the picture as its file, as in `curl -F file=@seven.png`.",
        )
    try:
        read = _read_form(request) if kind == FORM else request.body()
        content = await asyncio.wait_for(read, READING_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(
            408, f"the picture did not arrive within {READING_SECONDS:.0f} s: send a smaller one."
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "the client closed the connection.") from None
    if not content:
        raise HTTPException(422, "the picture is empty: send its bytes.")
    return content


async def _read_form(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=0) as form:
            part = form.get("file")
            if isinstance(part, UploadFile):
                return await part.read()
    except FormParserError as error:  # older versions of Starlette let it pass
        raise HTTPException(422, f"the form cannot be read: {error}") from error
    except HTTPException as error:
        if error.status_code != 400:  # Starlette's status for a malformed form
            raise
        raise HTTPException(422, f"the form cannot be read: {error.detail}") from error
    raise HTTPException(422, "the form has no file: send the picture as `file`.")


def limit_bodies(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that it never reads more than `MOST_BYTES` of a request.

    Too large a Content-Length is refused at once; otherwise bytes are counted as they arrive.
    """

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        return await app(scope, _counting(receive, _declared_size(scope)), send)

    return limited


def _declared_size(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _counting(receive: Receive, declared: int) -> Callable[[], Awaitable[Message]]:
    received = 0

    async def counted() -> Message:
        nonlocal received
        if declared <= MOST_BYTES:
            message = await receive()
            received += len(message.get("body", b""))
            if received <= MOST_BYTES:
                return message
        raise HTTPException(
            413, f"the picture is larger than {MOST_BYTES // 2**20} MB: send a smaller one."
        )

    return counted
