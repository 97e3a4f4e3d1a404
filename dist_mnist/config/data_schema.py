"""The schema of a data set: its files, its parts, and how its samples are drawn."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from dist_mnist.config.errors import require
from dist_mnist.config.overrides import checked_path


class Fit(Enum):
    """The way a picture of another aspect ratio is fitted into `data.image_shape`."""

    pad = "pad"  # add black bars
    crop = "crop"  # cut its edges off
    stretch = "stretch"  # squeeze it


class Broken(Enum):
    """The treatment of pictures in a folder that cannot be decoded."""

    refuse = "refuse"
    skip = "skip"


class Residence(Enum):
    """The memory that holds the samples during a run."""

    auto = "auto"  # the device if they fit there
    device = "device"  # every process has all of them in its device's memory
    host = "host"  # the processes of a machine share one file, mapped into their memory


class Balance(Enum):
    """The way uneven class sizes are balanced."""

    none = "none"
    weights = "weights"  # the losses of all classes have the same total weight
    sample = "sample"  # an epoch draws from each class equally often


# The options that only a folder of pictures has.
PICTURE_OPTIONS = ("fit", "broken", "test_size")


@dataclass
class DataConfig:
    """A data set, and how its training files are split."""

    name: str
    num_classes: int | None  # null: the number in the data set
    image_shape: list[int]  # channels, height, width
    dataset: dict[str, Any]  # _target_(root, train, download)
    root: str  # the folder of the files, in torchvision's layout
    validation_size: Any  # training samples held out, stratified: a number, or a share below 1
    normalize: bool  # scale pixels to mean 0 and deviation 1; false: to the range 0 to 1
    # Older checkpoints lack these, hence the defaults.
    residence: Residence = Residence.auto
    balance: Balance = Balance.none
    fit: Fit | None = None
    broken: Broken | None = None
    test_size: Any = None
    classes: list[int] | None = None  # the labels to keep; they become 0, 1, 2 and so on
    samples_per_class: int | None = None  # training samples to keep of each class

    def __post_init__(self) -> None:
        self.root = checked_path("data.root", self.root, "it must be a folder; . is this one")
        classes = self.num_classes
        rule = "it must be at least 2, or null for the number in the data set"
        require(classes is None or classes >= 2, "data.num_classes", classes, rule)
        rule = "it must be a number of samples, a share below 1, or 0 to train on all of them"
        require(is_size(self.validation_size), "data.validation_size", self.validation_size, rule)
        for key in PICTURE_OPTIONS:
            value = getattr(self, key)
            rule = (
                "only a folder of pictures has this option; leave it out, or set data=image_folder"
            )
            require(value is None or key in self.dataset, f"data.{key}", value, rule)
        size = self.test_size
        rule = "it must be a number of pictures, or a share of them below 1"
        require(size is None or (is_size(size) and size > 0), "data.test_size", size, rule)
        chosen, samples = self.classes, self.samples_per_class
        rule = "it must be at least 1, or null for all"
        require(samples is None or samples >= 1, "data.samples_per_class", samples, rule)
        if chosen is not None:
            is_set = len({*chosen}) == len(chosen) and min(chosen, default=-1) >= 0
            require(is_set, "data.classes", chosen, "it must be different labels, from 0")
            rule, count = f"data.classes={chosen} needs {len(chosen)}", self.num_classes
            require(count in (None, len(chosen)), "data.num_classes", count, rule)

    @property
    def class_count(self) -> int:
        """The number of classes, once it is known."""
        assert self.num_classes is not None, "with_num_classes sets it"
        return self.num_classes


def is_size(value: object) -> bool:
    """Return whether a value is a number of samples, or a share of them from 0 to below 1."""
    if isinstance(value, float) and not value.is_integer():
        return 0 <= value < 1
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def number_of(size: float, samples: int) -> int:
    """Return the number of samples for a size: itself, or a rounded share."""
    return round(size * samples) if 0 < size < 1 else int(size)
