"""The two-part text head against recordings of TextHarmony's code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmmoe.models.text_head import NEW_BIAS, TextHead, from_released


def head_of(case, rows, weight, bias=None):
    """Returns our head around a language model's own of so many rows."""
    base = nn.Linear(case.config["hidden"], rows, bias=bias is not None).requires_grad_(False)
    base.weight.data = weight[:rows]
    if bias is not None:
        base.bias.data = bias[:rows]
    return TextHead(base, case.config["vocab"] - rows)


@pytest.mark.golden("textharmony/text_head")
def test_text_head(case):
    weights, rows = case.group("weight"), case.config["original_vocab"]
    head = head_of(case, rows, weights["head.weight"], weights["head.bias"])
    head.load_state_dict(from_released(weights))
    hidden = case.tensors["input.hidden"].clone().requires_grad_()
    logits = head(hidden)
    case.check("output.logits", logits)
    loss = (logits * case.tensors["cotangent.logits"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.hidden", hidden.grad)
    case.check("grad_weight.head_new.weight", head.new.weight.grad)
    case.check("grad_weight.head_new.bias", head.new.bias.grad)


@pytest.mark.golden("textharmony/text_head_init")
def test_fresh_text_head(case):
    rows = case.config["original_vocab"]
    head = head_of(case, rows, case.tensors["input.lm_head"])
    case.check("output.logits", head(case.tensors["input.hidden"]))
    official = from_released(case.group("output"))
    torch.testing.assert_close(head.state_dict(), official, atol=0, rtol=0)
    assert official["new.bias"].tolist() == [NEW_BIAS] * (case.config["vocab"] - rows)
    assert set(head.state_dict()) == {"new.weight", "new.bias"}
