"""Automatic mixed precision: the dtype of the forward pass, and the scale of the gradients."""

from contextlib import AbstractContextManager, nullcontext

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Precision

DTYPES = {
    Precision.fp32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype that the forward pass computes in on a device.

    Raises:
        InputError: fp16 was asked for on the CPU, where it is slow.
    """
    if precision is Precision.fp16 and device.type == "cpu":
        raise InputError("trainer.precision=fp16 needs a GPU: use bf16 or fp32 on the CPU.")
    if precision is not Precision.auto:
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Compute in `dtype` inside, in the operations where that is safe; float32 changes nothing."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a scaler that keeps float16 gradients from vanishing; it does nothing for others."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
