"""Who is active: a linear router and the choice it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.lora.spec import RouterSpec


@dataclass(frozen=True)
class Choice:
    """Experts of each token and their weights."""

    index_NK: Tensor
    """Chosen experts, int64."""
    gate_NK: Tensor | None = None
    """Weight of each choice, float32; None stands for ones."""


class LogitLayer(nn.Linear):
    """A linear layer from a token to one logit an expert, computed in float32 whatever the model's format."""

    def __init__(self, width: int, experts: int, bias: bool, init_std: float | None, jitter: float) -> None:
        """Draws fresh weights.

        Args:
            width: D.
            experts: E.
            bias: whether there is one.
            init_std: standard deviation of the weights; None draws them as torch's linear layer does.
            jitter: in training the input is multiplied by numbers from U(1 - jitter, 1 + jitter).
        """
        super().__init__(width, experts, bias=bias, dtype=torch.float32)
        self.jitter = jitter
        if init_std is not None:
            nn.init.normal_(self.weight, std=init_std)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns the logit of each expert (N, E), float32."""
        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            if self.training and self.jitter > 0:
                x_ND = x_ND * torch.empty_like(x_ND).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x_ND, self.weight.float(), None if self.bias is None else self.bias.float())


class Router(LogitLayer):
    """Logits and a softmax over all experts, and the choice between LoRA experts.

    arXiv 2401.16160, section 3; 2402.08562, section 3; 2404.15159, section 3. LLaVA-MoLE's released code computes the
    softmax in bfloat16, where ties are common; float32 here (a run in bf16 rounds the weights, as all that trains, and
    keeps them exact beside). With one expert there is nothing to route: the probability is 1 whatever the weights.
    """

    def __init__(self, width: int, experts: int, spec: RouterSpec) -> None:
        super().__init__(width, experts, spec.bias, spec.init_std, spec.jitter)
        self.spec = spec

    def choose(self, probability_NE: Tensor) -> Choice:
        """Returns the experts of each row by the rule of the spec; with top1 ties go to the first expert."""
        if self.spec.selection == "dense":
            num_rows, num_experts = probability_NE.shape
            every_E = torch.arange(num_experts, device=probability_NE.device)
            return Choice(every_E.expand(num_rows, num_experts), probability_NE)
        if self.spec.selection == "topk":
            assert self.spec.k is not None
            chosen_NK, index_NK = probability_NE.topk(self.spec.k, dim=-1)
            return Choice(index_NK, chosen_NK / chosen_NK.sum(dim=-1, keepdim=True))
        if self.spec.selection == "top_p":
            assert self.spec.p is not None
            weight_NE, index_NE = top_p(probability_NE, self.spec.p)
            return Choice(index_NE, weight_NE / weight_NE.sum(dim=-1, keepdim=True))
        index_N1 = probability_NE.argmax(dim=-1, keepdim=True)
        if self.spec.selection == "top1":
            return Choice(index_N1)
        chosen_N1 = probability_NE.gather(1, index_N1)
        if self.spec.selection == "top1_straight_through":
            # p - p is exactly 0, so the forward value is exactly 1.
            chosen_N1 = chosen_N1 - chosen_N1.detach() + 1.0
        return Choice(index_N1, chosen_N1)


def top_p(probability_NE: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Returns each row's experts by falling probability (N, E) and their weights; 0 for those that are not chosen.

    Chosen are the most probable until their sum passes p, the one that passes it included (MixLoRA-dynamic in MoE-PEFT,
    which leaves the weights as they are; the router renormalises them).
    """
    sorted_NE, index_NE = probability_NE.sort(dim=-1, descending=True, stable=True)
    before_NE = sorted_NE.cumsum(dim=-1) - sorted_NE
    return sorted_NE.masked_fill(before_NE > p, 0.0), index_NE
