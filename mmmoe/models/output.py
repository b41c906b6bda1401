"""What a model hands back: per-sample losses and what its routers did; who trains it is not its business."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class RoutingStatistics:
    """What the routers of one forward did, detached, masked positions left out."""

    layers: tuple[str, ...]
    """Names of the routed blocks, in order (length L)."""
    load_BLE: Tensor
    """Positions that chose each expert: int64 counts per sample, layer and expert."""
    probability_BLE: Tensor
    """Sum over positions of the router's softmax, float32."""
    entropy_BL: Tensor
    """Sum over positions of the softmax's entropy in nats, float32."""


@dataclass(frozen=True)
class ModelOutput:
    """Per-sample terms, so that a loss over a global batch is the same however the batch is cut up."""

    nll_B: Tensor
    """Sum of -log p over each sample's target tokens, float32, with graph."""
    num_targets_B: Tensor
    """Number of target tokens of each sample, int64."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Unweighted auxiliary terms by name, one value a sample (B,), with graph."""
    auxiliary_layers: dict[str, Tensor] = field(default_factory=dict)
    """The same terms per layer (B, L), detached, for the log."""
    weights: dict[str, float] = field(default_factory=dict)
    """Coefficient of each auxiliary term."""
    routing: RoutingStatistics | None = None

    def loss(self, num_targets: float, num_samples: float) -> Tensor:
        """Returns this part's share of: sum(nll) / num_targets + sum_k w_k * sum(aux_k) / num_samples.

        The two counts are those of the whole global batch; shares of all micro-batches and ranks add up to its loss.
        """
        loss = self.nll_B.sum() / max(num_targets, 1.0)
        for name, term_B in self.auxiliary.items():
            loss = loss + self.weights[name] * term_B.sum() / max(num_samples, 1.0)
        return loss
