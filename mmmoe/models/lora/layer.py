"""The adapted linear layers: one LoRA, or routed LoRA experts with a router of their own."""

from __future__ import annotations

from torch import Tensor, nn

from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.router import Choice, Router
from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec
from mmmoe.models.lora.switch import RowSwitch
from mmmoe.models.lora.tape import RoutingTape


class LoRALinear(nn.Module):
    """y = W x + b + s B A x; the frozen layer is held untouched as `base`. A switch says in which rows, if given."""

    def __init__(self, base: nn.Linear, spec: LoRASpec, switch: RowSwitch | None = None) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self.rows = spec.rows
        self.lora = LoRAExperts(1, base.in_features, base.out_features, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the adapted output for inputs of any leading shape."""
        x_ND = x.reshape(-1, x.shape[-1])
        gate_N1 = None if self.switch is None else self.switch.gates(x, self.rows)
        only = Choice(x_ND.new_zeros(x_ND.shape[0], 1).long(), gate_N1)
        y_NF: Tensor = self.lora(x_ND, self.base(x_ND), only)
        return y_NF.view(*x.shape[:-1], -1)


class RoutedLinear(nn.Module):
    """y = W x + b + s sum_e g_e B_e A_e x, with the gates of a router on x (MoLA, arXiv 2402.08562, section 3.1).

    The frozen layer is held untouched as `base`.
    """

    def __init__(self, base: nn.Linear, spec: ExpertsSpec, experts: int, tape: RoutingTape, site: int) -> None:
        super().__init__()
        self.base = base
        self.tape = tape
        self.site = site
        self.experts = LoRAExperts(experts, base.in_features, base.out_features, spec)
        self.router = Router(base.in_features, experts, spec.router)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the adapted output for (B, T, D) inputs and writes the routing on the tape."""
        choice = self.tape.decide(self.router, x_BTD, self.site)
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        y_NF: Tensor = self.experts(x_ND, self.base(x_ND), choice)
        return y_NF.view(*x_BTD.shape[:-1], -1)
