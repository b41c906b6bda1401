"""Where a process stands in its expert-parallel group, and how many bytes have left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Traffic:
    """Bytes this process has sent to others."""

    tokens: int = 0
    """Rows, weights and expert numbers of tokens, and what comes back of them in the backward pass."""
    weights: int = 0
    """Experts' weights and their gradients."""


@dataclass(frozen=True)
class ExpertPlace:
    """One process's share of the experts: those from rank * E / size to (rank + 1) * E / size - 1."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """torch.distributed's group of the processes that hold all experts together."""
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def own(self, num_experts: int) -> slice:
        """Returns the experts held here.

        Raises:
            ValueError: The experts cannot be shared out evenly.
        """
        if num_experts % self.size:
            raise ValueError(
                f"{num_experts} experts cannot be shared by {self.size} processes: engine.ep_size must divide "
                "the number of experts"
            )
        share = num_experts // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


ALONE = ExpertPlace()
"""All experts in one process."""
