"""A LLaVA-MoLE of toy size: random tower of 4 tokens, two-layer Llama of width 32."""

from __future__ import annotations

import torch
from torch import nn

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import build_language
from mmmoe.models.lora.spec import BalanceSpec, ExpertsSpec, LoRASpec, RouterSpec
from mmmoe.models.spec import ConnectorSpec, ScratchLanguage
from mmmoe.models.towers.tower import ImageTower

CONFIG = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


class ToyTower(ImageTower):
    """One linear map of 2 x 2 cells of a 4 x 4 image."""

    num_tokens, channels, image_size, grid, key = 4, 12, 4, (2, 2), "toy"
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.freeze()

    def forward(self, pixels_ICHW):
        cells_IPC = nn.functional.pixel_unshuffle(pixels_ICHW, 2).flatten(2).transpose(1, 2)
        return self.linear(cells_IPC.to(self.linear.weight.dtype))


def toy_model(*, bounds=True, max_positions=128, seed=0):
    torch.manual_seed(seed)
    language = build_language(ScratchLanguage(config=CONFIG, tokenizer="none"))
    return LlavaMole(
        ToyTower(),
        MLPConnector(ConnectorSpec(), 12, 32, 4),
        ImageBounds(32) if bounds else None,
        language,
        max_positions,
    )


def lora_spec(**changes):
    return LoRASpec(**({"sites": ["language.*.self_attn.*_proj"], "rank": 4, "alpha": 8} | changes))


def mole_spec(*, selection="top1", balance="pooled", **changes):
    values = {
        "level": "block", "sites": ["language.*.mlp"], "experts": 3, "rank": 4, "alpha": 8,
        "router": RouterSpec(selection=selection), "balance": BalanceSpec(kind=balance),
    }  # fmt: skip
    return ExpertsSpec(**(values | changes))


def randomise(model, seed=1):
    """Gives every adapter matrix random values, so that nothing hides behind B = 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_EDR" in name or "_ERD" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
            elif "router" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng))


def toy_batch(lengths=(9, 12, 7), with_image=(True, True, False), seed=3):
    """Returns the forward's arguments: right-padded ids with an image at position 1, the last three ids are targets."""
    rng = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, 50, (len(lengths), longest), generator=rng)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    labels = torch.full_like(ids, IGNORE_ID)
    for row, length in enumerate(lengths):
        labels[row, length - 3 : length] = ids[row, length - 3 : length]
        if with_image[row]:
            ids[row, 1] = IMAGE_ID
    pixels = torch.randn(sum(with_image), 3, 4, 4, generator=rng)
    return {
        "input_ids_BT": ids.masked_fill(~mask, 0), "attention_mask_BT": mask, "labels_BT": labels,
        "media": {"image": pixels},
    }  # fmt: skip


def toy_mole(**changes):
    """Returns the toy with attention LoRA and routed experts, all random."""
    model = toy_model()
    model.add_adapters([lora_spec(), mole_spec(**changes)])
    randomise(model)
    return model
