"""The content of a checkpoint, and the checks before a run continues from one."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.config.schema import flat, upgraded
from dist_mnist.data.test_set import match_classes, some
from dist_mnist.distributed.cpu_threads import chosen_by_user, usable_cores
from dist_mnist.distributed.launcher import is_restart
from dist_mnist.distributed.world import all_reduce_max, broadcast_object
from dist_mnist.models.build import load_weights
from dist_mnist.record import checkpoint
from dist_mnist.training.progress import Progress
from dist_mnist.training.state import TrainingState

logger = logging.getLogger(__name__)

# A run that continues must see the samples that are still due, with the network it began with.
FIXED_FOR_A_RUN = (
    "seed",
    "data.name",
    "data.normalize",
    "data.validation_size",
    "data.classes",
    "data.samples_per_class",
    "data.balance",
    "trainer.global_batch_size",
    "transfer.freeze",
    "transfer.learning_rates",
    "transfer.thaw_epoch",
)
# A run that is finished is only tested again, so whatever else differs would not be true of it.
FREE_IN_A_FINISHED_RUN = (
    *("run_dir", "resume", "trusted_modules", "tracking", "data.root", "data.residence"),
    *("trainer.device", "trainer.cpu_threads", "trainer.timeout_seconds"),
    *("trainer.log_every_steps", "trainer.checkpoint_every_steps", "trainer.keep_checkpoints"),
    *("trainer.evaluation_batch_size", "trainer.find_unused_parameters"),
    "trainer.reproducible",  # the kind of its steps is compared
)


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
        InputError: It cannot be read, or is of another run.
    """
    found = checkpoint.newest(run_dir) if state.world.is_main else None
    (was_started,) = all_reduce_max(state.world, [is_restart()])  # some agents may not count it
    if found is None and state.world.is_main and was_started:
        logger.warning(
            "this launch was started before, but run_dir=%s holds no checkpoint: starting from the "
            "beginning. If there was one, it was in another run_dir, or on storage that this "
            "machine does not see.",
            run_dir,
        )
    found = broadcast_object(state.world, found)
    if found is not None:
        restore(state, found)
        if state.is_over:
            _check_finished_run(state.plain_config, found["config"], run_dir)


def restore(state: TrainingState, content: dict[str, Any]) -> None:
    """Continue from a checkpoint, with the optimizer's options from the current config.

    Raises:
        InputError: The checkpoint is of another network, or of data in another order.
    """
    described = {key: content[key] for key in ("config", "data", "normalization")}
    described |= {"reproducible": content.get("reproducible"), "classes": content["classes"]}
    saved = json.loads(json.dumps(described, default=str))  # a tensor cannot be compared
    _check_same_run(state.plain_config, saved["config"])
    _check_same_data(state, saved)
    older = _look_up(saved["config"], "trainer.reproducible")
    was_reproducible = older if saved["reproducible"] is None else saved["reproducible"]
    _check_same_step(state, was_reproducible is True)
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


def _check_same_run(config: dict[str, Any], saved: dict[str, Any]) -> None:
    if _look_up(config, "transfer.checkpoint") and not _look_up(saved, "transfer.checkpoint"):
        raise InputError(
            "transfer.checkpoint cannot be used here, since this run began without one: leave it "
            "out, or choose a new run_dir."
        )
    keys = (*FIXED_FOR_A_RUN, "optimizer._target_", *(f"model.{key}" for key in config["model"]))
    for key in keys:
        now, then = _look_up(config, key), _look_up(saved, key)
        if _differ(now, then):
            raise InputError(
                f"{key}={now} does not fit this run, which began with {key}={then}: "
                f"set it back, or choose a new run_dir."
            )


def _check_finished_run(config: dict[str, Any], saved: dict[str, Any], run_dir: Path) -> None:
    now, then = flat(config), flat(upgraded(saved))
    for key in now | then:
        is_free = any(key == free or key.startswith(f"{free}.") for free in FREE_IN_A_FINISHED_RUN)
        if not is_free and _differ(now.get(key), then.get(key)):
            raise InputError(
                f"{key}={now.get(key)} does not fit the finished run in run_dir={run_dir}, which "
                f"was trained with {key}={then.get(key)}: set it back, or choose a new run_dir."
            )


def _differ(now: object, then: object) -> bool:
    """Return whether two values differ; an option that did not exist yet was not used."""
    return now != then and any(value and value != "none" for value in (now, then))


def _check_same_step(state: TrainingState, was_reproducible: bool) -> None:
    """Refuse to continue in shards without having begun so, or the reverse, but where auto may."""
    chosen = state.config.trainer.reproducible
    if was_reproducible == (state.shards is not None):
        return
    then = str(was_reproducible).lower()
    if chosen != "auto":
        raise InputError(
            f"trainer.reproducible={str(chosen).lower()} does not fit this run, which began with "
            f"steps of trainer.reproducible={then}: set it to that, or choose a new run_dir."
        )
    if state.world.is_main:
        logger.warning(
            "this run began with steps of trainer.reproducible=%s, which auto does not choose "
            "here: its results will differ from those of an undisturbed run",
            then,
        )


def _check_same_data(state: TrainingState, saved: dict[str, Any]) -> None:
    """Refuse other samples: some would be seen twice and others never."""
    splits, root = state.splits, state.config.data.root
    if -1 in match_classes(splits.classes, saved["classes"]):
        raise InputError(
            f"the data in data.root={root} has changed since this run began: its classes were "
            f"{some(saved['classes'])} and are {some(splits.classes)}; put the old names back, or "
            f"choose a new run_dir."
        )
    now = {**splits.fingerprint, "the normalization": asdict(splits.normalization)}
    then = {**saved["data"], "the normalization": saved["normalization"]}
    for name in ("training samples", "checksum of the training samples", "the normalization"):
        if now[name] != then.get(name):
            raise InputError(
                f"the data in data.root={root} has changed since this run began: {name} was "
                f"{then.get(name)} and is {now[name]}; put the old files and package versions "
                f"back, or choose a new run_dir."
            )


def _look_up(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
