"""Builds the network and the loss that a config names, and checks that they fit the data."""

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dist_mnist.config.errors import InputError, refusing
from dist_mnist.config.schema import Config
from dist_mnist.config.targets import instantiate
from dist_mnist.models.dry_run import check_outputs, retry_contiguous


def build_model(config: Config) -> nn.Module:
    """Build the network on the CPU, in eval mode.

    Its memory format is channels last, the fastest for convolutions, if it works with that.

    Raises:
        InputError: It cannot be built, or does not map the images to the classes.
    """
    model: nn.Module = instantiate(
        "model", config.model, nn.Module, trusted_modules=config.trusted_modules
    )
    data = config.data
    with refusing(f"model cannot take images of shape {data.image_shape}"), torch.no_grad():
        images = torch.zeros(2, *data.image_shape)
        if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
            model.eval()(images)  # its shapes are unknown before
        model = model.eval().to(memory_format=torch.channels_last)
        outputs = retry_contiguous(model, lambda: model(images))
    check_outputs(outputs, 2, data.class_count)
    return model


def build_loss(config: Config) -> nn.Module:
    """Build the loss.

    Raises:
        InputError: It cannot be built, or does not return one value per sample.
    """
    loss: nn.Module = instantiate(
        "loss", config.loss, nn.Module, trusted_modules=config.trusted_modules
    )
    with refusing("loss cannot be used"):
        values = loss(torch.zeros(2, config.data.class_count), torch.zeros(2, dtype=torch.int64))
    if getattr(values, "shape", None) != (2,):
        raise InputError("loss must return one value per sample: set loss.reduction=none.")
    return loss


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Copy a checkpoint's weights into a network.

    Raises:
        InputError: They belong to another network; the network's own weights are untouched.
    """

    def shapes(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}

    if shapes(model.state_dict()) != shapes(weights):
        raise InputError(
            "the checkpoint does not fit the network: its weights have other names or shapes."
        )
    model.load_state_dict(weights)
