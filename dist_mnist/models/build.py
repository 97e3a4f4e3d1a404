"""Builds the network and the loss that a config names, and checks that they fit the data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config
from dist_mnist.config.targets import instantiate


def build_model(config: Config) -> nn.Module:
    """Build the network on the CPU, in the memory format that is fastest for convolutions.

    Raises:
        InputError: It cannot be built, or does not map the images to the classes.
    """
    model: nn.Module = instantiate(
        "model", config.model, nn.Module, trusted_modules=config.trusted_modules
    )
    data = config.data
    try:
        with torch.no_grad():
            shape = list(model.eval()(torch.zeros(2, *data.image_shape)).shape)
    except Exception as error:
        raise InputError(
            f"model cannot take images of shape {data.image_shape}: {one_line(error)}."
        ) from error
    if shape != [2, data.num_classes]:
        raise InputError(
            f"model has outputs of shape {shape[1:]}, but data.num_classes={data.num_classes}."
        )
    return model.to(memory_format=torch.channels_last)


def build_loss(config: Config) -> nn.Module:
    """Build the loss.

    Raises:
        InputError: It cannot be built, or does not return one value per sample.
    """
    loss: nn.Module = instantiate(
        "loss", config.loss, nn.Module, trusted_modules=config.trusted_modules
    )
    try:
        values = loss(torch.zeros(2, config.data.num_classes), torch.zeros(2, dtype=torch.int64))
    except Exception as error:
        raise InputError(f"loss cannot be used: {one_line(error)[:300]}.") from error
    if getattr(values, "shape", None) != (2,):
        raise InputError("loss must return one value per sample: set loss.reduction=none.")
    return loss


def multiply_adds(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Return how many multiplications a forward pass takes for one image.

    Counts the layers that have weights; each weight is used at least once.

    Args:
        model: On the CPU; it is left in eval mode.
        image_shape: Channels, height and width.
    """
    counts: list[int] = []

    def count(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        counts.append(outputs[0].numel() * layer.weight[0].numel())  # type: ignore[index]

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(2, *image_shape))
    for hook in hooks:
        hook.remove()
    return max(sum(counts), sum(parameter.numel() for parameter in model.parameters()))


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Copy a checkpoint's weights into a network.

    Raises:
        InputError: They belong to another network; the network's own weights are untouched.
    """

    def shapes(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}

    if shapes(model.state_dict()) != shapes(weights):
        raise InputError(
            "the checkpoint does not fit this run: its weights are those of another network."
        )
    model.load_state_dict(weights)
