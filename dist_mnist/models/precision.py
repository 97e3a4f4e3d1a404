"""The numbers that a network computes in: the dtype of its forward pass, and how GPUs multiply."""

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


def set_gpu_arithmetic(precision: Precision) -> None:
    """Choose how GPUs of this process multiply float32 numbers, and that they repeat themselves.

    By itself torch multiplies with the 10 bits of TensorFloat32 in convolutions and with all 23 in
    matrix products. Here all 23 are used everywhere with fp32, and 10 with any other precision.

    cuDNN may choose algorithms that add up in an order of their own. A run that continues must
    compute what it would have computed, so only those with a fixed order are allowed.
    """
    allowed = precision is not Precision.fp32
    with warnings.catch_warnings():
        # Newer names exist from torch 2.9 on, where these are deprecated. They still set both.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.deterministic = True


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Compute in `dtype` inside, in the operations where that is safe; float32 changes nothing."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a scaler that keeps float16 gradients from vanishing; it does nothing for others."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
