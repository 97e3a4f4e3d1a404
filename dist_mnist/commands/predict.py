"""Reads the digits in pictures: files, folders, patterns, or standard input."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from dist_mnist.commands.cli import ReportedError, command
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.overrides import checked_path, in_home

if TYPE_CHECKING:
    from PIL.Image import Image

    from dist_mnist.digits.reading import Reading
    from dist_mnist.digits.sheet import Row
    from dist_mnist.models.classifier import Classifier

COLUMNS = ("path", "label", "confidence")


class Format(Enum):
    """The form in which answers are printed."""

    text = "text"
    json = "json"  # an object a line
    csv = "csv"


@dataclass
class PredictConfig:
    """The pictures, the network that reads them, and the form of its answers."""

    images: list[str]
    checkpoint: str | None
    format: Format
    save: str | None
    plain: bool
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        self.save = checked_path("save", self.save, "it must be a .png, or null for no picture")


def main() -> None:
    """Predict, as the command line says."""
    command("predict", PredictConfig, _predict, words="images")


def _predict(config: PredictConfig) -> None:
    """Print what is read in each picture, and draw it if a file is named.

    Raises:
        InputError: Nothing can be read at all.
        ReportedError: Some picture could not be read.
    """
    from dist_mnist.digits.reading import check_reads_pictures
    from dist_mnist.digits.sheet import draw_sheet
    from dist_mnist.models.classifier import load_classifier

    if not config.images:
        raise InputError(
            "no picture is given: name files, folders or patterns, as in `dist-mnist predict "
            "photo.jpg`, or - for standard input."
        )
    classifier = load_classifier(config.checkpoint, trusted_modules=config.trusted_modules)
    check_reads_pictures(classifier)
    names = [name for word in config.images for name in _expand(word)]
    rows: list[Row] = []
    count = 0
    if config.format is Format.csv:
        _print(_csv_line(COLUMNS))
    for name, picture, reading in _readings(classifier, names, config.plain):
        _print(_line(name, reading, config.format))
        count += 1
        if config.save is not None:
            rows.append(_row(name, picture, reading))
    if config.save is not None:
        draw_sheet(Path(config.save), rows)
    if count < len(names):
        raise ReportedError


def _readings(
    classifier: "Classifier", names: Sequence[str], plain: bool
) -> Iterator[tuple[str, "Image", "Reading"]]:
    """Yield what is read in each picture; report those that cannot be read, and go on."""
    from dist_mnist.data.decode import read_picture
    from dist_mnist.digits.reading import read

    for name in names:
        try:
            picture = read_picture(sys.stdin.buffer.read() if name == "-" else Path(name))
        except InputError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            yield name, picture, read(classifier, picture, plain)


def _expand(word: str) -> list[str]:
    """Return the pictures that a word stands for: those in a folder, or that a pattern matches.

    A word that stands for nothing is returned as it is, so that it is reported where it is read.
    """
    from dist_mnist.data.decode import SUFFIXES

    path = Path(in_home(word))
    if path.is_dir():
        found = [str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    elif word == "-" or path.exists():
        return [str(path)]
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207, any folder in any place
    return sorted(found) or [str(path)]


def _line(name: str, reading: "Reading", form: Format) -> str:
    if form is Format.json:
        digits = zip(reading.digits, reading.labels, reading.confidences, strict=True)
        answer = {
            "path": name,
            "label": reading.label,
            "confidence": reading.confidence,
            "digits": [
                {"label": label, "confidence": confidence, "box": digit.box}
                for digit, label, confidence in digits
            ],
        }
        return json.dumps(answer, ensure_ascii=False)
    sure = "" if reading.confidence is None else f"{reading.confidence:.4f}"
    if form is Format.csv:
        return _csv_line((name, reading.label or "", sure))
    return f"{name}: {reading.label} {sure}" if reading.label else f"{name}: no digit found"


def _csv_line(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # as with `| head`: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _row(name: str, picture: "Image", reading: "Reading") -> "Row":
    from dist_mnist.digits.reading import shown
    from dist_mnist.digits.sheet import Seen, make_row

    answers = zip(reading.labels, reading.confidences, strict=True)
    texts = [f"{label}  {100 * sure:.1f} %" for label, sure in answers]
    seen = [
        Seen(shown(digit), digit.box, text)
        for digit, text in zip(reading.digits, texts, strict=True)
    ]
    return make_row(name if seen else f"{name}: no digit found", picture, seen)
