"""A model with sparse blocks whose experts may be spread over processes, trained by either engine."""

from __future__ import annotations

from typing import Any

import torch
from engine_toy import ToyOutput, toy_fit, toy_training
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.engine.build import build_engine
from mmmoe.engine.expert_groups import make_groups
from mmmoe.engine.groups import freeze
from mmmoe.engine.protocol import Engine
from mmmoe.engine.spec import EngineSpec
from mmmoe.models.lora.tape import RoutingTape
from mmmoe.models.moe.layer import fill_expert
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.moe.spec import ExpertLoRASpec, GateSpec, MoESpec
from mmmoe.models.moe.upcycle import upcycle

WIDTH, INNER, VOCABULARY, EXPERTS = 8, 12, 13, 4
TRAINS = ["head.*", "*.lora.*", "*.router.*"]


class Gated(nn.Module):
    """A gated block as transformers writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.act_fn = F.silu

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": Gated()}) for _ in range(2))


class MoEToy(nn.Module):
    """Embedding, two sparse blocks, head."""

    def __init__(self, spec: MoESpec, place: ExpertPlace) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.language = Language()
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.tape: RoutingTape = upcycle(self, spec, place).tape
        generator = torch.Generator().manual_seed(7)
        for site in self.tape.sites:
            layer = self.get_submodule(site)
            for number in range(EXPERTS):
                shapes = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
                fill_expert(layer, number, {n: torch.randn(s, generator=generator) * 0.5 for n, s in shapes.items()})
            for name in ("gate_proj", "up_proj", "down_proj"):
                linear = getattr(layer.experts, name)
                drawn = torch.randn(EXPERTS, *linear.lora.b_EOR.shape[1:], generator=generator) * 0.2
                linear.lora.b_EOR.data.copy_(drawn[place.own(EXPERTS)])

    def forward(self, input_ids_BT: Tensor, labels_BT: Tensor, pixels_BD: Tensor) -> ToyOutput:
        x = self.tokens(input_ids_BT)
        with self.tape.recording() as rows:
            for block in self.language.layers:
                x = x + block["mlp"](x)
        balance_B = torch.stack([row.probability_BTE.mean(1).square().sum(-1) for row in rows.values()]).sum(0)
        logits = self.head(x).float()
        nll = F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=-100, reduction="none")
        return ToyOutput(nll.view_as(labels_BT).sum(1), (labels_BT != -100).sum(1), {"balance": balance_B})


def moe_spec(**fields: Any) -> MoESpec:
    fields = {"lora": ExpertLoRASpec(rank=2, alpha=4), "gate": GateSpec(k=2)} | fields
    return MoESpec(sites=["language.*.mlp"], experts=["base"] * EXPERTS, **fields)


def moe_engine(
    engine_spec: EngineSpec, spec: MoESpec, micro_batch: int = 2, kind: type[MoEToy] = MoEToy
) -> tuple[Engine, ExpertPlace]:
    """The model under an engine, and where this process stands."""
    groups = make_groups(engine_spec)
    place = ALONE if groups is None else ExpertPlace(groups.rank, groups.size, groups.group)
    torch.manual_seed(3)
    model = kind(spec, place)
    freeze(model, TRAINS)
    return build_engine(model, engine_spec, toy_training(micro_batch), experts=groups), place


def moe_fit(engine: Engine, start: int, end: int, micro_batch: int = 2) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of steps [start, end)."""
    records = toy_fit(engine, toy_training(micro_batch), start, end)
    return [record.loss for record in records], [record.grad_norm for record in records]
