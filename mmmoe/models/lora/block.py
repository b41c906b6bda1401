"""Routed LoRA experts on a gated feed-forward block: mixed on each projection, or as whole blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.kernels.lora_ffn.fused import ACTIVATIONS
from mmmoe.kernels.lora_ffn.op import Factors, Frozen, lora_ffn
from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.router import Choice, Router
from mmmoe.models.lora.spec import PROJECTIONS, ExpertsSpec
from mmmoe.models.lora.tape import RoutingTape


class RoutedBlock(nn.Module, ABC):
    """A gated block with E LoRA experts on its projections and one router; subclasses say what is mixed.

    The frozen block is held untouched as `base`; `is_gated` holds for it.
    """

    def __init__(self, base: nn.Module, spec: ExpertsSpec, experts: int, tape: RoutingTape, site: int) -> None:
        super().__init__()
        self.base: Any = base
        self.tape = tape
        self.site = site
        self.experts = nn.ModuleDict()
        for name in spec.projections:
            linear = self.projection(name)
            self.experts[name] = LoRAExperts(experts, linear.in_features, linear.out_features, spec)
        self.router = Router(self.projection("gate").in_features, experts, spec.router)

    def projection(self, name: str) -> nn.Linear:
        """Returns a frozen projection of the block."""
        linear: nn.Linear = getattr(self.base, f"{name}_proj")
        return linear

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the block's output for (B, T, D) inputs and writes the routing on the tape."""
        choice = self.tape.decide(self.router, x_BTD, self.site)
        return self.mixed(x_BTD.reshape(-1, x_BTD.shape[-1]), choice).view(x_BTD.shape)

    @abstractmethod
    def mixed(self, x_ND: Tensor, choice: Choice) -> Tensor:
        """Returns the block's output for the experts chosen."""


class ProjectionExperts(RoutedBlock):
    """Experts mixed on each projection: W x + s sum_e g_e B_e A_e x, the same g on all (arXiv 2401.16160, section 3).

    As in LLaVA-MoLE's released code the chosen update is not multiplied by the gate (selection top1), so the text loss
    gives the router no gradient; the other selections are our switches.
    """

    def mixed(self, x_ND: Tensor, choice: Choice) -> Tensor:
        """Returns down(act(gate(x)) * up(x)), each with its experts' update."""
        gate_NF, up_NF = self._project("gate", x_ND, choice), self._project("up", x_ND, choice)
        return self._project("down", self.base.act_fn(gate_NF) * up_NF, choice)

    def _project(self, name: str, x_NI: Tensor, choice: Choice) -> Tensor:
        y_NO: Tensor = self.projection(name)(x_NI)
        if name in self.experts:
            y_NO = self.experts[name](x_NI, y_NO, choice)
        return y_NO


class FFNExperts(RoutedBlock):
    """Whole blocks mixed: sum_e g_e FFN(x; W + s B_e A_e) (MixLoRA, arXiv 2404.15159, section 3.2).

    Computed with one frozen product a token and nothing kept of size N * K * F, see `mmmoe.kernels.lora_ffn`; with
    dropout, or another activation than SiLU and tanh-GELU, by the same op's slower way.
    """

    def __init__(self, base: nn.Module, spec: ExpertsSpec, experts: int, tape: RoutingTape, site: int) -> None:
        super().__init__(base, spec, experts, tape, site)
        biased = [name for name in PROJECTIONS if self.projection(name).bias is not None]
        if biased:
            raise ValueError(f"level ffn needs projections without bias, but {', '.join(biased)} have one; use block")
        self.activation = activation_of(self.base.act_fn)

    def mixed(self, x_ND: Tensor, choice: Choice) -> Tensor:
        """Returns the gate-weighted sum of the chosen experts' blocks, in the type the frozen block would give."""
        dtype, device = self.base.gate_proj.weight.dtype, x_ND.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        gate_NK = choice.gate_NK
        if gate_NK is None:
            gate_NK = torch.ones_like(choice.index_NK, dtype=torch.float32)
        stack: Any = next(iter(self.experts.values()))
        return lora_ffn(
            x_ND.to(dtype),
            Frozen(*(self.projection(name).weight.to(dtype) for name in PROJECTIONS)),
            self._factors("gate", stack, dtype),
            self._factors("up", stack, dtype),
            self._factors("down", stack, dtype),
            choice.index_NK,
            gate_NK,  # float32: the frozen block is multiplied by their sum, which rounding would move away from 1
            scale=stack.scale,
            activation=self.activation,
            dropout=stack.dropout if self.training else 0.0,
        )

    def _factors(self, name: str, stack: LoRAExperts, dtype: torch.dtype) -> Factors:
        """Returns a projection's factors; zeros for one that carries none."""
        if name in self.experts:
            own: Any = self.experts[name]
            return Factors(own.a_ERD.to(dtype), own.b_EDR.to(dtype))
        linear, (experts, rank, _) = self.projection(name), stack.a_ERD.shape
        shapes = (experts, rank, linear.in_features), (experts, linear.out_features, rank)
        return Factors(*(torch.zeros(shape, dtype=dtype, device=linear.weight.device) for shape in shapes))


def is_gated(module: nn.Module) -> bool:
    """Says whether a module is a gated (SwiGLU, GeGLU) feed-forward block as transformers writes them."""
    projections = (getattr(module, f"{name}_proj", None) for name in PROJECTIONS)
    return hasattr(module, "act_fn") and all(isinstance(linear, nn.Linear) for linear in projections)


def activation_of(function: Callable[[Tensor], Tensor]) -> str | Callable[[Tensor], Tensor]:
    """Returns the kernels' name of an activation, found by its values (classes are many), or the function itself."""
    probe = torch.linspace(-4.0, 4.0, 33, device="cpu")
    given = function(probe)
    return next((name for name, own in ACTIVATIONS.items() if torch.allclose(own(probe), given, atol=1e-6)), function)
