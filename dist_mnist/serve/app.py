"""The routes: the page, the API, and the headers that protect them."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError
from dist_mnist.digits.reading import stack
from dist_mnist.distributed.cpu_threads import usable_cores
from dist_mnist.serve import pages
from dist_mnist.serve.answers import Answer, Health, Model, Problem, to_answer
from dist_mnist.serve.batches import Batcher
from dist_mnist.serve.network import Network, find
from dist_mnist.serve.uploads import (
    FORM,
    MOST_BYTES,
    PICTURES,
    RAW,
    limit_bodies,
    read_upload,
)

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
MOST_READERS = 4  # pictures decoded at a time: a large one takes some hundred megabytes
NOTHING_LOADS = "default-src 'none'; frame-ancestors 'none'"  # of an answer that is no page

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}},
        "required": ["file"],
        "additionalProperties": False,
    },
    "encoding": {"file": {"contentType": ", ".join(PICTURES)}},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": f"One picture of at most {MOST_BYTES // 2**20} MB.",
        "content": {**dict.fromkeys((*PICTURES, RAW), _BINARY), FORM: _FORM},
    }
}
PROBLEMS = {
    408: "The picture took too long to come.",
    413: "The picture is too large.",
    415: "What was sent is not a picture, by its own account.",
    422: "The picture cannot be read, or there is no digit in it.",
}
ABOUT = (
    "Reads handwritten digits. Send a picture, such as a scan, a photograph or a drawing; each "
    "digit in it is cut out, brought into the form of the training images, and classified."
)


def build_app(network: Network) -> ASGIApp:
    """Return the routes, all answered by one network, behind strict headers."""
    batcher = Batcher(network.classifier)
    readers = ThreadPoolExecutor(
        max_workers=min(usable_cores(), MOST_READERS), thread_name_prefix="reader"
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answering = asyncio.create_task(batcher.run())
        yield
        answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
        readers.shutdown(wait=False)

    app = FastAPI(
        title="dist_mnist",
        version=__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from a server elsewhere
        redoc_url=None,
    )
    _add_prediction(app, network, batcher, readers)
    _add_descriptions(app, network, batcher)
    _add_pages(app)
    app.add_exception_handler(Exception, tell_of_failure)
    app.add_middleware(limit_bodies)
    return protect(app)


def _add_prediction(
    app: FastAPI, network: Network, batcher: Batcher, readers: ThreadPoolExecutor
) -> None:
    @app.post(
        "/predict",
        summary="Read the digits in a picture",
        response_description="What was read.",
        openapi_extra=BODY,
        responses={
            status: {"model": Problem, "description": PROBLEMS[status]} for status in PROBLEMS
        },
    )
    async def predict(request: Request) -> Answer:
        """Read the digits in a picture: the first one, and in `more` those after it."""
        content = await read_upload(request)
        try:
            loop = asyncio.get_running_loop()
            digits = await loop.run_in_executor(readers, find, network, content)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        rows = await batcher.answer(stack(digits))
        return to_answer(digits, rows, network.classifier.classes)


def _add_descriptions(app: FastAPI, network: Network, batcher: Batcher) -> None:
    description = network.describe()
    blank = torch.zeros(1, *network.classifier.image_shape, dtype=torch.uint8)

    @app.get("/health", summary="Whether the server answers", response_description="It does.")
    async def health() -> Health:
        await batcher.answer(blank)
        return Health(status="ok")

    @app.get("/model", summary="The network that answers", response_description="Its description.")
    async def model() -> Model:
        return description


def _add_pages(app: FastAPI) -> None:
    front = pages.front_page()
    documentation = pages.documentation(app.openapi())

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def draw() -> HTMLResponse:
        return HTMLResponse(front.html, headers={"content-security-policy": front.policy})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {"content-security-policy": documentation.policy}
        return HTMLResponse(documentation.html, headers=headers)


async def tell_of_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that met an error of ours; the server prints its stack."""
    return JSONResponse({"detail": "the server failed at this request."}, status_code=500)


def protect(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that every answer has the headers that keep browsers strict."""

    async def protected(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                ours = {"content-security-policy": NOTHING_LOADS, **HEADERS}
                extra = [(name.encode(), value.encode()) for name, value in ours.items()]
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in extra if pair[0] not in given),
                ]
            await send(message)

        await app(scope, receive, send_with_headers)

    return protected
