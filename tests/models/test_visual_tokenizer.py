"""Tokens without a perceiver, and how large a fresh encoder's positions are."""

from __future__ import annotations

import pytest
import torch

from mmmoe.models.build import build_tower
from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec
from mmmoe.models.towers.spec import ViTAdapterTowerSpec

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip


def test_without_a_perceiver_each_patch_is_a_token_of_its_own():
    torch.manual_seed(0)
    made = VisualTokenizer(VisualTokenizerSpec(perceiver=None, projector_std=0.1), 16, (2, 3), (4,), 8)
    tokens_INC = torch.randn(2, 7, 16)
    before_IQD, _ = made(tokens_INC, [torch.zeros(2, 16, 16)])
    assert before_IQD.shape == (2, made.num_tokens, 8) == (2, 7, 8)
    tokens_INC[0, 4] += 1.0
    after_IQD, _ = made(tokens_INC, [torch.zeros(2, 16, 16)])
    changed_IQ = (before_IQD != after_IQD).any(dim=2)
    assert changed_IQ.nonzero().tolist() == [[0, 4]]
    after_IQD.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.parametrize("std", [None, 0.5])
def test_positions_of_a_fresh_encoder_are_as_large_as_declared(std):
    torch.manual_seed(0)
    tower = build_tower(ViTAdapterTowerSpec(config=CLIP, prior_width=4, position_std=std))
    found = float(tower.body.embeddings.position_embedding.weight.detach().std())
    assert found == pytest.approx(std or 0.02, rel=0.2)
