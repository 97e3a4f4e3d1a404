"""A training step as a CUDA graph: one launch instead of the fifty kernels of a small network.

Launching kernels one by one from Python takes longer than the GPU needs to compute them. A graph
repeats recorded launches at the same addresses: weights, optimizer state and learning rates keep
their place, and each step's images and labels are copied to where the graph reads them. Random
numbers follow the seed that the generator has when the graph is launched, as in a step without one.
"""

from collections.abc import Callable
from functools import partial

import torch

from dist_mnist.config.errors import InputError, one_line

# Libraries choose their kernels and the optimizer makes its state; with DDP, torch asks for 11.
WARM_UP_STEPS = 11

Tensors = tuple[torch.Tensor, torch.Tensor]
Compute = Callable[[torch.Tensor, torch.Tensor, int], Tensors]
# Records a call; returns a function that repeats it, and its results.
Capture = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]


class GraphedCompute:
    """Computes the first steps eagerly, and from then on launches a graph of a step.

    The size of the global batch decides, in which all ranks agree: shares of one shape may have
    different weights, and NCCL needs all ranks to launch, or none.

    Args:
        compute: Computes a step from images, labels and the size of the global batch.
        batch_size: The size that is captured; other batches are computed eagerly.
        capture: Records a call; `capture_on_gpu`, with its optimizer.
    """

    def __init__(self, compute: Compute, batch_size: int, capture: Capture) -> None:
        self._compute, self._batch_size, self._capture = compute, batch_size, capture
        self._steps = 0

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Tensors:
        """Make one step; the returned tensors are copies."""
        if batch_size != self._batch_size:
            return self._compute(images, labels, batch_size)
        self._steps += 1
        if self._steps <= WARM_UP_STEPS:
            return self._compute(images, labels, batch_size)
        if self._steps == WARM_UP_STEPS + 1:
            self._record(images, labels)
        for place, tensor in zip(self._inputs, (images, labels), strict=True):
            place.copy_(tensor)
        self._launch()
        losses, outputs = self._results
        return losses.clone(), outputs.clone()

    def _record(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        inputs = self._inputs = (images.clone(), labels.clone())
        call = partial(self._compute, *inputs, self._batch_size)
        self._launch, self._results = self._capture(call)


def capture_on_gpu(
    optimizer: torch.optim.Optimizer, compute: Callable[[], Tensors]
) -> tuple[Callable[[], None], Tensors]:
    """Record the launches of a call on the current stream, without computing anything.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Raises:
        InputError: A graph cannot repeat something in the call, such as reading a number.
    """
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:  # torch asks for it while it captures, and warns of it at any other time
        group["capturable"] = True
    graph = torch.cuda.CUDAGraph()
    # DDP's hooks and the warm-up ran on this stream too: `session` has chosen it.
    # Only this thread's calls count: the reader of `MappedImages` may pin memory meanwhile.
    capturing = torch.cuda.graph(
        graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
    )
    try:
        with capturing:
            results = compute()
    except Exception as error:
        raise _refusal(error) from error
    for group in groups:
        group["capturable"] = False
    return graph.replay, results


def _refusal(error: BaseException) -> BaseException:
    """Return the error for a capture that failed: torch's last one only says that it did."""
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return InputError(
        f"trainer.cuda_graph=true cannot be used with this network and loss: "
        f"{one_line(error).rstrip('.')}; set it to false."
    )


def keep_learning_rates_in_place(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Turn the learning rates into tensors, which a graph reads in each step."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def objection(
    optimizer: torch.optim.Optimizer, device: torch.device, is_scaled: bool
) -> str | None:
    """Return why a step cannot be a graph, or None.

    Args:
        optimizer: Must decide on the GPU alone whether to skip a step, as torch's fused ones do.
        is_scaled: Whether gradients are scaled, as with fp16: the scaler also works on the CPU.
    """
    if device.type != "cuda":
        return f"this run computes on {device.type}, not on a CUDA GPU"
    if is_scaled:
        return "with fp16, the loss scale changes between steps"
    groups = optimizer.param_groups
    can_be_captured = isinstance(optimizer, torch.optim.SGD) or all(
        "capturable" in g for g in groups
    )
    if not (all(group.get("fused") for group in groups) and can_be_captured):
        return "it needs a fused optimizer (adamw, adam or sgd with optimizer.fused=true)"
    return None
