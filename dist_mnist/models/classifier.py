"""A trained network with its preprocessing: uint8 images in, probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dist_mnist.config.data_schema import Fit
from dist_mnist.config.errors import InputError
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.config.schema import Config
from dist_mnist.data.images import Normalization
from dist_mnist.distributed.session import own_defaults
from dist_mnist.models.build import build_model, load_weights
from dist_mnist.models.precision import autocast, compute_dtype
from dist_mnist.record import checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

SHIPPED = Path(__file__).with_name("shipped.safetensors")  # made by `python -m tests.ship`


@dataclass(frozen=True)
class Classifier:
    """A network and its preprocessing: uint8 images in, probabilities out."""

    model: nn.Module  # the bare network, on the device where it computes
    normalization: Normalization  # the one it was trained with
    dtype: torch.dtype  # of the forward pass
    classes: tuple[str, ...]  # their names, in the order of the outputs
    image_shape: tuple[int, ...] = ()  # channels, height and width, if it was loaded
    fit: Fit | None = None  # how pictures are fitted, if it was trained on a folder of pictures

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images (B, C, H, W) on the network's device to float32 logits (B, classes).

        The network computes in the mode it is in; `load_classifier` returns it in eval mode.
        """
        with autocast(images.device, self.dtype):
            outputs: torch.Tensor = self.model(self.normalization(images))
        return outputs.float()

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images (B, C, H, W), on any device, to probabilities.

        Returns:
            float32 of shape (B, classes), each row with a sum of 1, on the network's device.

        Raises:
            InputError: The images are not uint8, or not four-dimensional.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images must be torch.uint8 of shape (count, channels, height, width), not "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        device = next((p.device for p in self.model.parameters()), images.device)
        return self.logits(images.to(device)).softmax(dim=1)

    def read(self, source: str | Path | bytes) -> torch.Tensor:
        """Decode a picture and fit it as the pictures in training were.

        Args:
            source: A file, or its content.

        Returns:
            uint8 of shape (1, C, H, W), for a call of the classifier.

        Raises:
            InputError: It cannot be read, or the network was not trained on a folder of pictures.
        """
        from dist_mnist.data.decode import read_picture

        if self.fit is None:
            raise InputError(
                "the network was not trained on a folder of pictures, so pictures cannot be "
                "converted; pass uint8 tensors instead."
            )
        picture = read_picture(Path(source) if isinstance(source, str) else source)
        return self.fitted(picture).unsqueeze(0)

    def fitted(self, picture: "Image") -> torch.Tensor:
        """Fit a picture as the pictures in training were; `fit` must be known.

        Args:
            picture: In RGB and upright, from `read_picture`.

        Returns:
            uint8 of shape (C, H, W).
        """
        from dist_mnist.data.fitting import fit_picture

        assert self.fit is not None
        return torch.from_numpy(fit_picture(picture, self.image_shape, self.fit))


def find_checkpoint(path: str | Path | None) -> Path:
    """Return the checkpoint file that a path stands for.

    Args:
        path: A run directory, for its best checkpoint; a checkpoint file; "latest", for the newest
            run under outputs/; or None, for the network that comes with the package.

    Raises:
        InputError: It is empty, or there is no run under outputs/.
    """
    if path is None:
        return SHIPPED
    if not str(path).strip():
        raise InputError(
            "checkpoint is missing: set it to a run directory or a file, as in "
            "checkpoint=outputs/RUN, or leave it out for the network that comes with the package."
        )
    return checkpoint.resolve(checkpoint.latest_run() if str(path) == "latest" else Path(path))


def load_classifier(
    path: str | Path | None = None, device: str = "cpu", trusted_modules: Sequence[str] = ()
) -> Classifier:
    """Load a trained network with its preprocessing, in eval mode.

    Args:
        path: As for `find_checkpoint`.
        device: Where the network computes, such as "cpu" or "cuda".
        trusted_modules: Your own modules that may define the checkpoint's network.

    Raises:
        InputError: There is no checkpoint, or it cannot be used.
    """
    content = checkpoint.load(find_checkpoint(path))
    changes = {"trainer": {"precision": "auto"}, "trusted_modules": list(trusted_modules)}
    config = config_from_plain(content["config"], changes)
    return classifier_from_checkpoint(content, config, torch.device(device))


@own_defaults()
def classifier_from_checkpoint(
    content: dict[str, Any], config: Config, device: torch.device
) -> Classifier:
    """Build a checkpoint's network, in eval mode.

    Args:
        content: From `checkpoint.load`.
        config: The config in it, possibly with changes, such as another precision.

    Raises:
        InputError: The network cannot be built, or its weights or normalization do not fit.
    """
    model = build_model(config)
    load_weights(model, content["model"])
    return Classifier(
        model=model.to(device).eval(),
        normalization=_normalization(content["normalization"]),
        dtype=compute_dtype(config.trainer.precision, device),
        classes=tuple(str(name) for name in content["classes"]),
        image_shape=tuple(config.data.image_shape),
        fit=config.data.fit,
    )


def _normalization(saved: dict[str, Any]) -> Normalization:
    mean, std = saved.get("mean"), saved.get("std")
    if not (isinstance(mean, float) and isinstance(std, float) and std > 0):
        raise InputError(
            f"the checkpoint's normalization cannot be used: mean={mean} and std={std} must be "
            f"numbers, and std above 0."
        )
    return Normalization(mean, std)
