"""Checks that a GPU computes the same as a CPU, the same each time, and is never waited for."""

import copy
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config.schema import AugmentationConfig, Precision
from dist_mnist.data.augmentation import Changes, augment, draw_changes
from dist_mnist.data.images import ImageTensors, Normalization
from dist_mnist.distributed.world import World
from dist_mnist.models.losses import CrossEntropy
from dist_mnist.models.precision import set_gpu_arithmetic
from dist_mnist.record import checkpoint
from dist_mnist.training.progress import Totals
from dist_mnist.training.resume import checkpoint_content, restore
from dist_mnist.training.state import TrainingState
from tests.gpu_check.common import (
    Found,
    build,
    full_batches,
    has_same_bits,
    make_steps,
    microseconds,
    on_gpu,
    relative_error,
    weights,
)

QUERY = [
    "nvidia-smi",
    "--query-gpu=driver_version,clocks.sm,clocks.max.sm",
    "--format=csv,noheader",
]
# The kinds of steps; each may wait for the GPU at a different place.
KINDS = (
    "model=cnn",
    "model=mlp model.dropout=0.3 augmentation=affine",
    "optimizer=sgd",
    "trainer.gradient_clip_norm=1",
    "trainer.micro_batch_size=100",
    "loss=mse",
    "trainer.precision=fp16",
    "model=resnet",
    "trainer.reproducible=true",
)


def machine(world: World) -> Found:
    """Describe the machine; a product of matrices shows that the card is awake."""
    found: Found = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
    }
    if on_gpu(world):
        properties = torch.cuda.get_device_properties(world.device)
        driver = "there is no nvidia-smi"
        if shutil.which(QUERY[0]):
            driver = subprocess.run(QUERY, capture_output=True, text=True, check=False).stdout
        x = torch.randn(8192, 8192, device=world.device, dtype=torch.bfloat16)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "driver, clock now and at most": driver.strip(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": torch.cuda.nccl.version(),
            "bf16 TFLOP/s": 2 * 8192**3 / microseconds(lambda: x @ x, world, 10) / 1e6,
        }
    return {"ok": True, **found}


def gradients(world: World) -> Found:
    """One batch's gradient against float64's; the CPU's own float32 is the yardstick.

    It is not more exact, since pooling and ReLU decide otherwise where two numbers nearly agree.
    """
    found: dict[str, dict[str, float]] = {}
    good = True
    for model, count in (("cnn", 256), ("mlp", 256), ("resnet", 32)):
        state = build(world, f"model={model}")
        exact = _gradient(state, count, torch.device("cpu"), torch.float64)
        yardstick = relative_error(_gradient(state, count, torch.device("cpu")), exact)
        limits = {
            Precision.fp32: 3 * yardstick + 1e-5,
            Precision.tf32: 3 * yardstick + 2e-2,
            Precision.bf16: 12 * yardstick + 1e-1,
        }
        errors = {"fp32 on the CPU": yardstick}
        for precision, limit in limits.items():
            set_gpu_arithmetic(precision)
            is_bf16 = precision is Precision.bf16
            gradient = _gradient(state, count, world.device, is_bf16=is_bf16)
            errors[precision.name] = relative_error(gradient, exact)
            good &= errors[precision.name] <= limit
        found[model] = errors
    return {"ok": good, "relative error": found}


def _gradient(
    state: TrainingState,
    count: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    is_bf16: bool = False,
) -> list[torch.Tensor]:
    images, labels = state.splits.train.resident().images[:count], state.splits.train.labels[:count]
    model = copy.deepcopy(state.model).to(device, dtype).train()
    inputs = state.splits.normalization(images).to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        outputs = model(inputs)
    loss = CrossEntropy(10, 0.05).to(device, dtype)
    loss(outputs.to(dtype), labels.to(device)).mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def pieces(world: World) -> Found:
    """Augmentation, normalization, the loss and fused optimizers against the CPU's."""
    torch.manual_seed(0)
    cpu, device = torch.device("cpu"), world.device
    images = torch.randint(256, (512, 1, 28, 28)).to(torch.uint8)
    labels = torch.arange(512) % 10
    found: Found = {}
    apart = {}
    for name, limits in (("shift", (2, 0.0, 0.0)), ("affine", (2, 10.0, 0.1))):
        config = AugmentationConfig(*limits)
        changes = draw_changes(config, 512, cpu)
        ends = [_augmented(images, config, changes, place) for place in (cpu, device)]
        apart[name] = (ends[0].int() - ends[1].int()).abs()
    found["shifted bytes that differ"] = int((apart["shift"] > 0).sum())
    found["affine, off by more than one grey"] = float((apart["affine"] > 1).float().mean())
    scale = Normalization(0.1307, 0.3081)
    found["normalization"] = relative_error([scale(images.to(device))], [scale(images)])
    outputs, loss = torch.randn(512, 10), CrossEntropy(10, 0.05)
    exact = loss.double()(outputs.double(), labels)
    ours = CrossEntropy(10, 0.05).to(device)(outputs.to(device), labels.to(device))
    found["loss"] = relative_error([ours], [exact])
    for name in ("SGD", "Adam", "AdamW"):
        found[name] = relative_error([_optimized(name, device)], [_optimized(name, cpu)])
    good = found["shifted bytes that differ"] == 0
    good &= found["affine, off by more than one grey"] < 1e-3
    names = ("normalization", "loss", "SGD", "Adam", "AdamW")
    return {"ok": good and all(found[name] < 1e-5 for name in names), **found}


def _augmented(
    images: torch.Tensor, config: AugmentationConfig, changes: Changes, device: torch.device
) -> torch.Tensor:
    samples = ImageTensors(images.to(device), torch.zeros(len(images)), config.margin)
    everything = torch.arange(len(images), device=device)
    moved = Changes(*(numbers.to(device) for numbers in changes))
    return augment(samples, everything, config, moved).cpu()


def _optimized(name: str, device: torch.device) -> torch.Tensor:
    """Return weights after twenty steps of a fused optimizer with made-up gradients."""
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 1000).to(device))
    optimizer = getattr(torch.optim, name)([weight], lr=0.01, fused=True, **options)
    for step in range(20):
        weight.grad = torch.sin(torch.arange(1000.0) + step).to(device)
        optimizer.step()
    return weight.detach()


def no_waiting(world: World) -> Found:
    """Forty steps of every kind, of which none may wait for the GPU."""
    warnings.filterwarnings("ignore", message="Synchronization debug mode")
    found = {kind: _waits(world, kind) for kind in KINDS}
    return {"ok": set(found.values()) == {"no"}, "waits": found}


def _waits(world: World, kind: str) -> str:
    state = build(world, *kind.split())
    batch = full_batches(state)[0]
    make_steps(state, 3)  # the first ones choose algorithms and make the optimizer's state
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(40):
            state.step(batch)
            state.progress.step += 1
    except Exception as error:  # reported, and the others are still tried
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def exactness(world: World) -> Found:
    """The same weights twice, and in a run that was stopped and continued."""
    found = {}
    for name, options in {
        "default": ["model.dropout=0.2"],
        "mlp": ["model=mlp", "model.dropout=0.2"],
        "resnet": ["model=resnet"],
        "sgd, affine": ["optimizer=sgd", "augmentation=affine"],
        "reproducible": ["model.dropout=0.2", "trainer.reproducible=true"],
    }.items():
        if not on_gpu(world) and name == "resnet":
            continue  # takes minutes
        count = 60 if on_gpu(world) else 4
        once, twice, continued = (build(world, *options) for _ in range(3))
        make_steps(once, 2 * count)
        make_steps(twice, count)
        _copy_through_a_file(twice, continued)
        make_steps(twice, count)
        make_steps(continued, count)
        found[name] = {
            "twice": has_same_bits(weights(once), weights(twice)),
            "continued": has_same_bits(weights(once), weights(continued)),
        }
    return {"ok": all(all(same.values()) for same in found.values()), "same bits": found}


def _copy_through_a_file(state: TrainingState, other: TrainingState) -> None:
    state.progress.epoch_totals = Totals()
    with tempfile.TemporaryDirectory() as folder:
        content = checkpoint_content(state)
        checkpoint.save(Path(folder), content, state.progress.step, is_best=False, keep=1)
        restore(other, checkpoint.load(Path(folder, "checkpoints", "last.safetensors")))
