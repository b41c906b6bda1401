"""What a model hands back: per-sample losses and what its routers did; who trains it is not its business."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class RoutingStatistics:
    """What the L routers of one forward did, detached, masked positions left out.

    Routers may have different numbers of experts; E is the largest, and what a router does not have is 0.
    """

    sites: tuple[str, ...]
    """Names of the routed layers, in order (length L)."""
    layers: tuple[int, ...]
    """Number of the model's layer that each of them is in."""
    num_experts: tuple[int, ...]
    """Experts of each."""
    modalities: tuple[str, ...]
    """Kinds of positions (length M)."""
    load_BLME: Tensor
    """Choices of each expert: int64 counts per sample, router and modality; k a position with top-k."""
    probability_BLE: Tensor
    """Sum over positions of the router's softmax, float32."""
    entropy_BL: Tensor
    """Sum over positions of the softmax's entropy in nats, float32."""
    positions_B: Tensor
    """Valid positions of each sample, int64."""

    def cut(self, samples: int) -> RoutingStatistics:
        """Returns the statistics of the first samples."""
        tensors = (self.load_BLME, self.probability_BLE, self.entropy_BL, self.positions_B)
        cut = (tensor[:samples] for tensor in tensors)
        return RoutingStatistics(self.sites, self.layers, self.num_experts, self.modalities, *cut)


@dataclass(frozen=True)
class VisionStatistics:
    """Which vision experts looked at a forward's images and how they were weighed, detached; no routing passes."""

    experts: tuple[str, ...]
    """Names, in order (length E)."""
    images_B: Tensor
    """Images of each sample, int64."""
    enriched_B: Tensor
    """Those that an expert looked at, int64."""
    routed_BE: Tensor
    """Those that each expert looked at, int64."""
    weight_BLE: Tensor
    """Sum over images of the weights in each of the adapter's L blocks, float32."""

    def cut(self, samples: int) -> VisionStatistics:
        """Returns the statistics of the first samples."""
        tensors = (self.images_B, self.enriched_B, self.routed_BE, self.weight_BLE)
        return VisionStatistics(self.experts, *(tensor[:samples] for tensor in tensors))


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
    """The same terms per numbered layer (B, layers), detached, for the log; those of frozen routers are here alone."""
    weights: dict[str, float] = field(default_factory=dict)
    """Coefficient of each auxiliary term."""
    routing: RoutingStatistics | None = None
    vision: VisionStatistics | None = None

    def loss(self, num_targets: float, num_samples: float) -> Tensor:
        """Returns this part's share of: sum(nll) / num_targets + sum_k w_k * sum(aux_k) / num_samples.

        The two counts are those of the whole global batch; shares of all micro-batches and ranks add up to its loss.
        """
        loss = self.nll_B.sum() / max(num_targets, 1.0)
        for name, term_B in self.auxiliary.items():
            loss = loss + self.weights[name] * term_B.sum() / max(num_samples, 1.0)
        return loss

    def cut(self, samples: int) -> ModelOutput:
        """Returns the output of the first samples, still connected to every parameter that took part."""
        return ModelOutput(
            self.nll_B[:samples],
            self.num_targets_B[:samples],
            {name: term_B[:samples] for name, term_B in self.auxiliary.items()},
            {name: term_BG[:samples] for name, term_BG in self.auxiliary_layers.items()},
            self.weights,
            None if self.routing is None else self.routing.cut(samples),
            None if self.vision is None else self.vision.cut(samples),
        )
