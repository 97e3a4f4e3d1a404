"""Notices a gradient that is not finite, in the step where it comes up."""

import torch

from dist_mnist.config.errors import InputError


class NonFiniteError(InputError):
    """A loss, a gradient or a weight is not finite."""


class FiniteCheck:
    """Checks the gradients of every step, which are the same on every rank.

    The first step that is not finite is skipped, and so are all steps after it. On a CPU the caller
    asks after every check. A GPU would make it wait, so there a fused optimizer decides by itself
    whether to skip the step, and the number of skipped steps later tells which one was the first.

    If a scaler adapts the scale of float16 gradients, it skips steps by itself, which is not an
    error: then they are only counted.

    Args:
        optimizer: Its parameters' gradients are checked.
        scaler: May be disabled.
        device: Where the parameters are.
        waits_every_step: Whether the caller asks for `skipped_steps` after every check; ignored
            with an enabled scaler.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        waits_every_step: bool,
    ) -> None:
        self._parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        self._is_scaled = scaler.is_enabled()
        self._found, self._count, self._one = (
            torch.full((), value, device=device) for value in (0.0, 0.0, 1.0)
        )
        self.waits_every_step = waits_every_step and not self._is_scaled
        # GradScaler tells a fused optimizer to skip a step in the same way.
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if is_fused and not (self._is_scaled or self.waits_every_step):
            optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def check(self) -> None:
        """Record whether the gradients are finite now."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._is_scaled:
            self._found.zero_()
        # The check that GradScaler uses: one pass over all gradients, here with a scale of 1.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        if not self.waits_every_step:
            self._count += self._found

    def skipped_steps(self) -> int:
        """Return how many steps were skipped since the last call; this waits for the device."""
        if self.waits_every_step:
            return int(self._found.item())
        count = int(self._count.item())
        self._count.zero_()
        return count
