"""The plots of a run: its curves, and its predictions on the test set."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from dist_mnist.record.files import cannot_write, write_atomically
from dist_mnist.record.journal import read_journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
EXAMPLES_IN_A_ROW, LARGEST_EXAMPLE = 20, 48  # of the sheet for the report; pixels
TRAIN_COLOR, VALIDATION_COLOR = "#3b6fb6", "#d1682b"


@contextmanager
def _own_settings() -> Iterator[None]:
    """Use matplotlib's defaults instead of the user's settings; print dollar signs literally."""
    # A notebook's programs inherit its backend; where that is not installed, the import would fail.
    with patch.dict(os.environ, {"MPLBACKEND": "agg"}):
        import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The font may lack the letters of a class name: boxes take their place.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


@_own_settings()
def draw_curves(run_dir: Path) -> Path:
    """Draw loss and accuracy over the steps, train against validation; return the PNG's path."""
    lines = read_journal(run_dir / "metrics.jsonl")
    figure = _figure(9.0, 3.4)
    figure.set_layout_engine("constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw_metric(loss_axes, lines, "loss")
    loss_axes.set_yscale("log")
    loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.yaxis.set_minor_formatter("{x:g}")
    _draw_metric(accuracy_axes, lines, "accuracy")
    # The first steps score next to nothing, so show only the range near the validation scores.
    scores = [line.get("validation/accuracy") for line in lines if line["kind"] == "epoch"]
    worst = min((score for score in scores if score is not None), default=0.0)
    accuracy_axes.set_ylim(bottom=1 - min(1.0, max(0.01, 4 * (1 - worst))), top=1.0)
    accuracy_axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return _save(figure, run_dir, "curves")


def _draw_metric(axes: "Axes", lines: Sequence[dict[str, Any]], metric: str) -> None:
    def draw(kind: str, key: str, style: str, color: str, label: str) -> bool:
        chosen = [line for line in lines if line["kind"] == kind and line.get(key) is not None]
        if chosen:
            steps, values = [line["step"] for line in chosen], [line[key] for line in chosen]
            axes.plot(steps, values, style, color=color, label=label)
        return len(chosen) > 0

    train = (f"train/{metric}", ".-", TRAIN_COLOR, "train, while training")
    if not draw("step", *train):  # the run was too short for step lines
        draw("epoch", *train)
    draw("epoch", f"validation/{metric}", "o-", VALIDATION_COLOR, "validation, after each epoch")
    axes.set(title=metric, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


@_own_settings()
def draw_confusion(run_dir: Path, confusion: torch.Tensor, classes: Sequence[str]) -> Path:
    """Draw the confusion matrix; return the PNG's path.

    Args:
        confusion: Counts, int64 of shape (classes, classes), a row for each label.
        classes: The names of these classes; long ones are shortened.
    """
    count, classes = len(classes), [shorten(name, 24) for name in classes]
    figure = _figure(max(4.8, 0.28 * count), max(4.4, 0.26 * count))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    # Correct predictions would drown out the rest: color the mistakes only, but print all counts.
    mistakes = confusion.clone().fill_diagonal_(0)
    axes.imshow(mistakes.numpy(), cmap="Oranges")
    if count <= 12:
        for row, column in confusion.nonzero().tolist():
            color = "black" if mistakes[row, column] <= 0.6 * mistakes.max() else "white"
            text = str(int(confusion[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(count), classes, rotation=0 if count <= 12 else 90, fontsize=8)
    axes.set_yticks(range(count), classes, fontsize=8)
    axes.set(title="test set: label against prediction", xlabel="prediction", ylabel="label")
    return _save(figure, run_dir, "confusion_matrix")


@_own_settings()
def draw_calibration(run_dir: Path, bins: Sequence[tuple[float, float, int]], error: float) -> Path:
    """Draw accuracy against confidence; return the PNG's path.

    Args:
        bins: For each bin of confidence: its mean confidence, accuracy and number of predictions.
        error: The expected calibration error.
    """
    figure = _figure(4.8, 4.4)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), "--", color="gray", linewidth=1)
    confidences, accuracies, counts = zip(*(row for row in bins if row[2]), strict=True)
    axes.plot(confidences, accuracies, "-", color=VALIDATION_COLOR, linewidth=1)
    # Even a bin with one prediction is visible.
    sizes = [20 + 180 * count / max(counts) for count in counts]
    axes.scatter(confidences, accuracies, s=sizes, color=VALIDATION_COLOR)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="fraction right")
    axes.set_title(f"test set: expected calibration error {error:.4f}")
    axes.grid(alpha=0.3)
    return _save(figure, run_dir, "calibration")


@_own_settings()
def draw_mistakes(run_dir: Path, images: torch.Tensor, captions: Sequence[str]) -> Path:
    """Draw wrongly predicted images, each below its caption; return the PNG's path.

    Args:
        images: uint8 of shape (N, C, H, W).
        captions: Two lines for each image.
    """
    height, width = images.shape[2:]
    zoom = max(1, 96 // max(height, width))
    cell_width, cell_height = zoom * width + 16, zoom * height + 40
    columns, rows = 8, max(1, -(-len(images) // 8))
    figure = _figure(columns * cell_width / DPI, rows * cell_height / DPI)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = place % columns * cell_width + 8
        bottom = (rows - 1 - place // columns) * cell_height + 4
        pixels = image.movedim(0, -1).squeeze(-1)
        large = pixels.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
        # Directly onto the canvas: two dozen axes would take longer than validating an epoch.
        figure.figimage(large.numpy(), left, bottom, cmap="gray", vmin=0, vmax=255)
        x = (left + zoom * width / 2) / (columns * cell_width)
        y = (bottom + zoom * height + 4) / (rows * cell_height)
        figure.text(x, y, caption, ha="center", fontsize=8)
    return _save(figure, run_dir, "mistakes")


def draw_examples(run_dir: Path, images: torch.Tensor) -> Path:
    """Draw a sheet of square pictures without a margin, in rows of 20; return the PNG's path.

    Args:
        images: uint8 of shape (N, C, H, W).
    """
    from PIL import Image

    height, width = images.shape[2:]
    side = max(height, width)
    pixels = F.pad(
        images[:, : 3 if images.shape[1] == 3 else 1], (0, side - width, 0, side - height)
    )
    if side > LARGEST_EXAMPLE:
        pixels = F.interpolate(pixels.float(), LARGEST_EXAMPLE, mode="area").to(torch.uint8)
    missing = -len(pixels) % EXAMPLES_IN_A_ROW
    pixels = torch.cat((pixels, pixels.new_zeros(missing, *pixels.shape[1:])))
    rows = pixels.unflatten(0, (-1, EXAMPLES_IN_A_ROW))  # (row, column, C, H, W)
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(-1)
    content = io.BytesIO()
    Image.fromarray(sheet.contiguous().numpy()).save(content, "png")
    return _write(run_dir, "examples", content)


def shorten(name: str, most: int) -> str:
    """Return a name with at most `most` characters; an ellipsis stands for the rest."""
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"


def _figure(width: float, height: float) -> "Figure":
    """Return a figure in inches, made without pyplot, which keeps global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", run_dir: Path, name: str) -> Path:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return _write(run_dir, name, picture)


def _write(run_dir: Path, name: str, picture: io.BytesIO) -> Path:
    path = run_dir / "plots" / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_atomically(path, picture.getbuffer())
    return path
