"""Who is active: a linear router over tokens, the choice it makes, and the tape that remembers what was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.spec import RouterSpec


@dataclass(frozen=True)
class Choice:
    """Experts of each token and their weights."""

    index_NK: Tensor
    """Chosen experts, int64."""
    gate_NK: Tensor | None = None
    """Weight of each choice; None stands for ones."""


class Router(nn.Linear):
    """A linear layer with bias over tokens and a softmax over all experts, in float32.

    arXiv 2401.16160, section 3. The released code computes the softmax in bfloat16, where ties are common; float32
    here. With one expert there is nothing to route: the probability is 1 whatever the weights.
    """

    def __init__(self, width: int, experts: int, spec: RouterSpec) -> None:
        super().__init__(width, experts, dtype=torch.float32)
        self.selection = spec.selection

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns the probability of each expert (N, E), float32."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.float(), self.weight.float(), self.bias.float()).softmax(dim=-1)

    def choose(self, probability_NE: Tensor) -> Choice:
        """Returns the experts of each token by the rule of the spec; ties go to the first expert."""
        if self.selection == "dense":
            num_tokens, num_experts = probability_NE.shape
            every_E = torch.arange(num_experts, device=probability_NE.device)
            return Choice(every_E.expand(num_tokens, num_experts), probability_NE)
        index_N1 = probability_NE.argmax(dim=-1, keepdim=True)
        if self.selection == "top1":
            return Choice(index_N1)
        chosen_N1 = probability_NE.gather(1, index_N1)
        if self.selection == "top1_straight_through":
            # p - p is exactly 0, so the forward value is exactly 1.
            chosen_N1 = chosen_N1 - chosen_N1.detach() + 1.0
        return Choice(index_N1, chosen_N1)


@dataclass(frozen=True)
class RoutingRow:
    """What one router did in one forward."""

    probability_BTE: Tensor
    """Softmax over all experts, float32, with graph."""
    index_BT: Tensor
    """Most probable expert of each position, int64."""


@dataclass
class RoutingTape:
    """Collects the routing of one forward; shared by a model and its routed blocks.

    Blocks write always; what is written while nobody records is dropped, so the second run of a block under gradient
    checkpointing, or generation, leaves no trace.
    """

    layers: list[str] = field(default_factory=list)
    """Names of the routed blocks, in model order."""
    _rows: dict[int, RoutingRow] | None = None

    @contextmanager
    def recording(self) -> Iterator[dict[int, RoutingRow]]:
        """Gives the rows of the forward that runs inside, by number of the block."""
        rows: dict[int, RoutingRow] = {}
        self._rows = rows
        try:
            yield rows
        finally:
            self._rows = None

    def write(self, layer: int, probability_BTE: Tensor, index_BT: Tensor) -> None:
        """Notes what the router of a block did."""
        if self._rows is not None:
            self._rows[layer] = RoutingRow(probability_BTE, index_BT)
