"""LLaVA-MoLE (arXiv 2401.16160): LLaVA-1.5 whose feed-forward blocks carry routed LoRA experts."""

from __future__ import annotations

from torch import Tensor, nn

from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.tower import ImageTower


class LlavaMole(SplicedModel):
    """Tower, connector, image bounds and language model; `add_adapters` makes it a LLaVA-MoLE."""

    kinds = ("image",)

    def __init__(
        self,
        tower: ImageTower,
        connector: nn.Module,
        bounds: ImageBounds | None,
        language: nn.Module,
        max_positions: int,
    ) -> None:
        super().__init__(language, max_positions)
        self.tower = tower
        self.connector = connector
        self.bounds = bounds

    def tower_of(self, kind: str) -> ImageTower:
        """Returns the one tower."""
        del kind
        return self.tower

    def connect(self, kind: str, features: Tensor) -> Tensor:
        """Returns image tokens (I, M, D), the bounds among them."""
        del kind
        tokens_IMD: Tensor = self.connector(features)
        return tokens_IMD if self.bounds is None else self.bounds(tokens_IMD)

    def positions(self, kind: str) -> int:
        """Returns the positions of an image: its features, and two bounds where there are any."""
        del kind
        return self.tower.num_tokens + (2 if self.bounds is not None else 0)
