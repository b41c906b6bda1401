"""What whole experts cost in parameters: the language model in all, and what serves one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.moe.layer import SparseFFN
from mmmoe.models.moe.spec import BASE, MoESpec
from mmmoe.models.spec import ModelSpec

Layers = Literal["interval", "all"]
GRID: tuple[tuple[int, Layers], ...] = ((4, "interval"), (4, "all"), (8, "interval"), (8, "all"))
"""The sizes of Uni-MoE's Table 1 (arXiv 2405.11273), counted beside the run's own."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of the language model with sparse blocks, their LoRA left out."""

    total: int
    active: int
    """Those that a token goes through: k experts a layer."""
    layers: int
    """Sparse layers."""


def sizes(model_spec: ModelSpec, spec: MoESpec) -> Sizes:
    """Returns the sizes, from configuration alone."""
    model: Any = build_model(model_spec, 0, meta=True)
    add_adapters(model, [spec.model_copy(update={"lora": None})], 0)
    blocks = [module for module in model.language.modules() if isinstance(module, SparseFFN)]
    total = sum(parameter.numel() for parameter in model.language.parameters())
    idle = sum(
        sum(parameter.numel() for parameter in block.experts.parameters()) // len(spec.experts) for block in blocks
    ) * (len(spec.experts) - spec.gate.k)
    return Sizes(total, total - idle, len(blocks))


def sizes_table(model_spec: ModelSpec, spec: MoESpec) -> Table:
    """Returns the run's own sizes and those of the paper's grid."""
    table = Table("experts", "sparse layers", "total", "active", title="language model with whole experts")
    for column in table.columns:
        column.justify = "right"
    others = [
        spec.model_copy(update={"experts": [BASE] * count, "layers": layers})
        for count, layers in GRID
        if count >= spec.gate.k and (count, layers) != (len(spec.experts), spec.layers)
    ]
    for number, one in enumerate([spec, *others]):
        found = sizes(model_spec, one)
        own = " (this run)" if number == 0 else ""
        table.add_row(f"{len(one.experts)}{own}", f"{found.layers}", f"{found.total:,}", f"{found.active:,}")
    return table
