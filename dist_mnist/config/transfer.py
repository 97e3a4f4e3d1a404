"""The schema of transfer learning: the network a run starts from. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from dist_mnist.config.errors import require
from dist_mnist.config.overrides import checked_path


@dataclass
class TransferConfig:
    """A network to start from, and which of its parameters are trained, when and how fast.

    Patterns are names of parameters or modules, in which `*` and `?` are wild.
    """

    checkpoint: str | None = None  # a run directory, a checkpoint or a state dict
    freeze: list[str] = field(default_factory=list)
    learning_rates: Any = None  # by pattern, in place of optimizer.lr; a dict would refuse new keys
    thaw_epoch: int | None = None  # the first epoch, from 1, that trains the frozen parameters

    def __post_init__(self) -> None:
        rule = "it must be a file or a run directory, or null"
        self.checkpoint = checked_path("transfer.checkpoint", self.checkpoint, rule)
        rates = self.learning_rates = {} if self.learning_rates is None else self.learning_rates
        rule = "give a rate above 0 for each pattern, as in {layers.0:0.001}"
        is_mapping = isinstance(rates, dict) and all(
            type(r) in (int, float) for r in rates.values()
        )
        is_valid = is_mapping and all(rate > 0 for rate in rates.values())
        require(is_valid, "transfer.learning_rates", rates, rule)
        thaw = self.thaw_epoch
        rule = "it must be at least 2: it is the first epoch that trains the frozen parameters"
        require(thaw is None or thaw >= 2, "transfer.thaw_epoch", thaw, rule)
        rule = "nothing is frozen; name parameters in transfer.freeze"
        require(thaw is None or bool(self.freeze), "transfer.thaw_epoch", thaw, rule)

    def frozen_in(self, epoch: int) -> list[str]:
        """Return the patterns of the parameters that an epoch, from 0, does not train."""
        is_thawed = self.thaw_epoch is not None and epoch + 1 >= self.thaw_epoch
        return [] if is_thawed else self.freeze
