"""Slide-LoRA's layer and its gates against recordings of TextHarmony's code.

The token-level gates that the release defines and never calls have no counterpart here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmmoe.data.slide_task import keyword_task
from mmmoe.models.lora.slide import SlideGate, SlideLinear, SlideRows, from_released
from mmmoe.models.lora.spec import SlideLoRASpec


def slide_spec(**changes):
    return SlideLoRASpec(**({"sites": ["*"], "rank": 4, "alpha": 4} | changes))


def layer_of(case, strategy):
    """Returns our layer of the recorded sizes with the recorded weights."""
    config, weights = case.config, case.group("weight")
    each = config.get("experts_per_task", 1)
    base = nn.Linear(config["in_features"], config["out_features"], bias="bias" in weights).requires_grad_(False)
    base.weight.data = weights["weight"]
    spec = slide_spec(
        rank=config["rank"], alpha=config["alpha"], experts_per_task=each, tasks=config["experts"] // each - 1
    )
    layer = SlideLinear(base, spec, SlideRows())
    layer.load_state_dict(from_released(weights), strict=False)
    layer.experts.strategy = strategy
    return layer


def check_layer(case, layer, x, y):
    """Checks a layer's output and the gradients of its loss."""
    case.check("output.y", y)
    loss = (y * case.tensors["cotangent.y"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    a_EDR, b_ERO = layer.experts.a_ERD.grad.transpose(1, 2), layer.experts.b_EDR.grad.transpose(1, 2)
    case.check("grad_weight.lora_moe_A.default", a_EDR)
    case.check("grad_weight.lora_moe_B.default", b_ERO)


@pytest.mark.golden("textharmony/slide_lora_*")
@pytest.mark.parametrize("strategy", ["auto", "masked", "permuted", "fused"])
def test_layer_with_all_experts(case, strategy):
    """As the release computes it: every expert, weighted with a gate that may be zero."""
    layer, experts = layer_of(case, strategy), case.config["experts"]
    x, gate = (case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("x", "gate"))
    layer.rows.turn(torch.arange(experts).expand(len(gate), experts), gate)
    check_layer(case, layer, x, layer(x))
    case.check("grad_input.gate", gate.grad)


@pytest.mark.golden("textharmony/slide_lora_[la][il]*")
@pytest.mark.parametrize("strategy", ["auto", "masked", "permuted", "fused"])
def test_layer_with_the_experts_of_the_tasks_alone(case, strategy):
    layer = layer_of(case, strategy)
    gate = SlideGate(slide_spec(experts_per_task=case.config["experts_per_task"]), case.config["in_features"])
    gate.rows = layer.rows
    x, task = case.tensors["input.x"].clone().requires_grad_(), torch.tensor(case.config["tasks"])
    gate.turn(task, x, torch.ones(x.shape[:2], dtype=torch.bool))
    index_BK, gate_BK = gate.hard(task)
    wanted = case.tensors["input.gate"]
    assert torch.equal(torch.zeros_like(wanted).scatter(1, index_BK, gate_BK), wanted)
    check_layer(case, layer, x, layer(x))


@pytest.mark.golden("textharmony/keyword_gate")
def test_released_rule(case, request):
    folder = Path(request.config.getoption("--golden") or Path(__file__).parent)
    lines = (folder / f"{case.name}.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        gate = SlideGate(slide_spec(experts_per_task=line["experts_per_task"]), 4)
        index_BK, gate_BK = gate.hard(torch.tensor([keyword_task(line["question"])]))
        found = torch.zeros(1, line["experts"]).scatter(1, index_BK, gate_BK)[0].tolist()
        assert found == line["gate"], line["question"]


@pytest.mark.golden("textharmony/learned_gate_sample_level")
def test_learned_gate(case):
    config = case.config
    gate = SlideGate(slide_spec(tasks=config["experts"], gate="learned", mixing="soft"), config["dim"])
    gate.router.weight.data = case.tensors["weight.w_gating"].t().contiguous()
    x = case.tensors["input.x"].clone().requires_grad_()
    probability = gate.logits(x, torch.ones(x.shape[:2], dtype=torch.bool)).softmax(-1)
    case.check("output.gate", probability)
    loss = (probability * case.tensors["cotangent.gate"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.w_gating", gate.router.weight.grad.t())
