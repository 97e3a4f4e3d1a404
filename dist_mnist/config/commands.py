"""The commands and the schema of each one's config. Imports no torch, so `--help` is quick."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from dist_mnist.config.errors import InputError, require
from dist_mnist.config.overrides import checked_path
from dist_mnist.config.schema import Config


class ScoreFormat(Enum):
    """The form in which `evaluate` prints scores."""

    text = "text"
    json = "json"  # one object per line


class AnswerFormat(Enum):
    """The form in which `predict` prints answers."""

    text = "text"
    json = "json"  # one object per line
    csv = "csv"


class ExportFormat(Enum):
    """The program that an exported file is for."""

    onnx = "onnx"
    torch_export = "torch_export"
    safetensors = "safetensors"


@dataclass
class EvaluateConfig:
    """The checkpoints, and changes to the config they were trained with; null changes nothing."""

    checkpoint: Any
    ensemble: bool
    unseen: bool
    format: ScoreFormat
    save: str | None
    data: dict[str, Any]
    trainer: dict[str, Any]
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint, list):
            self.checkpoint = [self.checkpoint]
        if not all(isinstance(name, str | None) for name in self.checkpoint) or not self.checkpoint:
            raise InputError(f"checkpoint={self.checkpoint} is not a path, or a list of paths.")
        self.save = checked_path("save", self.save, "it must be a folder, or null for no pictures")


@dataclass
class PredictConfig:
    """The pictures, the network that reads them, and the form of its answers."""

    images: list[str]
    checkpoint: str | None
    format: AnswerFormat
    save: str | None
    plain: bool
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError(
                "no picture is given: name files, folders or patterns, as in `dist-mnist predict "
                "photo.jpg`, or - for standard input."
            )
        self.save = checked_path("save", self.save, "it must be a .png, or null for no picture")


@dataclass
class ServeConfig:
    """The network that answers, and the address it listens on."""

    checkpoint: str | None
    host: str
    port: int
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        rule = "it must be between 1 and 65535, or 0 for any free port"
        require(0 <= self.port <= 65535, "port", self.port, rule)
        rule = "it must be an address; 127.0.0.1 is reachable from this machine only"
        require(bool(self.host.strip()), "host", self.host, rule)


@dataclass
class ExportConfig:
    """The checkpoint, its new format, and the file to write."""

    checkpoint: str | None
    format: ExportFormat
    output: str | None
    preprocessing: bool
    data: dict[str, Any]
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        rule = "it must be a file, or null for one in this folder"
        self.output = checked_path("output", self.output, rule)


@dataclass
class ReportConfig:
    """The runs to show, and the file to write."""

    runs: list[str]
    output: str | None

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError(
                "the run directory is missing: name one or more, as in `report outputs/RUN`."
            )
        rule = "it must be a file, or null for the default name"
        self.output = checked_path("output", self.output, rule)


class Command(NamedTuple):
    """A command: `conf/<name>.yaml` composes its config, `commands/<name>.py` runs it."""

    schema: type  # the dataclass of its config
    summary: str  # for `--help`
    words: str | None = None  # the key that takes words without `=`, as in `report RUN RUN`


COMMANDS = {
    "train": Command(Config, "train a network and test it; the default"),
    "evaluate": Command(EvaluateConfig, "score a checkpoint on the test set"),
    "predict": Command(
        PredictConfig, "read the digits in pictures: predict IMAGE... key=value ...", "images"
    ),
    "serve": Command(ServeConfig, "draw a digit on a page and see what the network reads"),
    "export": Command(ExportConfig, "write a checkpoint as ONNX, torch.export or safetensors"),
    "report": Command(
        ReportConfig, "write report.html of a run, or of several side by side", "runs"
    ),
}
