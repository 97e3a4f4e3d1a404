"""The routes: the page, the API, and the headers that protect them."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import read_picture
from dist_mnist.digits.reading import check_reads_pictures, find_images, stack
from dist_mnist.distributed.cpu_threads import usable_cores
from dist_mnist.models.classifier import Classifier, find_checkpoint, load_classifier
from dist_mnist.serve.answers import Answer, Health, Model, Problem, describe, to_answer
from dist_mnist.serve.pages import load_page
from dist_mnist.serve.uploads import BODY, PROBLEMS, limit_bodies, read_upload

logger = logging.getLogger(__name__)

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # pages have theirs
}
MOST_READERS = 4  # pictures decoded at a time: a large one takes some hundred megabytes
MOST_DIGITS = 100  # in one picture
ABOUT = (
    "Reads handwritten digits. Send a picture, such as a scan, a photograph or a drawing; each "
    "digit in it is cut out, preprocessed like the training images, and classified."
)


def build_app(checkpoint: str | None, trusted_modules: Sequence[str]) -> ASGIApp:
    """Load a network and return the page and the API that it answers.

    Args:
        checkpoint: As `find_checkpoint` takes it.

    Raises:
        InputError: The network cannot be loaded, or does not take 28 x 28 gray pixels.
    """
    path = find_checkpoint(checkpoint)
    classifier = load_classifier(path, trusted_modules=trusted_modules)
    torch.set_num_threads(1)  # for a few small images, more threads cost more than they bring
    check_reads_pictures(classifier)
    model = describe(classifier, None if checkpoint is None else path)
    logger.info("%s with %s parameters", model.network, f"{model.parameters:,}")
    app = FastAPI(
        title="dist_mnist",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # FastAPI's own pages load their scripts from another server
        redoc_url=None,
    )
    _add_api(app, classifier, model)
    _add_page(app, "/", "page.html")
    _add_page(app, "/docs", "docs.html")
    app.add_exception_handler(Exception, answer_failure)
    app.add_middleware(limit_bodies)
    return protect(app)


def _add_api(app: FastAPI, classifier: Classifier, description: Model) -> None:
    readers = ThreadPoolExecutor(min(usable_cores(), MOST_READERS), thread_name_prefix="reader")
    turn = Lock()

    def check() -> None:
        with turn:
            classifier(torch.zeros(1, *classifier.image_shape, dtype=torch.uint8))

    @app.post(
        "/predict",
        summary="Read the digits in a picture",
        response_description="The digits.",
        openapi_extra=BODY,
        responses={
            status: {"model": Problem, "description": text} for status, text in PROBLEMS.items()
        },
    )
    async def predict(request: Request) -> Answer:
        """Read the digits in a picture: the first one, and the others in `more`."""
        content = await read_upload(request)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(readers, read, classifier, turn, content)
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/health", summary="Check that the network answers", response_description="It does.")
    async def health() -> Health:
        await asyncio.to_thread(check)
        return Health(status="ok")

    @app.get("/model", summary="Describe the network", response_description="The network.")
    async def model() -> Model:
        return description


def read(classifier: Classifier, turn: Lock, content: bytes) -> Answer:
    """Return the answer to an uploaded picture, in any thread.

    The network computes while `turn` is held, because it need not be thread-safe.

    Raises:
        InputError: The content is not a picture, or it has no digit or over `MOST_DIGITS`.
    """
    digits = find_images(classifier, read_picture(content))
    if not digits:
        raise InputError("there is no digit in the picture.")
    if len(digits) > MOST_DIGITS:
        raise InputError(
            f"the picture has {len(digits)} digits: send at most {MOST_DIGITS} at a time."
        )
    with turn:
        probabilities = classifier(stack(digits))
    return to_answer(digits, probabilities, classifier.classes)


def _add_page(app: FastAPI, path: str, name: str) -> None:
    page = load_page(name)

    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page.html, headers={"content-security-policy": page.policy})


async def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that met a bug; the server prints the traceback."""
    return JSONResponse({"detail": "the server failed at this request."}, status_code=500)


def protect(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that every answer has `HEADERS`, unless it sets them itself."""
    ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def protected(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                missing = [header for header in ours if header[0] not in present]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        await app(scope, receive, send_with_headers)

    return protected
