"""The answers of the API."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from pydantic import BaseModel, Field

from dist_mnist.digits.find import Digit
from dist_mnist.digits.reading import shown
from dist_mnist.models.classifier import Classifier

SURE = 0.8  # most wrong answers to drawings are less confident, and few right ones


class DigitAnswer(BaseModel):
    """One digit."""

    label: str = Field(description="the most likely class", examples=["7"])
    confidence: float = Field(ge=0, le=1, description="its probability")
    sure: bool = Field(description=f"whether the confidence is at least {SURE}")
    runner_up: str = Field(description="the second most likely class", examples=["1"])
    probabilities: list[float] = Field(description="one per class, in order; they sum to 1")
    box: tuple[int, int, int, int] = Field(
        description="its place in the picture, in pixels: left, top, right, bottom"
    )
    picture: str = Field(description="what the network sees: a PNG in base64")


class Answer(DigitAnswer):
    """The first digit in a picture, and the others."""

    more: list[DigitAnswer] = Field(description="the other digits, in reading order")


class Model(BaseModel):
    """The network that answers."""

    network: str = Field(description="its Python class", examples=["ConvNet"])
    parameters: int = Field(description="how many parameters it has")
    classes: list[str] = Field(description="their names, in the order of the probabilities")
    checkpoint: str | None = Field(description="its file, or null for the one in the package")
    sure_from: float = Field(description="the lowest confidence of a sure answer")


class Health(BaseModel):
    """The state of the server."""

    status: str = Field(description="ok", examples=["ok"])


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one sentence")


def describe(classifier: Classifier, checkpoint: Path | None) -> Model:
    """Return the description of a network; a checkpoint of None is the one in the package."""
    return Model(
        network=type(classifier.model).__name__,
        parameters=sum(parameter.numel() for parameter in classifier.model.parameters()),
        classes=[*classifier.classes],
        checkpoint=None if checkpoint is None else str(checkpoint),
        sure_from=SURE,
    )


def to_answer(
    digits: Sequence[Digit], probabilities: torch.Tensor, classes: Sequence[str]
) -> Answer:
    """Return the answer for at least one digit, in reading order, and float32 (digits, classes)."""
    first, *more = (
        _digit_answer(digit, row, classes) for digit, row in zip(digits, probabilities, strict=True)
    )
    return Answer(**first.model_dump(), more=more)


def _digit_answer(digit: Digit, row: torch.Tensor, classes: Sequence[str]) -> DigitAnswer:
    (confidence, _), (best, second) = (part.tolist() for part in row.topk(2))
    return DigitAnswer(
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
