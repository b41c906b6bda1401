"""The text head: new tokens beside a language model's own head, which stays the language model's."""

from __future__ import annotations

import copy

import pytest
import torch
from models_toy import toy_model
from torch import nn

from mmmoe.models.text_head import TextHead


def test_new_tokens_come_last_and_begin_improbable():
    base = nn.Linear(8, 5, bias=False)
    logits = TextHead(base, 2)(hidden := torch.randn(3, 4, 8))
    assert torch.equal(logits[..., :5], base(hidden))
    assert (logits[..., 5:] == -5.0).all()


def test_the_base_is_no_part_of_it_and_follows_a_copy_of_the_model():
    model = toy_model()
    model.text_head = TextHead(model.language.get_output_embeddings(), 1)
    assert set(model.text_head.state_dict()) == {"new.weight", "new.bias"}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.language.get_output_embeddings().weight.zero_()
    hidden = torch.randn(2, 32)
    assert not twin.text_head(hidden)[:, :-1].any()
    assert model.text_head(hidden)[:, :-1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_in_half_precision_gives_its_own_type(dtype):
    head = TextHead(nn.Linear(8, 5, dtype=dtype), 1)
    logits = head(torch.randn(3, 8, dtype=dtype))
    assert logits.dtype == dtype
    logits.float().logsumexp(-1).sum().backward()
    assert head.new.weight.grad.any()


def test_small_steps_of_the_bias_count_in_bfloat16():
    head = TextHead(nn.Linear(8, 5), 1)
    head.new.bias.data += 0.05
    assert head.bfloat16().new.bias.item() != TextHead(nn.Linear(8, 5), 1).new.bias.item()
