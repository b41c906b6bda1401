"""LLaVA-1.5's projector and splice against recordings of the official code."""

from __future__ import annotations

import pytest
import torch

from mmmoe.config.ids import IMAGE_ID
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.spec import ConnectorSpec
from mmmoe.models.splice import splice


@pytest.mark.golden("llava15/projector_*")
def test_projector(case):
    kind, channels = case.config["mm_projector_type"], case.config["mm_hidden_size"]
    connector = MLPConnector(ConnectorSpec(kind=kind), channels, case.config["hidden_size"], num_tokens=1)
    # The official `linear` is a bare nn.Linear, the others a Sequential.
    bare = connector.layers[0] if "weight" in case.group("weight") else connector.layers
    bare.load_state_dict(case.group("weight"))
    features = case.tensors["input.features"].clone().requires_grad_()
    tokens = connector(features)
    case.check("output.tokens", tokens)
    (tokens * case.tensors["cotangent.tokens"]).sum().backward()
    case.check("grad_input.features", features.grad)
    for name, parameter in bare.named_parameters():
        case.check(f"grad_weight.{name}", parameter.grad)


@pytest.mark.golden("llava15/splice_*")
def test_splice(case):
    weights = {name: w.clone().requires_grad_() for name, w in case.group("weight").items()}
    ids = case.tensors["input.input_ids"]
    mask = case.tensors.get("input.attention_mask", torch.ones_like(ids, dtype=torch.bool))
    inputs = {name: t.clone().requires_grad_() for name, t in case.group("input").items() if "image_features" in name}
    connector = MLPConnector(ConnectorSpec(kind="mlp2x_gelu"), case.config["vision_width"], case.config["hidden"], 1)

    def project(features):
        parts = {name.removeprefix("mm_projector."): w for name, w in weights.items() if name.startswith("mm_")}
        return torch.func.functional_call(connector.layers, parts, features)

    if "image_features" in inputs:
        tokens = list(project(inputs["image_features"]))
    else:
        tokens = [project(inputs[f"image_features.{i}"]).flatten(0, 1) for i in range(len(inputs))]
    spliced = splice(
        torch.nn.functional.embedding(ids.clamp(min=0), weights["embed_tokens.weight"]),
        ids,
        mask,
        {"image": _without_unplaced(tokens, ids, mask)},
        case.tensors.get("input.labels"),
        max_positions=case.config["tokenizer_model_max_length"],
        left=case.config["tokenizer_padding_side"] == "left",
    )
    case.check("output.inputs_embeds", spliced.embeddings_BTD)
    for name, value in (
        ("attention_mask", spliced.mask_BT),
        ("position_ids", spliced.position_BT),
        ("labels", spliced.labels_BT),
    ):
        if f"output.{name}" in case.tensors:
            case.check(f"output.{name}", value)
    loss = (spliced.embeddings_BTD * case.tensors["cotangent.inputs_embeds"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in (*((f"grad_input.{n}", t) for n, t in inputs.items()),):
        case.check(name, tensor.grad)
    for name, weight in weights.items():
        if f"grad_weight.{name}" in case.tensors:
            case.check(f"grad_weight.{name}", weight.grad)


def _without_unplaced(tokens, ids, mask):
    """Drops the image that the official code spends on a row without a placeholder; ours spends none."""
    kept, remaining = [], iter(tokens)
    for row_ids, row_mask in zip(ids, mask, strict=True):
        placed = int(((row_ids == IMAGE_ID) & row_mask.bool()).sum())
        taken = [next(remaining) for _ in range(max(placed, 1))]
        kept += taken[:placed]
    return kept
