"""A sparse mixture of whole feed-forward experts in place of a dense block, and which combinations mean something."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec
from mmmoe.models.lora.spec import BalanceSpec

BASE = "base"
"""Name of the expert that is the block as it stands."""


class GateSpec(Spec):
    """Who serves a token: a linear layer, softmax in float32, the k most probable experts."""

    k: int = Field(default=2, ge=1, le=8)
    """Experts of a token."""
    weights: Literal["renormalised", "softmax"] = "renormalised"
    """renormalised: the weights of the chosen add up to 1 (Uni-MoE's code, Mixtral); softmax: their probabilities among
    all experts (Uni-MoE's paper), so that the output shrinks by what the others have."""
    bias: bool = False
    init_std: float | None = Field(default=None, gt=0)
    """Standard deviation of fresh weights; null draws them as torch's linear layer does (Kaiming-uniform)."""
    jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In training the input is multiplied by numbers from U(1 - jitter, 1 + jitter)."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """In training an expert keeps at most ceil(factor * k * positions / experts) choices of a process's micro-batch,
    padding counted among the positions; null keeps all, and so does evaluation."""
    min_capacity: int = Field(default=4, ge=1)
    """Least capacity of an expert."""
    drop: Literal["position", "choice", "probability"] = "position"
    """Which choices go when an expert is full: the later tokens'; the later tokens', second choices first (DeepSpeed's
    top-2); the least probable (DeepSpeed's top-k). Weights are renormalised over what is left."""


class ExpertLoRASpec(Spec):
    """LoRA on all three projections of every expert, each expert its own."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The scale s is alpha / rank."""
    rslora: bool = False
    """The scale s is alpha / sqrt(rank) instead."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapter's input, in training."""


class MoESpec(Spec):
    """Dense blocks become y = sum over the chosen experts of weight * FFN_e(x) (arXiv 2405.11273, section 3.2)."""

    kind: Literal["moe"] = "moe"
    sites: list[str] = Field(min_length=1)
    """Glob patterns over module names of gated blocks, for example language.*.mlp."""
    layers: Literal["all", "interval", "first_half", "second_half"] | list[Annotated[int, Field(ge=0)]] = "all"
    """Which of those layers: interval is every second one, from layer 0."""
    experts: list[str] = Field(min_length=1, max_length=1024)
    """Where each expert comes from, in order of its number: `base` is the block as it stands; otherwise a stage of the
    run, or the folder of a finished stage, whose LoRA on these blocks is merged into them."""
    gate: GateSpec = GateSpec()
    balance: BalanceSpec = BalanceSpec(kind="none")
    lora: ExpertLoRASpec | None = None
    """null leaves the experts without adapters; then patterns of the stage may train their weights."""
    move: Literal["auto", "tokens", "weights"] = "auto"
    """What travels between the processes of an expert-parallel group: the tokens, or the experts' weights; auto takes
    what is fewer bytes in each forward."""

    @model_validator(mode="after")
    def _combination_means_something(self) -> MoESpec:
        gate, balance = self.gate, self.balance
        if gate.k > len(self.experts):
            raise ValueError(f"gate.k is {gate.k}, but there are {len(self.experts)} experts")
        is_idle = balance.kind == "none" or balance.weight == 0
        if gate.k == 1 and len(self.experts) > 1 and gate.weights == "renormalised" and is_idle:
            raise ValueError(
                "gate.k 1 with renormalised weights makes the weight always 1, so the router would never learn: "
                "use weights softmax, or give balance a kind and a weight"
            )
        if gate.capacity_factor is None and (gate.drop, gate.min_capacity) != ("position", 4):
            raise ValueError("gate.drop and gate.min_capacity have no meaning without gate.capacity_factor")
        return self
