"""Notices a gradient that is not finite in the step where it first occurs."""

import torch

from dist_mnist.config.errors import InputError


class NonFiniteError(InputError):
    """A loss, a gradient or a weight is not finite."""


class FiniteCheck:
    """Checks the gradients of every step, which are the same on every rank.

    The first step that is not finite is skipped, and so are all later steps. On a CPU or MPS the
    caller asks after every check. Asking a GPU would mean waiting for it, so there a fused
    optimizer skips the step on the GPU, and the number of skipped steps later shows which step was
    the first.

    A scaler of float16 gradients skips steps to adapt its scale, which is not an error: those are
    only counted.

    Args:
        scaler: May be disabled.
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
        # GradScaler makes a fused optimizer skip a step in the same way.
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if is_fused and not (self._is_scaled or self.waits_every_step):
            optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def record(self) -> None:
        """Record whether the gradients are finite now."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._is_scaled:
            self._found.zero_()
        # The check that GradScaler uses: one pass over all gradients, here with a scale of 1.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        if not self.waits_every_step:
            self._count += self._found

    def skipped_steps(self) -> int:
        """Return the number of steps skipped since the last call; this waits for the device."""
        if self.waits_every_step:
            return int(self._found.item())
        count = int(self._count.item())
        self._count.zero_()
        return count
