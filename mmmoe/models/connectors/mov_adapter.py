"""The MoV-Adapter: tokens of a base tower, enriched with what the experts routed to their image see, become few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.connectors.mov_adapter_attention import HEAD_SIZE, GridRotary
from mmmoe.models.connectors.mov_adapter_block import MoVBlock
from mmmoe.models.connectors.mov_adapter_downsample import downsampler
from mmmoe.models.connectors.mov_adapter_features import RoutedMap, on_grid, place
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec
from mmmoe.models.spec import ConnectorSpec


class MoVAdapter(nn.Module):
    """MoVA's fine step (arXiv 2404.13046, section 3.3): blocks, a mean with the raw features, fewer tokens, an MLP.

    Follows the released code where the paper is silent: norms inside, rotary embedding, the mean, zeros at the start.
    A fresh adapter is the MLP on the pooled base features, whatever is routed.
    """

    def __init__(
        self,
        spec: MoVAdapterSpec,
        base_channels: int,
        grid: tuple[int, int],
        expert_channels: Mapping[str, int],
        expert_grids: Mapping[str, tuple[int, int]],
        text_width: int,
        width: int,
    ) -> None:
        """Draws fresh weights.

        Args:
            spec: the declaration.
            base_channels: C, of the base tower's features.
            grid: their rows and columns.
            expert_channels: channels of each expert's features; the order is that of the routing's columns.
            expert_grids: their rows and columns.
            text_width: of the vector that the questions become.
            width: D, of the language model.

        Raises:
            ValueError: The base tower's channels make no whole heads.
        """
        super().__init__()
        if base_channels % HEAD_SIZE:
            raise ValueError(
                f"the base tower has {base_channels} channels, but a head of the MoV-Adapter takes {HEAD_SIZE}; "
                "choose a base tower whose channels are a multiple of it"
            )
        self.experts = tuple(expert_channels)
        self.grid, self.expert_grids = grid, dict(expert_grids)
        self.token_grid = spec.token_grid or (max(1, grid[0] // 2), max(1, grid[1] // 2))
        self.num_tokens = self.token_grid[0] * self.token_grid[1]
        self.position_1PC = nn.Parameter(torch.zeros(1, grid[0] * grid[1], base_channels))
        self.rotary = GridRotary(grid)
        self.blocks = nn.ModuleList(
            MoVBlock(spec, base_channels, expert_channels, text_width) for _ in range(spec.layers)
        )
        self.downsample = downsampler(base_channels, self.token_grid)
        self.projector = MLPConnector(ConnectorSpec(kind="mlp2x_gelu"), base_channels, width, self.num_tokens)

    def forward(
        self,
        base_IPC: Tensor,
        experts: Mapping[str, Tensor],
        routing_IE: Tensor,
        text_IT: Tensor,
        gates: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the tokens (I, M, D).

        Args:
            base_IPC: the base tower's features.
            experts: compact features by expert, (I_e, P_e, C_e): those of the images routed to it, in their order.
            routing_IE: 1 where an expert is routed to an image; may stay on the host, where it is checked.
            text_IT: a vector of each image's questions; of an image without experts it is not read.
            gates: is given the weights (I, E) of each block, for a report.
        """
        placed = place(experts, self.experts, routing_IE)
        maps = {name: replace(routed, map_IPC=self.resized(name, routed.map_IPC)) for name, routed in placed.items()}
        return self.read(base_IPC, maps, routing_IE, text_IT, gates)

    def resized(self, name: str, features_IPC: Tensor) -> Tensor:
        """Returns an expert's features on the base tower's grid, in the adapter's number format."""
        return on_grid(features_IPC.to(self.position_1PC.dtype), self.expert_grids[name], self.grid)

    def read(
        self,
        base_IPC: Tensor,
        maps: Mapping[str, RoutedMap],
        routing_IE: Tensor,
        text_IT: Tensor,
        gates: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the tokens (I, M, D); maps are resized and say whose images they are of."""
        dtype = self.position_1PC.dtype
        base_IPC, text_IT, routing_IE = base_IPC.to(dtype), text_IT.to(dtype), routing_IE.to(base_IPC.device)
        x_IPC = base_IPC + self.position_1PC
        for block in self.blocks:
            x_IPC, weight_IE = block(x_IPC, maps, routing_IE, text_IT, self.rotary)
            if gates is not None:
                gates.append(weight_IE.detach())
        mean_ICHW = rearrange((x_IPC + base_IPC) / 2, "i (h w) c -> i c h w", h=self.grid[0])
        fewer_IMC = rearrange(self.downsample(mean_ICHW), "i c h w -> i (h w) c")
        tokens_IMD: Tensor = self.projector(fewer_IMC)
        return tokens_IMD
