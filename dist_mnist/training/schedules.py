"""Learning-rate schedules: the factor of the optimizer's learning rate in each step.

Each is a pure function of the step, from 0 to total_steps - 1. So a run that continues has no state
to restore, and a run that is given more epochs follows the schedule of its new length.
"""

from collections.abc import Callable
from functools import partial
from math import cos, pi

from dist_mnist.config.errors import refusing
from dist_mnist.config.schema import Config
from dist_mnist.config.targets import find_function


def build_schedule(
    config: Config, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the config's schedule as a function of the step alone.

    Raises:
        InputError: There is no such schedule, or it does not work with its options.
    """
    function = find_function("scheduler", config.scheduler, config.trusted_modules)
    schedule = partial(function, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    with refusing(f"scheduler does not work over {total_steps} steps"):
        for step in (0, total_steps - 1):
            float(schedule(step))
    return schedule


def constant(step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return 1 in every step."""
    return 1.0


def step_decay(
    step: int, total_steps: int, steps_per_epoch: int, every_epochs: int, factor: float
) -> float:
    """Start at 1 and multiply by `factor` after every `every_epochs` epochs."""
    return float(factor ** (step // (every_epochs * steps_per_epoch)))


def cosine(step: int, total_steps: int, steps_per_epoch: int, warmup_fraction: float) -> float:
    """Rise linearly over the first fraction of the steps, then fall to 0 as half a cosine.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without its restarts.
    """
    _check_fraction(warmup_fraction)
    warmup_steps = warmup_fraction * total_steps
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    return _between(1.0, 0.0, (step - warmup_steps) / (total_steps - warmup_steps))


def one_cycle(
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    warmup_fraction: float,
    initial_division: float,
    final_division: float,
) -> float:
    """Rise from 1/initial_division to 1, then fall to 1/(initial_division * final_division).

    Source: Smith and Topin 2018, https://arxiv.org/abs/1708.07120, in the two-phase form of
    `torch.optim.lr_scheduler.OneCycleLR`, whose learning rates these are.
    """
    _check_fraction(warmup_fraction)
    start = 1 / initial_division
    peak = warmup_fraction * total_steps - 1
    if step < peak:
        return _between(start, 1.0, step / peak)
    return _between(1.0, start / final_division, (step - peak) / (total_steps - 1 - peak))


def _check_fraction(warmup_fraction: float) -> None:
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction={warmup_fraction} must be at least 0 and below 1")


def _between(start: float, end: float, progress: float) -> float:
    """Return a point on half a cosine from start to end; progress goes from 0 to 1."""
    return end + (start - end) * (1 + cos(pi * progress)) / 2
