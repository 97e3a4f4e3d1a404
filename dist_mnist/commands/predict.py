"""Reads the digits in pictures: files, folders, patterns, or standard input."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL.Image import Image

from dist_mnist.commands.cli import ReportedError
from dist_mnist.config.commands import AnswerFormat, PredictConfig
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.overrides import in_home
from dist_mnist.data.decode import SUFFIXES, read_picture
from dist_mnist.digits.reading import Reading, check_reads_pictures, read, shown
from dist_mnist.digits.sheet import Row, Seen, draw_sheet, make_row
from dist_mnist.models.classifier import Classifier, load_classifier

COLUMNS = ("path", "label", "confidence")


def run(config: PredictConfig) -> None:
    """Print the digits in each picture, and draw a sheet of all pictures if a file is named.

    Raises:
        InputError: The network cannot be used, or the sheet cannot be written.
        ReportedError: Some pictures could not be decoded.
    """
    classifier = load_classifier(config.checkpoint, trusted_modules=config.trusted_modules)
    check_reads_pictures(classifier)
    names = [name for word in config.images for name in _expand(word)]
    rows: list[Row] = []
    count = 0
    if config.format is AnswerFormat.csv:
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
    classifier: Classifier, names: Sequence[str], plain: bool
) -> Iterator[tuple[str, Image, Reading]]:
    """Yield the reading of each picture; report pictures that cannot be decoded, and go on."""
    for name in names:
        try:
            picture = read_picture(sys.stdin.buffer.read() if name == "-" else Path(name))
        except InputError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            yield name, picture, read(classifier, picture, plain)


def _expand(word: str) -> list[str]:
    """Return the pictures that a word stands for: those in a folder, or that a pattern matches.

    A word that stands for nothing is returned unchanged, so that reading it reports it.
    """
    path = Path(in_home(word))
    if path.is_dir():
        found = [str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    elif word == "-" or path.exists():
        return [str(path)]
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207, any folder in any place
    return sorted(found) or [str(path)]


def _line(name: str, reading: Reading, form: AnswerFormat) -> str:
    if form is AnswerFormat.json:
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
    confidence = "" if reading.confidence is None else f"{reading.confidence:.4f}"
    if form is AnswerFormat.csv:
        return _csv_line((name, reading.label or "", confidence))
    return f"{name}: {reading.label} {confidence}" if reading.label else f"{name}: no digit found"


def _csv_line(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # as with `| head`: the reader is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _row(name: str, picture: Image, reading: Reading) -> Row:
    answers = zip(reading.digits, reading.labels, reading.confidences, strict=True)
    seen = [
        Seen(shown(digit), digit.box, f"{label}  {100 * confidence:.1f} %")
        for digit, label, confidence in answers
    ]
    return make_row(name if seen else f"{name}: no digit found", picture, seen)
