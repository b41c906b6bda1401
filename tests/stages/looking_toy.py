"""A MoVA of toy size: a base tower and three experts of other sizes, none of its weights zero."""

from __future__ import annotations

import torch
from torch import nn

from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec
from mmmoe.models.families.mova import MoVA
from mmmoe.models.language import build_language
from mmmoe.models.spec import ScratchLanguage
from mmmoe.models.towers.bert import BertText
from mmmoe.models.towers.spec import BertTextSpec
from mmmoe.models.towers.tower import ImageTower

LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
EXPERTS = {"dots": (4, 12), "lines": (6, 20), "wide": (8, 8)}
"""Side of the grid of cells, and channels."""


class CellTower(ImageTower):
    """One linear map of 2 x 2 cells, and how often it was called."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.grid, self.num_tokens, self.channels = (side, side), side * side, channels
        self.image_size, self.key = 2 * side, f"cells{side}"
        self.linear = nn.Linear(12, channels)
        self.images = 0
        self.freeze()

    def forward(self, pixels_ICHW):
        self.images += len(pixels_ICHW)
        cells_IPC = nn.functional.pixel_unshuffle(pixels_ICHW, 2).flatten(2).transpose(1, 2)
        return self.linear(cells_IPC)


def looking_toy(seed: int = 0) -> MoVA:
    torch.manual_seed(seed)
    tower = CellTower(4, 64)
    experts = {name: CellTower(*size) for name, size in EXPERTS.items()}
    channels = {name: expert.channels for name, expert in experts.items()}
    grids = {name: expert.grid for name, expert in experts.items()}
    text = BertText(BertTextSpec(config=BERT, max_tokens=32))
    adapter = MoVAdapter(MoVAdapterSpec(layers=2), 64, tower.grid, channels, grids, text.channels, 32)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.125)
    language = build_language(ScratchLanguage(config=LLAMA, tokenizer="none"))
    return MoVA(tower, experts, text, adapter, language, 128, routing_tokens=1)
