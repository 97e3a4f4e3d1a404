"""The content of a checkpoint, and how a run continues from one."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.distributed.cpu_threads import chosen_by_user, usable_cores
from dist_mnist.distributed.launcher import is_restart
from dist_mnist.distributed.world import all_reduce_max, broadcast_object
from dist_mnist.models.build import load_weights
from dist_mnist.record import checkpoint
from dist_mnist.record.saved import forget_saved, has_saved
from dist_mnist.training.progress import Progress
from dist_mnist.training.same_run import require_finished_like_this, require_same_run
from dist_mnist.training.state import TrainingState

logger = logging.getLogger(__name__)


def checkpoint_content(state: TrainingState) -> dict[str, Any]:
    """Return everything that is needed to continue; nothing in it depends on the world size."""
    optimizer = state.optimizer.state_dict()
    for group in optimizer["param_groups"]:  # a CUDA graph reads its learning rates from tensors
        group["lr"] = float(group["lr"])
    return {
        "model": state.model.state_dict(),
        "optimizer": optimizer,
        "scaler": state.scaler.state_dict(),
        "progress": asdict(state.progress),
        "config": state.plain_config,
        "normalization": asdict(state.splits.normalization),
        "data": state.splits.fingerprint,
        "cpu": {"threads": torch.get_num_threads(), "processes": state.world.local_size},
        "classes": list(state.splits.classes),
        "class_counts": state.splits.class_counts,
        "reproducible": state.shards is not None,
        "versions": {"dist_mnist": __version__, "torch": str(torch.__version__)},
    }


def resume(state: TrainingState, run_dir: Path) -> None:
    """Restore the run directory's newest checkpoint, as rank 0 finds it, on every rank.

    Raises:
        InputError: It cannot be read, is of another run, or is gone.
    """
    found = checkpoint.newest(run_dir) if state.world.is_main else None
    (was_started,) = all_reduce_max(state.world, [is_restart()])  # some agents may not count it
    if found is None and state.world.is_main:
        _require_nothing_saved(run_dir, bool(was_started))
    found = broadcast_object(state.world, found)
    if found is not None:
        restore(state, found)
        if state.is_over:
            require_finished_like_this(state, found["config"], run_dir)


def _require_nothing_saved(run_dir: Path, was_started: bool) -> None:
    """Refuse to begin where this launch has saved; warn where it is only a restart."""
    if not was_started:
        forget_saved(run_dir)
    elif has_saved(run_dir):
        raise InputError(
            f"run_dir={run_dir} holds no checkpoint, but this launch has saved some there: mount "
            f"its storage again, or choose a new run_dir."
        )
    else:
        logger.warning(
            "this launch was started before, but run_dir=%s holds no checkpoint: starting from the "
            "beginning. If there was one, it was in another run_dir, or on storage that this "
            "machine does not see.",
            run_dir,
        )


def restore(state: TrainingState, content: dict[str, Any]) -> None:
    """Continue from a checkpoint, with the optimizer's options from the current config.

    Raises:
        InputError: The checkpoint is of another network, or of data in another order.
    """
    require_same_run(state, content)
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state.optimizer.param_groups
    ]
    with refusing("the checkpoint does not fit this run"):
        state.progress = Progress.from_plain(content["progress"])
        load_weights(state.model, content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        # Fused optimizers expect their tensors in the memory format of the parameters.
        for parameter, values in state.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if content["scaler"]:  # empty if the run has not used float16 so far
            state.scaler.load_state_dict(content["scaler"])
    for group, chosen in zip(state.optimizer.param_groups, options, strict=True):
        group |= chosen
    _restore_threads(state, content["cpu"])


def _restore_threads(state: TrainingState, saved: dict[str, Any]) -> None:
    """Compute with as many threads as before, since the bits of a sum depend on their number.

    The user's choice comes first, and so does the rule for another number of processes.
    """
    world, trainer = state.world, state.config.trainer
    is_chosen = trainer.cpu_threads or state.shards or chosen_by_user(world.local_size)
    threads, processes = saved.get("threads"), saved.get("processes")
    if world.device.type != "cpu" or is_chosen:
        return
    if not (isinstance(threads, int) and isinstance(processes, int)):  # a damaged checkpoint
        return
    if processes == world.local_size and 1 <= threads <= 4 * usable_cores():
        torch.set_num_threads(threads)
