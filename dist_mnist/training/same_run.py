"""The checks before a run continues: that its settings, its data and its classes are the same."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.config.saved_config import upgraded
from dist_mnist.config.schema import flat
from dist_mnist.data.test_set import match_classes, some
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
OPEN_SETS = ("data.dataset.", "model.", "loss.", "optimizer.", "scheduler.", "transfer.")
# A run that is finished is only tested again, so whatever else differs would not be true of it.
FREE_IN_A_FINISHED_RUN = (
    *("run_dir", "resume", "trusted_modules", "tracking", "data.root", "data.residence"),
    *("trainer.device", "trainer.cpu_threads", "trainer.timeout_seconds"),
    *("trainer.log_every_steps", "trainer.checkpoint_every_steps", "trainer.keep_checkpoints"),
    *("trainer.evaluation_batch_size", "trainer.find_unused_parameters"),
    "trainer.reproducible",  # the kind of its steps is compared
)


def require_same_run(state: TrainingState, content: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of this run: the same network, steps, samples and classes.

    Raises:
        InputError: It is not; the message names the difference.
    """
    described = {key: content[key] for key in ("config", "data", "normalization")}
    described["classes"] = [str(name) for name in content["classes"]]
    described["reproducible"] = content.get("reproducible")
    saved = json.loads(json.dumps(described, default=str))  # a tensor cannot be compared
    _check_same_settings(state.plain_config, saved["config"])
    _check_same_data(state, saved)
    older = _look_up(saved["config"], "trainer.reproducible")
    was_reproducible = older if saved["reproducible"] is None else saved["reproducible"]
    _check_same_step(state, was_reproducible is True)


def _check_same_settings(config: dict[str, Any], saved: dict[str, Any]) -> None:
    if _look_up(config, "transfer.checkpoint") and not _look_up(saved, "transfer.checkpoint"):
        raise InputError(
            "transfer.checkpoint cannot be used here, since this run began without one: leave it "
            "out, or choose a new run_dir."
        )
    keys = (*FIXED_FOR_A_RUN, "optimizer._target_", *(f"model.{key}" for key in config["model"]))
    for key in keys:
        began = "this run, which began with"
        _require_equal(key, _look_up(config, key), _look_up(saved, key), began)


def require_finished_like_this(
    state: TrainingState, saved: Mapping[str, Any], run_dir: Path
) -> None:
    """Check that a finished run had these settings, which its record will show.

    Args:
        saved: The config of its checkpoint.

    Raises:
        InputError: Another value would have led to other results.
    """
    now, then = flat(state.plain_config), flat(upgraded(saved))
    free: tuple[str, ...] = FREE_IN_A_FINISHED_RUN
    if state.progress.step == state.last_step:
        free += ("trainer.max_steps",)
    for key in now | then:
        is_free = any(key == name or key.startswith(f"{name}.") for name in free)
        is_new = key not in then and not key.startswith(OPEN_SETS)  # an option of a later version
        if not (is_free or is_new):
            run = f"the finished run in run_dir={run_dir}, which was trained with"
            _require_equal(key, now.get(key), then.get(key), run)


def _require_equal(key: str, now: object, then: object, run: str) -> None:
    """Compare two values; an option that did not exist yet was not used."""
    if now != then and any(value and value != "none" for value in (now, then)):
        raise InputError(
            f"{key}={now} does not fit {run} {key}={then}: set it back, or choose a new run_dir."
        )


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
