"""The adapter grammar: experts x router x allocation x balance, and which combinations mean something.

Two functions are called a mixture of LoRA experts, and a third lies between them (`ExpertsSpec.level`); the methods of
the papers are points of this grammar: LLaVA-MoLE is `block` with `top1`, MoLA `linear` with `topk`, MixLoRA `ffn` with
`topk`. What cannot work is refused here, before a weight is read.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec

Projection = Literal["gate", "up", "down"]
Rows = Literal["all", "routing", "answers"]
Count = Annotated[int, Field(ge=1, le=1024)]
PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")


class LoRASpec(Spec):
    """Plain LoRA on linear layers: y = W x + s B A x. It is the case of one expert, without a router."""

    kind: Literal["lora"] = "lora"
    sites: list[str] = Field(min_length=1)
    """Glob patterns over module names, for example language.*.self_attn.*_proj."""
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The scale s is alpha / rank."""
    rslora: bool = False
    """The scale s is alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapter's input, in training."""
    rows: Rows = "all"
    """routing: only in MoVA's routing passes, where the language model chooses vision experts (the routing LoRA of the
    paper's first version); answers are then those of a model without it. answers: everywhere else, so that a stage
    that learns from routed images leaves what routing passes say as it was."""

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class RouterSpec(Spec):
    """Who is active: a linear router, softmax over all experts in float32."""

    unit: Literal["token", "sample"] = "token"
    """token: every position decides for itself; sample: one decision a sample, from the mean over its prompt (the
    positions before the first target; in generation the prompt), kept while the answer is written."""
    selection: Literal["top1", "top1_gated", "top1_straight_through", "topk", "top_p", "dense"] = "top1"
    """top1: the most probable expert with weight 1 (the task loss gives the router no gradient); top1_gated: times its
    probability (Switch); top1_straight_through: forward as top1, gradient as top1_gated; topk: the k most probable,
    weights renormalised to add up to 1; top_p: as many of the most probable as pass p together, renormalised (it costs
    what dense costs); dense: every expert by its probability."""
    k: int | None = Field(default=None, ge=1)
    """Experts of a token, with selection topk only."""
    p: float | None = Field(default=None, gt=0, lt=1)
    """Probability that a token's experts pass together, with selection top_p only."""
    bias: bool = True
    init_std: float | None = Field(default=None, gt=0)
    """Standard deviation of fresh weights; null draws them as torch's linear layer does (Kaiming-uniform)."""
    jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In training the router's input is multiplied by numbers from U(1 - jitter, 1 + jitter)."""

    @model_validator(mode="after")
    def _sizes_belong_to_selections(self) -> RouterSpec:
        if (self.selection == "top_p") != (self.p is not None):
            raise ValueError(f"p={self.p} with selection {self.selection}: p belongs to top_p, which needs one")
        if self.selection == "topk" and (self.k is None or self.k < 2):
            raise ValueError(
                f"selection topk needs k of 2 or more, got {self.k}: the renormalised weight of one is always 1, "
                "so the router would never learn; use top1_gated or top1_straight_through for one"
            )
        if self.selection != "topk" and self.k is not None:
            raise ValueError(f"k={self.k} has no meaning with selection {self.selection}; leave it out or use topk")
        return self


class BalanceSpec(Spec):
    """What keeps expert loads alike: E sum_e f_e P_e, with f the shares of choices and P the mean probabilities.

    One convention for all methods: even routing gives 1, whatever E and k; all tokens on the same k of E experts give
    E / k. The papers' values are multiples: LLaVA-MoLE's is 1 / E of it, MixLoRA's k times.
    """

    kind: Literal["pooled", "per_layer", "none"] = "pooled"
    """pooled: rows of all layers in one mean; per_layer: one term for all routers of a layer, averaged over layers."""
    over: Literal["sample", "micro_batch"] = "sample"
    """sample: a term for each sample, so that the loss is the same however a batch is cut up; micro_batch: shares and
    means over all samples that pass together, as most code does: it leaves a sample's experts free to be its own, but
    depends on the size of the micro-batch."""
    choices: Literal["all", "first"] = "all"
    """Which choices f counts: all k, or each position's first (GShard's, DeepSpeed's top-2)."""
    weight: float = Field(default=0.01, ge=0.0)
    """Coefficient of the term in the loss; 0 with kind none."""
    z_weight: float = Field(default=0.0, ge=0.0)
    """Coefficient of the mean squared logsumexp of the router's logits, which keeps them small (z-loss)."""

    @model_validator(mode="before")
    @classmethod
    def _no_term_weighs_nothing(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("kind") == "none":
            return {"weight": 0.0} | given
        return given

    @model_validator(mode="after")
    def _weight_has_a_term(self) -> BalanceSpec:
        if self.kind == "none" and self.weight > 0:
            raise ValueError(f"weight={self.weight} has no term to weigh with kind none; leave it out or give a kind")
        return self


class AllocationSpec(Spec):
    """More experts in some layers than in others (MoLA, arXiv 2402.08562): four bands of layers and a budget."""

    shape: Literal["rectangle", "triangle", "inverted_triangle", "hourglass"]
    """Experts of the four bands, from the first layers to the last, as ratios: rectangle 5:5:5:5, triangle 8:6:4:2,
    inverted_triangle 2:4:6:8 (the paper's best), hourglass 8:2:2:8."""
    total: int = Field(ge=1)
    """Sum of the layers' numbers of experts; all shapes with one total have as many parameters."""


class ExpertsSpec(Spec):
    """Routed LoRA experts on frozen layers."""

    kind: Literal["experts"] = "experts"
    level: Literal["linear", "block", "ffn"]
    """linear: sites are linear layers, a router each, y = W x + s sum_e g_e B_e A_e x (MoLA); block: sites are gated
    feed-forward blocks with one router, whose choice serves the same sum on each projection (LLaVA-MoLE); ffn: the
    block as a whole is mixed, y = sum_e g_e FFN(x; W + s B_e A_e) (MixLoRA)."""
    sites: list[str] = Field(min_length=1)
    """Glob patterns over module names, for example language.*.mlp or language.*_proj."""
    experts: Count | list[Count] | AllocationSpec
    """One number for all layers, a list with one a layer, or a shape with a budget."""
    projections: list[Projection] = Field(default=list(PROJECTIONS), min_length=1)
    """Projections of a block that carry experts."""
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The scale s is alpha / rank."""
    rslora: bool = False
    """The scale s is alpha / sqrt(rank) instead."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the experts' inputs, in training. At level ffn it is drawn anew for each choice and keeps the kernels out."""
    router: RouterSpec = RouterSpec()
    balance: BalanceSpec = BalanceSpec()

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def num_chosen(self) -> int | None:
        """Experts of a token; None where it may be any number."""
        return {"topk": self.router.k, "top_p": None, "dense": None}.get(self.router.selection, 1)

    @model_validator(mode="after")
    def _combination_means_something(self) -> ExpertsSpec:
        selection, balance = self.router.selection, self.balance
        if len(set(self.projections)) < len(self.projections):
            raise ValueError(f"projections {self.projections} name one twice")
        if self.level == "linear" and self.projections != list(PROJECTIONS):
            raise ValueError("projections belong to levels block and ffn; with level linear the sites name the layers")
        if self.level == "ffn" and selection == "top1_gated":
            raise ValueError(
                "level ffn multiplies the frozen block by the sum of the gates, so they must add up to 1; "
                "top1_gated's do not: use top1, top1_straight_through, topk, top_p or dense"
            )
        if selection == "top1" and (balance.kind == "none" or balance.weight == 0):
            raise ValueError(
                "selection top1 gives the router no gradient but that of the balance loss, and there is none: "
                "give balance a kind and a weight, or use top1_gated or top1_straight_through"
            )
        if balance.kind == "pooled" and self.has_unequal_layers():
            raise ValueError("balance pooled needs as many experts in every layer; use kind per_layer")
        if self.router.unit == "sample" and balance.kind != "none" and balance.over == "sample":
            raise ValueError(
                "unit sample makes one choice a sample, whose share is 1 whatever it is: use balance.over micro_batch"
            )
        return self

    def has_unequal_layers(self) -> bool:
        """Says whether layers may differ in their number of experts."""
        if isinstance(self.experts, list):
            return len(set(self.experts)) > 1
        return isinstance(self.experts, AllocationSpec)


class SlideLoRASpec(Spec):
    """Slide-LoRA (TextHarmony, arXiv 2407.16364): experts of each task and experts that all tasks share.

    y = W x + s sum_e g_e B_e A_e x, with one g a sample for all layers and positions: half of it on the experts of the
    sample's task, half on the shared ones. Experts of other tasks take no part and get a gradient of exactly zero.
    """

    kind: Literal["slide_lora"] = "slide_lora"
    sites: list[str] = Field(min_length=1)
    """Glob patterns over names of linear layers, for example language.*.self_attn.*_proj."""
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The scale s is alpha / rank if `scaled`."""
    scaled: bool = False
    """The release computes alpha / rank and does not multiply by it: s is 1, whatever alpha."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the experts' input, in training."""
    tasks: int = Field(default=2, ge=1)
    """Tasks with experts of their own, numbered as `config/ids.TASKS`."""
    experts_per_task: int = Field(default=1, ge=1)
    """Experts of each task, and shared ones: (tasks + 1) times as many in all, the shared ones last."""
    init: Literal["released", "lora"] = "released"
    """Fresh A: released draws from U(-1/sqrt(in rank), 1/sqrt(in rank)), since Kaiming's rule met a stack; lora from
    U(-1/sqrt(in), 1/sqrt(in)) as other adapters do."""
    gate: Literal["keyword", "label", "learned"] = "keyword"
    """Who knows a sample's task. keyword: the released rule on its question; label: its answer, which is to be an image
    or not; learned: a linear layer on the mean of the prompt's embeddings, which learns the label by a loss of its
    own (the release defines such a layer and does not use it)."""
    mixing: Literal["hard", "soft"] = "hard"
    """Of a learned gate. hard: the label's experts in training, the more probable task's when there is none or the
    model answers; soft: experts of all tasks, by the probabilities of their tasks."""
    gate_weight: float = Field(default=0.0, ge=0.0)
    """Coefficient of a learned gate's cross-entropy against the label, in the loss."""

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return self.alpha / self.rank if self.scaled else 1.0

    @property
    def num_experts(self) -> int:
        """Experts of all tasks, and the shared ones."""
        return (self.tasks + 1) * self.experts_per_task

    @model_validator(mode="after")
    def _gate_learns_or_does_not(self) -> SlideLoRASpec:
        if self.gate != "learned" and (self.mixing == "soft" or self.gate_weight > 0):
            raise ValueError(
                f"mixing {self.mixing} and gate_weight {self.gate_weight} with gate {self.gate}, which has nothing to "
                "learn: leave them out, or use gate: learned"
            )
        if self.gate == "learned" and self.mixing == "hard" and self.gate_weight == 0:
            raise ValueError("a learned gate that mixes hard learns from its own loss alone: give gate_weight (1.0)")
        return self
