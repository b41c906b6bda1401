"""The two adapted layers: a linear layer with one LoRA, a SwiGLU block with routed LoRA experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.router import Choice, Router, RoutingTape
from mmmoe.models.spec import LoRASpec, MoLESpec

PROJECTIONS = ("gate", "up", "down")


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / rank) B A x; the frozen layer is held untouched as `base`."""

    def __init__(self, base: nn.Linear, spec: LoRASpec) -> None:
        super().__init__()
        self.base = base
        self.lora = LoRAExperts(
            1, spec.rank, base.in_features, base.out_features, alpha=spec.alpha, dropout=spec.dropout
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the adapted output for inputs of any leading shape."""
        x_ND = x.reshape(-1, x.shape[-1])
        only = Choice(x_ND.new_zeros(x_ND.shape[0], 1, dtype=torch.int64))
        y_NF: Tensor = self.lora(x_ND, self.base(x_ND), only)
        return y_NF.view(*x.shape[:-1], -1)


class MoLEFeedForward(nn.Module):
    """A SwiGLU block whose three projections carry E LoRA experts each (arXiv 2401.16160, section 3).

    The router reads the block's input once; the same choice serves gate, up and down. The frozen block is held
    untouched as `base`. As in the released code the chosen update is not multiplied by the gate (selection top1), so
    the text loss gives the router no gradient; the other selections are our switches.
    """

    def __init__(self, base: nn.Module, spec: MoLESpec, tape: RoutingTape, layer: int) -> None:
        super().__init__()
        self.base = base
        self.tape = tape
        self.layer = layer
        self.experts = nn.ModuleDict()
        for name in PROJECTIONS:
            linear = _projection(base, name)
            self.experts[name] = LoRAExperts(
                spec.experts,
                spec.rank,
                linear.in_features,
                linear.out_features,
                alpha=spec.alpha,
                dropout=spec.dropout,
            )
        self.router = Router(_projection(base, "gate").in_features, spec.experts, spec.router)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the block's output for (B, T, D) inputs and writes the routing on the tape."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        probability_NE = self.router(x_ND)
        choice = self.router.choose(probability_NE)
        self._write(x_BTD, probability_NE, choice)
        gate_NF = self._project("gate", x_ND, choice)
        up_NF = self._project("up", x_ND, choice)
        act_fn: Any = self.base.act_fn
        return self._project("down", act_fn(gate_NF) * up_NF, choice).view(x_BTD.shape)

    def _project(self, name: str, x_NI: Tensor, choice: Choice) -> Tensor:
        base: Any = getattr(self.base, f"{name}_proj")
        y_NO: Tensor = self.experts[name](x_NI, base(x_NI), choice)
        return y_NO

    def _write(self, x_BTD: Tensor, probability_NE: Tensor, choice: Choice) -> None:
        index_NK = choice.index_NK
        index_N = index_NK[:, 0] if index_NK.shape[1] == 1 else probability_NE.argmax(dim=-1)
        leading = x_BTD.shape[:-1]
        self.tape.write(self.layer, probability_NE.view(*leading, -1), index_N.view(leading))


def _projection(block: nn.Module, name: str) -> nn.Linear:
    linear = getattr(block, f"{name}_proj", None)
    if not isinstance(linear, nn.Linear) or not hasattr(block, "act_fn"):
        raise ValueError(
            f"{type(block).__name__} is not a SwiGLU block: it needs linear gate_proj, up_proj, down_proj and an act_fn"
        )
    return linear
