"""The answers of the API."""

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from pydantic import BaseModel, Field

from dist_mnist.digits.find import Digit
from dist_mnist.digits.reading import shown

SURE = 0.8  # most wrong answers to drawings are less confident, and few right ones


class Reading(BaseModel):
    """One digit, and how sure the network is of it."""

    label: str = Field(description="the likeliest class", examples=["7"])
    confidence: float = Field(ge=0, le=1, description="its probability")
    sure: bool = Field(description=f"whether the confidence is at least {SURE}")
    runner_up: str = Field(description="the second likeliest class", examples=["1"])
    probabilities: list[float] = Field(description="of all classes, in their order; the sum is 1")
    box: tuple[int, int, int, int] = Field(
        description="where it is in the picture: left, top, right, bottom, in pixels"
    )
    picture: str = Field(description="the pixels that the network sees: a PNG, in base64")


class Answer(Reading):
    """The first digit in a picture, and those after it, as one reads."""

    more: list[Reading] = Field(description="the digits after it, if there are any")


class Model(BaseModel):
    """The network that answers."""

    network: str = Field(description="its class", examples=["ConvNet"])
    parameters: int = Field(description="how many numbers were trained")
    classes: list[str] = Field(description="what it can answer, in the order of probabilities")
    checkpoint: str | None = Field(description="its file; null for the one in the package")
    sure_from: float = Field(description="the confidence from which an answer counts as sure")


class Health(BaseModel):
    """The state of the server."""

    status: str = Field(description="ok", examples=["ok"])


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one sentence")


def to_answer(
    digits: Sequence[Digit], probabilities: torch.Tensor, classes: Sequence[str]
) -> Answer:
    """Return what the API answers.

    Args:
        digits: At least one, in the order of reading.
        probabilities: float32 (digits, classes).
        classes: Their names.
    """
    first, *more = (
        _to_reading(digit, row, classes) for digit, row in zip(digits, probabilities, strict=True)
    )
    return Answer(**first.model_dump(), more=more)


def _to_reading(digit: Digit, row: torch.Tensor, classes: Sequence[str]) -> Reading:
    (confidence, _), (best, second) = (part.tolist() for part in row.topk(2))
    return Reading(
        label=classes[best],
        confidence=confidence,
        sure=confidence >= SURE,
        runner_up=classes[second],
        probabilities=row.tolist(),
        box=digit.box,
        picture=_png(shown(digit)),
    )


def _png(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
