"""Writes a checkpoint as ONNX, torch.export or safetensors, and reads it back to compare."""

import json
import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_mnist.commands.cli import command
from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import checked_path

if TYPE_CHECKING:
    import torch

    from dist_mnist.models.export import Exported, Function

logger = logging.getLogger(__name__)

BATCH_SIZE = 500  # of the comparison
TOLERANCE = 1e-4  # of a probability, or a logit relative to its size; float32 sums differ by less


class Format(Enum):
    """For what program the file is."""

    onnx = "onnx"
    torch_export = "torch_export"
    safetensors = "safetensors"


@dataclass
class ExportConfig:
    """The checkpoint, its new format, and the file to write."""

    checkpoint: str | None
    format: Format
    output: str | None
    preprocessing: bool
    data: dict[str, Any]
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        rule = "it must be a file, or null for one in this folder"
        self.output = checked_path("output", self.output, rule)


def main() -> None:
    """Export, as the command line says."""
    command("export", ExportConfig, _export)


def _export(config: ExportConfig) -> None:
    from dist_mnist.distributed.session import session
    from dist_mnist.models.export import require_packages
    from dist_mnist.record.console import log_to_console

    with session("cpu", timeout_seconds=60) as world:
        log_to_console(world.is_main)
        if world.is_main:
            require_packages(config.format.value)
            _write(config, _free_path(config))


def _free_path(config: ExportConfig) -> Path:
    from dist_mnist.models.export import SUFFIXES

    suffix = SUFFIXES[config.format.value]
    path = Path(config.output or f"model{suffix}")
    if path.suffix != suffix:
        raise InputError(
            f"output={path} does not fit format={config.format.value}: let it end in {suffix}."
        )
    if path.exists():
        raise InputError(f"output={path} exists: delete it, or choose another output.")
    return path


def _write(config: ExportConfig, path: Path) -> None:
    import torch

    from dist_mnist.config.schema import config_from_plain
    from dist_mnist.data.splits import load_part
    from dist_mnist.models.classifier import classifier_from_checkpoint, find_checkpoint
    from dist_mnist.models.export import Exported, encode, read_back
    from dist_mnist.record import checkpoint
    from dist_mnist.record.files import write_atomically

    kind, source = config.format.value, find_checkpoint(config.checkpoint)
    content = checkpoint.load(source)
    changes = {"data": config.data, "trusted_modules": config.trusted_modules}
    saved = config_from_plain(content["config"], {**changes, "trainer": {"precision": "fp32"}})
    classifier = classifier_from_checkpoint(content, saved, torch.device("cpu"))
    test, _ = load_part(saved.data, train=False, trusted_modules=saved.trusted_modules)
    exported = Exported(classifier, config.preprocessing)
    expected = _answers(exported, exported, test.images)
    correct = int((expected.argmax(dim=1) == test.labels).sum())
    metadata = {
        **_metadata(classifier.classes, source, saved.data.name, config.preprocessing),
        "accuracy": f"{correct / len(test):.4f} ({correct}/{len(test)} test images)",
        "normalization": f"(pixel / 255 - {classifier.normalization.mean}) / "
        f"{classifier.normalization.std}",
    }
    write_atomically(path, encode(kind, exported, test.images[:2], metadata))
    found = _answers(read_back(kind, path, exported), exported, test.images)
    _compare(path, expected, found, test.labels)


def _metadata(
    classes: tuple[str, ...], source: Path, data: str, preprocessing: bool
) -> dict[str, str]:
    return {
        "classes": json.dumps(classes),
        "checkpoint": str(source),
        "data": data,
        "images": "uint8, 0 to 255" if preprocessing else "float32, normalized",
        "version": __version__,
    }


def _answers(function: "Function", exported: "Exported", images: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        return torch.cat([function(exported.example(part)) for part in images.split(BATCH_SIZE)])


def _compare(
    path: Path, expected: "torch.Tensor", found: "torch.Tensor", labels: "torch.Tensor"
) -> None:
    """Tell how much the file's answers differ from the checkpoint's.

    Raises:
        InputError: They differ by more than rounding does; the file is deleted.
    """
    import torch

    difference = float((expected - found).abs().max())
    if not torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE):
        path.unlink()
        raise InputError(
            f"{path} does not answer as the checkpoint does (by up to {difference:.2g}): choose "
            f"another format."
        )
    correct = int((found.argmax(dim=1) == labels).sum())
    logger.info(
        "read back: accuracy %.4f (%d/%d), within %.1g of the checkpoint -> %s",
        *(correct / len(labels), correct, len(labels), difference, path),
    )
