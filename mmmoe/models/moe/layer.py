"""The sparse feed-forward block that takes a dense one's place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.kernels.route_topk.reference import Routing
from mmmoe.kernels.send_order.op import send_order
from mmmoe.models.lora.router import LogitLayer
from mmmoe.models.lora.spec import PROJECTIONS
from mmmoe.models.lora.tape import RoutingRow, RoutingTape
from mmmoe.models.moe.exchange import compute_here, compute_there, compute_with_gathered, moves_tokens
from mmmoe.models.moe.experts import Experts
from mmmoe.models.moe.gate import route
from mmmoe.models.moe.place import ExpertPlace
from mmmoe.models.moe.spec import MoESpec


class SparseFFN(nn.Module):
    """y = sum over the k chosen experts of weight * FFN_e(x) (Uni-MoE, arXiv 2405.11273, section 3.2); 0 at padding.

    Fresh, every expert is a copy of the dense block; with renormalised weights the output is then the dense block's.
    """

    def __init__(self, block: Any, spec: MoESpec, tape: RoutingTape, site: int, place: ExpertPlace) -> None:
        """Copies a dense block.

        Args:
            block: gated, its projections without bias.
            spec: the declaration.
            tape: where the routing is noted.
            site: this block's number on the tape.
            place: which experts are held here.

        Raises:
            ValueError: The block has biases, or its experts cannot be shared out.
        """
        super().__init__()
        if any(getattr(block, f"{name}_proj").bias is not None for name in PROJECTIONS):
            raise ValueError("a sparse block needs a dense one whose projections have no bias")
        self.spec, self.tape, self.site, self.place = spec, tape, site, place
        self.num_experts = len(spec.experts)
        own = place.own(self.num_experts)
        gate = spec.gate
        width = block.gate_proj.in_features
        self.router = LogitLayer(width, self.num_experts, gate.bias, gate.init_std, gate.jitter)
        # Drawn for all experts and then cut, so that a fresh expert does not depend on who holds it.
        self.experts = Experts(self.num_experts, block, spec.lora)
        if place.size > 1:
            keep_own(self.experts, own)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the block's output (B, T, D) and notes the routing on the tape."""
        batch, length, width = x_BTD.shape
        x_ND = x_BTD.reshape(-1, width)
        logits_NE = self.router(x_ND)
        mask_BT = self.tape.mask(x_BTD)
        valid_N = None if mask_BT is None else mask_BT.reshape(-1)
        routing = route(logits_NE, self.spec.gate, valid_N, drops=self.training)
        # Not inside what is noted: recomputed under gradient checkpointing, the layer must save as many tensors.
        probability_NE = logits_NE.softmax(-1)
        self.tape.note(self.site, lambda: self._row(logits_NE, probability_NE, routing, batch, length))
        return self._served(x_ND, routing).view(x_BTD.shape)

    def _served(self, x_ND: Tensor, routing: Routing) -> Tensor:
        place = self.place
        if place.size == 1:
            return compute_here(x_ND, routing, self.experts)
        order = send_order(routing.expert_NK, self.num_experts, place.size)
        k, move = self.spec.gate.k, self.spec.move
        if move == "tokens" or (move == "auto" and moves_tokens(order, x_ND, k, self.experts, place)):
            return compute_there(x_ND, routing, order, self.experts, place)
        return compute_with_gathered(x_ND, routing, self.experts, place)

    def _row(self, logits_NE: Tensor, probability_NE: Tensor, routing: Routing, batch: int, length: int) -> RoutingRow:
        is_trained = any(parameter.requires_grad for parameter in self.router.parameters())
        return RoutingRow(
            logits_NE.view(batch, length, -1),
            probability_NE.view(batch, length, -1),
            routing.expert_NK.view(batch, length, -1),
            is_trained,
        )


def keep_own(experts: Experts, own: slice) -> None:
    """Cuts every stacked tensor to the experts of this process and marks it, for who reduces and saves it."""
    for module in experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            cut = nn.Parameter(parameter.detach()[own].clone(), requires_grad=parameter.requires_grad)
            cut.is_expert_share = True  # type: ignore[attr-defined]  # read by engine/expert_groups.py
            setattr(module, name, cut)


@torch.no_grad()
def fill_expert(layer: SparseFFN, number: int, projections: dict[str, Tensor]) -> None:
    """Sets one expert's weights, if this process holds it.

    Args:
        layer: the sparse block.
        number: the expert, among all.
        projections: gate, up and down (out, in).
    """
    own = layer.place.own(layer.num_experts)
    if own.start <= number < own.stop:
        for name, weight_OI in projections.items():
            linear: Any = getattr(layer.experts, f"{name}_proj")
            linear.weight_EOI[number - own.start].copy_(weight_OI)
