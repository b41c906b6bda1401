"""Who counts how much: a block's weights of the experts that are routed to an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec

BARRED = -1e6
"""Added to the logit of an expert that is not routed to the image; its probability is then exactly 0."""


class ExpertGate(nn.Module):
    """Weights from the questions' vector and the mean of the image's tokens (MoVA, section 3.3).

    A softmax in float32 over all experts with those barred that are not routed, the top_k largest kept and divided by
    their sum. An image without experts has weights of zero: what the softmax says where all are barred is not read.
    Ties go to the experts declared first, whatever the device.
    """

    def __init__(self, spec: MoVAdapterSpec, channels: int, text_width: int, experts: int) -> None:
        super().__init__()
        self.top_k = min(spec.top_k, experts)
        self.layers: nn.Sequential | None = None
        if spec.gate == "learned":
            last = nn.Linear(channels, experts)
            self.layers = nn.Sequential(nn.Linear(text_width + channels, channels), nn.GELU(), last)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, text_IT: Tensor, x_IPC: Tensor, routing_IE: Tensor) -> Tensor:
        """Returns the weights (I, E), which sum to 1 where an expert is routed and are all 0 elsewhere."""
        exact = torch.promote_types(x_IPC.dtype, torch.float32)
        routed_IE = routing_IE.to(exact)
        if self.layers is None:
            return (routed_IE / routed_IE.sum(1, keepdim=True).clamp(min=1.0)).to(x_IPC.dtype)
        logits_IE: Tensor = self.layers(torch.cat([text_IT, x_IPC.mean(1)], dim=-1)).to(exact)
        probability_IE = (logits_IE + (1.0 - routed_IE) * BARRED).softmax(-1)
        chosen_IK = probability_IE.argsort(dim=-1, descending=True, stable=True)[:, : self.top_k]
        kept_IE = probability_IE * torch.zeros_like(probability_IE).scatter(1, chosen_IK, 1.0)
        weight_IE: Tensor = kept_IE / kept_IE.sum(1, keepdim=True)
        return (weight_IE * routed_IE.amax(1, keepdim=True)).to(x_IPC.dtype)
