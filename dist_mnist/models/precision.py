"""Precision: the dtype of the forward pass, TensorFloat-32, autocast and the gradient scaler."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Precision

DTYPES = {
    Precision.fp32: torch.float32,
    Precision.tf32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass on a device.

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


def set_gpu_arithmetic(precision: Precision) -> None:
    """Allow TensorFloat-32 or not, and make cuDNN deterministic.

    By default torch uses TensorFloat-32 (10 bits of mantissa) in convolutions but not in matrix
    products. Here fp32 uses all 23 bits everywhere, and every other precision TensorFloat-32.

    Some cuDNN algorithms add in a varying order. A run that continues must compute the same bits,
    so only deterministic ones are allowed.
    """
    allowed = precision is not Precision.fp32
    with warnings.catch_warnings():
        # Newer names exist from torch 2.9 on, where these are deprecated. They still set both.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.deterministic = True


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Compute safe operations inside in `dtype`; float32 changes nothing."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a scaler that keeps float16 gradients from vanishing, disabled for other dtypes."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
