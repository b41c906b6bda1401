"""One block of the MoV-Adapter: a gate mixes what tokens read in the routed experts; then they look at each other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.connectors.mov_adapter_attention import GridRotary, RotaryAttention
from mmmoe.models.connectors.mov_adapter_features import RoutedMap
from mmmoe.models.connectors.mov_adapter_gate import ExpertGate
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec


class ExpertReader(nn.Module):
    """Cross-attention from the base tower's tokens to one expert's map, each with a norm of its own."""

    def __init__(self, channels: int, expert_channels: int) -> None:
        super().__init__()
        self.channels, self.expert_channels = channels, expert_channels
        self.token_norm = nn.LayerNorm(channels)
        self.map_norm = nn.LayerNorm(expert_channels)
        self.attention = RotaryAttention(channels, expert_channels)

    def forward(self, x_IPC: Tensor, map_IPC: Tensor, rotary: GridRotary) -> Tensor:
        """Returns what the tokens find in the map."""
        found_IPC: Tensor = self.attention(self.token_norm(x_IPC), self.map_norm(map_IPC), rotary)
        return found_IPC

    def blank(self, like: Tensor, rotary: GridRotary) -> Tensor:
        """Returns a number that every weight takes part in: one position reads a map of one position, all zeros."""
        x_IPC = like.new_zeros(1, 1, self.channels)
        found_IPC: Tensor = self(x_IPC, like.new_zeros(1, 1, self.expert_channels), rotary)
        return found_IPC.sum()


class NormedSwiGLU(nn.Module):
    """A gated feed-forward layer, normalised inside; its way out starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels * 8 // 3
        self.gate_proj = nn.Linear(channels, inner)
        self.up_proj = nn.Linear(channels, inner)
        self.norm = nn.LayerNorm(inner)
        self.down_proj = nn.Linear(inner, channels)
        nn.init.zeros_(self.down_proj.weight)
        nn.init.zeros_(self.down_proj.bias)

    def forward(self, x_IPC: Tensor) -> Tensor:
        """Returns the update of the tokens."""
        update_IPC: Tensor = self.down_proj(self.norm(F.silu(self.gate_proj(x_IPC)) * self.up_proj(x_IPC)))
        return update_IPC


class MoVBlock(nn.Module):
    """x + sum_j w_j f_j, then self-attention and a feed-forward layer (MoVA, section 3.3, equations 1 to 3).

    The authors run every cross-attention on every image of a batch and let weights of zero undo it; here each runs
    once, on the images that are routed to its expert. In training an expert without an image reads a blank, so that
    its weights get a gradient of zero and not none: other processes may have images for it, and must not wait.
    """

    def __init__(
        self, spec: MoVAdapterSpec, channels: int, expert_channels: Mapping[str, int], text_width: int
    ) -> None:
        super().__init__()
        self.gate = ExpertGate(spec, channels, text_width, len(expert_channels))
        self.readers = nn.ModuleDict({name: ExpertReader(channels, width) for name, width in expert_channels.items()})
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = RotaryAttention(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = NormedSwiGLU(channels)

    def forward(
        self, x_IPC: Tensor, maps: Mapping[str, RoutedMap], routing_IE: Tensor, text_IT: Tensor, rotary: GridRotary
    ) -> tuple[Tensor, Tensor]:
        """Returns the tokens (I, P, C) and the experts' weights (I, E)."""
        weight_IE = self.gate(text_IT, x_IPC, routing_IE)
        x_IPC = self._read(x_IPC, maps, weight_IE, rotary)
        normed_IPC = self.attention_norm(x_IPC)
        x_IPC = x_IPC + self.attention(normed_IPC, normed_IPC, rotary)
        x_IPC = x_IPC + self.mlp(self.mlp_norm(x_IPC))
        return x_IPC, weight_IE

    def _read(self, x_IPC: Tensor, maps: Mapping[str, RoutedMap], weight_IE: Tensor, rotary: GridRotary) -> Tensor:
        mixed_IPC = torch.zeros_like(x_IPC)
        blanks = []
        for e, (name, reader) in enumerate(self.readers.items()):
            if name in maps:
                routed = maps[name]
                found_IPC = reader(routed.pick(x_IPC), routed.map_IPC, rotary)
                routed.add_(mixed_IPC, found_IPC * routed.pick(weight_IE[:, e])[:, None, None])
            elif self.training:
                assert isinstance(reader, ExpertReader)
                blanks.append(reader.blank(x_IPC, rotary))
        if blanks:
            # Times the gate's weights, for a batch in which nothing else asks it.
            mixed_IPC = mixed_IPC + 0.0 * torch.stack(blanks).sum() * weight_IE.sum()
        return x_IPC + mixed_IPC
