"""Uni-MoE's two connectors against recordings of the official code: tokens and every gradient."""

from __future__ import annotations

import pytest
import torch

from mmmoe.models.connectors.audio_qformer import AudioQFormer
from mmmoe.models.connectors.speech_decoder import SpeechDecoder
from mmmoe.models.spec import AudioQFormerSpec, SpeechDecoderSpec

ABSENT = "embed_tokens.weight"
"""The table of words that the official speech connector carries and never reads."""


def audio_qformer(config, width):
    spec = AudioQFormerSpec(
        queries=config["queries"], layers=config["layers"], width=config["connector_width"], heads=config["heads"],
        inner=config["ffn"], cross_attention_every=config.get("cross_attention_every", 2),
    )  # fmt: skip
    return AudioQFormer(spec, config["connector_width"], width)


def speech_decoder(config, width):
    spec = SpeechDecoderSpec(
        queries=config["queries"], layers=config["layers"], width=config["connector_width"], heads=config["heads"],
        inner=config["ffn"],
    )  # fmt: skip
    return SpeechDecoder(spec, config["connector_width"], width)


def ours(official):
    """Returns our name of an official parameter."""
    for theirs, own in (("query_tokens", "queries_1QC"), ("qformer.qformer", "qformer"), ("audio_decoder.", "")):
        official = official.replace(theirs, own)
    return official


def load_official(connector, weights):
    """Puts official tensors into a connector; of the position table as many rows as there are queries."""
    own = {ours(name): tensor for name, tensor in weights.items() if not name.endswith(ABSENT)}
    for name in own:
        if name.endswith("embed_positions.weight"):
            own[name] = own[name][: connector.num_tokens]
    connector.load_state_dict(own)


def check_gradients(case, connector, prefix=""):
    """Compares the gradient of every parameter; positions that no query has get none."""
    official = {ours(name.removeprefix(prefix)): name for name in case.group("weight") if not name.endswith(ABSENT)}
    for name, parameter in connector.named_parameters():
        gradient, recorded = parameter.grad, f"grad_weight.{official[name]}"
        rows = case.tensors[recorded].shape[0] - gradient.shape[0]
        if rows:
            assert name.endswith("embed_positions.weight")
            gradient = torch.nn.functional.pad(gradient, (0, 0, 0, rows))
        case.check(recorded, gradient)


@pytest.mark.golden("uni_moe/connector_*")
def test_connector(case):
    build = audio_qformer if "audio" in case.name else speech_decoder
    connector = build(case.config, case.config["llm_width"])
    load_official(connector, case.group("weight"))
    features = case.tensors["input.encoder_output"].clone().requires_grad_()
    tokens = connector(features)
    case.check("output.tokens", tokens)
    loss = (tokens * case.tensors["cotangent.tokens"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.encoder_output", features.grad)
    check_gradients(case, connector)
