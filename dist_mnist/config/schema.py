"""The schema of a run: types and checks. Imports no torch, so `--help` is quick.

The values are in `conf/`, which Hydra composes on top of these dataclasses: an unknown key or a
wrong type fails there. `build_config` turns the result into plain dataclasses and checks the
values; the rest of the package never sees OmegaConf.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import require
from dist_mnist.config.keys import require_known_keys
from dist_mnist.config.overrides import checked_path
from dist_mnist.config.transfer import TransferConfig


class Precision(Enum):
    """The number format of the forward pass; the weights are always float32."""

    auto = "auto"  # bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU
    fp32 = "fp32"
    tf32 = "tf32"  # float32 with TensorFloat-32 on GPUs; fp32 on the CPU
    bf16 = "bf16"
    fp16 = "fp16"


class Resume(Enum):
    """auto: continue a run if there is one; never, must: require that there is none, or one."""

    auto = "auto"
    never = "never"
    must = "must"


class TrackingMode(Enum):
    """The mode of wandb; auto is online if there is a key."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Logger(Enum):
    """A tracker of a run's numbers, besides the journal."""

    wandb = "wandb"
    tensorboard = "tensorboard"
    csv = "csv"


@dataclass
class AugmentationConfig:
    """Limits of the random change to each training image; zeros leave it unchanged."""

    shift_pixels: int
    rotation_degrees: float
    scale: float  # 0.1: from 0.9 to 1.1 times its size
    # Older checkpoints lack these two, hence the defaults.
    slant_degrees: float = 0.0
    stroke_width: float = 0.0  # 1: up to the darkest or brightest neighbor of each pixel

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            require(value >= 0, f"augmentation.{key}", value, "it must not be negative")
        require(self.scale < 1, "augmentation.scale", self.scale, "it must be below 1")
        rule = "it must be below 90"
        require(self.slant_degrees < 90, "augmentation.slant_degrees", self.slant_degrees, rule)
        rule = "it must be at most 1"
        require(self.stroke_width <= 1, "augmentation.stroke_width", self.stroke_width, rule)

    @property
    def changes_nothing(self) -> bool:
        """True if every image stays unchanged."""
        return not any(vars(self).values())

    @property
    def warps(self) -> bool:
        """True if anything but the position of an image may change."""
        return any(value for key, value in vars(self).items() if key != "shift_pixels")

    @property
    def margin(self) -> int:
        """Pixels around each image in memory, so that moving it needs no padding."""
        return 0 if self.warps else self.shift_pixels


# The options that trainer.reproducible excludes, and why.
NOT_REPRODUCIBLE = {
    "micro_batch_size": "the batch is cut into shards instead of micro-batches",
    "sync_batch_norm": "batch norm takes its statistics over one shard alone",
    "compress_gradients": "rounding would depend on the number of processes",
    "compile": "compiled code depends on the shapes that a process has seen",
    "cuda_graph": "the seed changes within a step, which a graph cannot repeat",
}


@dataclass
class TrainerConfig:
    """The loop: its length, batches, device, precision, logging and checkpoints."""

    epochs: int
    max_steps: int | None
    global_batch_size: int
    micro_batch_size: int | None
    evaluation_batch_size: int | None
    device: str
    cpu_threads: int | None
    precision: Precision
    gradient_clip_norm: float | None
    sync_batch_norm: bool
    compress_gradients: bool
    find_unused_parameters: bool | None
    compile: bool
    reproducible: Any  # true, false, or "auto"; OmegaConf 2.3 cannot merge unions
    log_every_steps: int
    checkpoint_every_steps: int | None
    keep_checkpoints: int
    timeout_seconds: int
    cuda_graph: bool = False  # older checkpoints lack it

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if type(value) is int:
                require(value >= 1, f"trainer.{key}", value, "it must be at least 1")
        clip = self.gradient_clip_norm
        require(clip is None or clip > 0, "trainer.gradient_clip_norm", clip, "it must be above 0")
        insists, rule = self.reproducible is True, "it must be auto, true or false"
        is_known = insists or self.reproducible in (False, "auto")
        require(is_known, "trainer.reproducible", self.reproducible, rule)
        for key, reason in NOT_REPRODUCIBLE.items():
            value = getattr(self, key)
            is_set = value not in (None, False)
            rule = f"with trainer.reproducible=true, {reason}; reset one of the two"
            require(not (insists and is_set), f"trainer.{key}", value, rule)


@dataclass
class TrackingConfig:
    """The loggers of a run, and its project, entity, name and tags in wandb."""

    mode: TrackingMode
    project: str | None  # null: WANDB_PROJECT, or dist_mnist
    entity: str | None  # null: WANDB_ENTITY, or the key's own
    name: str | None  # null: WANDB_NAME, or the run directory's name
    tags: list[str] | None  # null: WANDB_TAGS, or none
    loggers: list[Logger] = field(default_factory=lambda: [Logger.wandb])


@dataclass
class Config:
    """Everything that determines one run."""

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
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        thaw, last = self.transfer.thaw_epoch, self.trainer.epochs
        rule = f"it must be an epoch of the run, which has trainer.epochs={last}"
        require(thaw is None or thaw <= last, "transfer.thaw_epoch", thaw, rule)
        require(self.seed >= 0, "seed", self.seed, "it must not be negative")
        rule = "it must be a folder, or null for a new one in outputs"
        self.run_dir = checked_path("run_dir", self.run_dir, rule)
        require(
            not (self.model.get("log_probabilities") and "MeanSquared" in self.loss["_target_"]),
            "model.log_probabilities",
            True,
            "log-probabilities are never positive, so loss=mse cannot bring them to its one-hot "
            "targets; set it to false",
        )


def build_config(composed: DictConfig) -> Config:
    """Return the composed config as checked dataclasses.

    Raises:
        InputError: A key is unknown, or a value has the right type but is not allowed.
    """
    require_known_keys(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    for key, value in flat(asdict(config)).items():
        rule = (
            "a checkpoint with it could not be loaded, since ${ begins an interpolation; rename it"
        )
        require("${" not in str(value), key, value, rule)
    return config


def with_num_classes(config: Config, count: int) -> Config:
    """Return a config whose null numbers of classes, in data, model and loss, are filled in."""
    parts = {name: _filled(getattr(config, name), count) for name in ("model", "loss")}
    return replace(config, data=replace(config.data, num_classes=count), **parts)


def _filled(value: Any, count: int) -> Any:
    if isinstance(value, Mapping):
        return {
            key: count if key == "num_classes" and part is None else _filled(part, count)
            for key, part in value.items()
        }
    return value


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys as on the command line."""
    values: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values


def plain_config(config: Config) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars, for YAML files and checkpoints."""
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
