"""Notices a loss or a gradient that is not finite, in the step it comes up in."""

import torch

from dist_mnist.config.errors import InputError


class NonFiniteError(InputError):
    """A loss or a gradient is not finite.

    Attributes:
        step: The step that could not be made, from 1.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class FiniteCheck:
    """Looks at the gradients of every step, which are the same on every rank.

    The first step that is not finite is not made, nor any after it. On a CPU the caller asks after
    every look. A GPU would have to be waited for: there a fused optimizer sees by itself whether to
    make the step, and how many it has not made tells later which was the first.

    Where a scaler adapts the scale of float16 gradients, it skips steps by itself, and that is
    no error: here they are counted.

    Args:
        optimizer: Whose parameters' gradients to look at.
        scaler: May be disabled.
        device: Where the parameters are.
        asks_every_step: Whether the caller does.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        asks_every_step: bool,
    ) -> None:
        self._parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        self._is_scaled = scaler.is_enabled()
        self._found, self._count, self._one = (
            torch.full((), value, device=device) for value in (0.0, 0.0, 1.0)
        )
        self.asks_every_step = asks_every_step and not self._is_scaled
        # As GradScaler tells a fused optimizer.
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if is_fused and not (self._is_scaled or self.asks_every_step):
            optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def look(self) -> None:
        """Take note of whether the gradients are finite now."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._is_scaled:
            self._found.zero_()
        # What GradScaler looks with: one pass over all of them, here times 1.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        if not self.asks_every_step:
            self._count += self._found

    def steps_not_made(self) -> int:
        """Return how many steps were not finite since this was last asked; waits for the device."""
        if self.asks_every_step:
            return int(self._found.item())
        count = int(self._count.item())
        self._count.zero_()
        return count
