"""The schema of every run: types and checks. Imports no torch, so `--help` is quick.

The values stand in `conf/`, which Hydra composes on top of these dataclasses: an unknown key or a
wrong type fails there. `build_config` then turns the result into plain dataclasses and checks the
values; below the command line nobody meets OmegaConf.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from dist_mnist.config.errors import InputError, one_line


class Precision(Enum):
    """What the forward pass computes in; the weights are always float32."""

    auto = "auto"  # bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Resume(Enum):
    """What to do with a run directory that already holds a run."""

    auto = "auto"
    never = "never"
    must = "must"


class TrackingMode(Enum):
    """Where wandb writes."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


def _require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise InputError(f"{key}={value} cannot be used: {rule}.")


def _require_at_least_one(group: str, config: object) -> None:
    for key, value in vars(config).items():
        if type(value) is int:
            _require(value >= 1, f"{group}.{key}", value, "it must be at least 1")


@dataclass
class DataConfig:
    """A data set, and how its training files are split."""

    name: str
    num_classes: int
    image_shape: list[int]  # channels, height, width
    dataset: dict[str, Any]  # _target_(root, train, download)
    root: str  # the folder of the files, in torchvision's layout
    validation_size: int  # training samples held out, stratified by class
    normalize: bool  # pixels to mean 0 and deviation 1, or else only to the range from 0 to 1

    def __post_init__(self) -> None:
        _require(self.num_classes >= 2, "data.num_classes", self.num_classes, "it is at least 2")
        _require(
            self.validation_size >= 0,
            "data.validation_size",
            self.validation_size,
            "it is a number of samples, 0 to train on all of them",
        )


@dataclass
class AugmentationConfig:
    """How far each training image may be changed; zeros leave it as it is."""

    shift_pixels: int
    rotation_degrees: float
    scale: float  # 0.1: from 0.9 to 1.1 times its size

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            _require(value >= 0, f"augmentation.{key}", value, "it must not be negative")
        _require(self.scale < 1, "augmentation.scale", self.scale, "it must be below 1")

    @property
    def changes_nothing(self) -> bool:
        """Whether every image stays as it is."""
        return not any(vars(self).values())


# What trainer.reproducible excludes, and why.
NOT_REPRODUCIBLE = {
    "micro_batch_size": "has pieces of its own, the same at any number of processes",
    "sync_batch_norm": "takes the statistics of batch norm over one shard alone",
    "compress_gradients": "cannot round what only some numbers of processes send",
    "compile": "cannot have code that depends on the shapes that a process has met",
}


@dataclass
class TrainerConfig:
    """The loop: how long, in which batches, on what device, and what is written when."""

    epochs: int
    max_steps: int | None
    global_batch_size: int
    micro_batch_size: int | None
    evaluation_batch_size: int
    device: str
    precision: Precision
    gradient_clip_norm: float | None
    sync_batch_norm: bool
    compress_gradients: bool
    compile: bool
    log_every_steps: int
    checkpoint_every_steps: int | None
    keep_checkpoints: int
    timeout_seconds: int
    reproducible: bool = False  # which the checkpoints of earlier versions do not say

    def __post_init__(self) -> None:
        _require_at_least_one("trainer", self)
        clip = self.gradient_clip_norm
        _require(clip is None or clip > 0, "trainer.gradient_clip_norm", clip, "it must be above 0")
        for key, reason in NOT_REPRODUCIBLE.items():
            value = getattr(self, key)
            possible = not (self.reproducible and value)
            rule = f"trainer.reproducible=true {reason}; set one of them to its default"
            _require(possible, f"trainer.{key}", value, rule)


@dataclass
class TrackingConfig:
    """Where and under what name wandb keeps the run."""

    mode: TrackingMode
    project: str
    entity: str | None
    name: str | None  # null: the run directory's name
    tags: list[str]


@dataclass
class Config:
    """All of one run."""

    data: DataConfig
    model: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    augmentation: AugmentationConfig
    trainer: TrainerConfig
    tracking: TrackingConfig
    seed: int
    run_dir: str | None
    resume: Resume
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "it must not be negative")
        _require(
            not (self.model.get("log_probabilities") and "MeanSquared" in self.loss["_target_"]),
            "model.log_probabilities",
            True,
            "log-probabilities are never positive and cannot meet the one-hot targets of loss=mse; "
            "set it to false",
        )


@dataclass
class EvaluationDataConfig:
    """Where an evaluation finds the data; None for where the training did."""

    root: str | None


@dataclass
class EvaluationTrainerConfig:
    """How an evaluation runs; a precision of None is that of the training."""

    device: str
    precision: Precision | None
    evaluation_batch_size: int
    timeout_seconds: int

    def __post_init__(self) -> None:
        _require_at_least_one("trainer", self)


@dataclass
class EvaluationConfig:
    """All of one evaluation, beside the config in the checkpoint."""

    checkpoint: str | None
    data: EvaluationDataConfig
    trainer: EvaluationTrainerConfig
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        _require(
            self.checkpoint is not None,
            "checkpoint",
            "",
            "say which, as in checkpoint=outputs/RUN or checkpoint=outputs/RUN/checkpoints/last.pt",
        )


def register_schema() -> None:
    """Make the schemas known to Hydra under the names that the files in `conf/` begin with."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="evaluation_schema", node=EvaluationConfig)


def build_config(composed: DictConfig) -> Config:
    """Return the composed config as checked dataclasses.

    Raises:
        InputError: A value has the right type and cannot be used all the same.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def build_evaluation_config(composed: DictConfig) -> EvaluationConfig:
    """Return the composed config of an evaluation as checked dataclasses.

    Raises:
        InputError: As `build_config`.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, EvaluationConfig)
    return config


def plain_config(config: Config) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars, as YAML and checkpoints hold it."""
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def config_from_plain(plain: dict[str, Any]) -> Config:
    """Return what `plain_config` was given.

    Raises:
        InputError: It is no config of ours.
    """
    # Interpolations were resolved before it was saved: one that is left is not from us.
    if "${" in repr(plain):
        raise InputError("the checkpoint's config cannot be used: it contains an interpolation.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), plain)
        assert isinstance(merged, DictConfig)
        return build_config(merged)
    except InputError:
        raise
    except Exception as error:  # a file from elsewhere may hold anything
        raise InputError(f"the checkpoint's config cannot be used: {one_line(error)}.") from error
