"""Uni-MoE's connectors, and its splice through our family, against recordings of the official code."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmmoe.config.ids import IGNORE_ID, MEDIA_IDS
from mmmoe.models.connectors.audio_qformer import AudioQFormer
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.connectors.speech_decoder import SpeechDecoder
from mmmoe.models.families.uni_moe import UniMoE
from mmmoe.models.spec import AudioQFormerSpec, ConnectorSpec, SpeechDecoderSpec
from mmmoe.models.towers.tower import ImageTower, SoundTower

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


class GivenPatches(ImageTower):
    num_tokens, channels, key = 4, 24, "given"


class GivenChunks(SoundTower):
    num_tokens, channels, key = 6, 32, "given"


def build(case, kind):
    """Returns our model with the recorded weights; its towers are never asked."""
    config, weights = case.config, case.group("weight")
    width = config["llm_width"]
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=width,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    language.get_input_embeddings().load_state_dict({"weight": weights["embed_tokens.weight"]})
    projector = MLPConnector(ConnectorSpec(kind=config["projector"]), config["vision_width"], width, config["patches"])
    projector.layers.load_state_dict(part(weights, "mm_projector."))
    sound = (audio_qformer if kind == "audio" else speech_decoder)(config, width)
    load_official(sound, aligner(weights))
    towers = {"image": GivenPatches(), kind: GivenChunks()}
    return UniMoE(towers, {"image": projector, kind: sound}, language, 100, config["frames"])


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def aligner(weights):
    """Returns the weights of the sound connector; one of the two variants keeps its queries outside of it."""
    queries = {name: t for name, t in weights.items() if name == "query_tokens"}
    return part(weights, "mm_audio_aligner.") | queries


def batch_of(case, kind):
    """Returns ids, mask and labels with one placeholder a chunk, as our data has them."""
    rows = {"ids": [], "mask": [], "labels": []}
    owner = case.tensors["input.audio_chunk_owner"]
    for row, ids in enumerate(case.tensors["input.input_ids"]):
        is_sound = ids == case.config["audio_id"]
        chunks = torch.ones_like(ids)
        chunks[is_sound] = (owner[row] == is_sound.cumsum(0)[is_sound][:, None]).sum(1)
        ids = ids.masked_fill(is_sound, MEDIA_IDS[kind])
        given = {
            "ids": ids,
            "mask": case.tensors["input.attention_mask"][row],
            "labels": case.tensors["input.labels"][row],
        }
        for name, values in given.items():
            rows[name].append(values.repeat_interleave(chunks))
    padding = {"ids": 0, "mask": False, "labels": IGNORE_ID}
    return [torch.nn.utils.rnn.pad_sequence(rows[n], batch_first=True, padding_value=v) for n, v in padding.items()]


def official_layout(case, spliced, pad_D):
    """Returns our batch as the official code lays it out: padding of the ids stays, as word vectors nobody sees.

    Ours drops it and pads anew with zeros, up to the longest row.
    """
    rows, columns, _ = case.tensors["output.inputs_embeds"].shape
    missing = columns - spliced.mask_BT.shape[1]
    mask_BT = torch.nn.functional.pad(spliced.mask_BT, (0, missing))
    labels_BT = torch.nn.functional.pad(spliced.labels_BT, (0, missing), value=IGNORE_ID)
    embeddings_BTD = torch.nn.functional.pad(spliced.embeddings_BTD, (0, 0, 0, missing))
    length_B1 = mask_BT.sum(1, keepdim=True)
    kept_B1 = (~case.tensors["input.attention_mask"]).sum(1, keepdim=True)
    place_BT = torch.arange(columns).expand(rows, -1)
    is_old_BT1 = ((place_BT >= length_B1) & (place_BT < length_B1 + kept_B1))[..., None]
    return torch.where(is_old_BT1, pad_D, embeddings_BTD), labels_BT, mask_BT


@pytest.mark.golden("uni_moe/splice_*")
def test_splice(case):
    kind = "audio" if "audio" in case.name else "speech"
    model = build(case, kind)
    inputs = {name: t.clone().requires_grad_() for name, t in case.group("input").items() if name.endswith("_features")}
    # The audio variant has an axis of size 1 more.
    chunks = inputs["audio_features"][case.tensors["input.audio_chunk_owner"] > 0].flatten(0, -3)
    features = {
        "image": inputs["image_features"][case.tensors["input.image_mask"]],
        "video": inputs["video_features"][case.tensors["input.video_mask"]],
        kind: chunks,
    }
    ids, mask, labels = batch_of(case, kind)
    spliced = model._splice(ids, mask, labels, None, features)
    table_VD = model.language.get_input_embeddings().weight
    embeddings_BTD, labels_BT, mask_BT = official_layout(case, spliced, table_VD[case.config["pad_id"]])
    case.check("output.inputs_embeds", embeddings_BTD)
    case.check("output.labels", labels_BT)
    case.check("output.attention_mask", mask_BT)
    inserted = torch.tensor([model.positions(kind) for kind in model.kinds])
    expected = torch.tensor([len(features[kind]) for kind in model.kinds]) * inserted
    assert torch.bincount(spliced.kind_BT.flatten(), minlength=len(model.modalities))[1:].tolist() == expected.tolist()

    loss = (embeddings_BTD * case.tensors["cotangent.inputs_embeds"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in inputs.items():
        if f"input.{name}" not in case.meta["no_gradient"]:
            case.check(f"grad_input.{name}", tensor.grad)
    case.check("grad_weight.embed_tokens.weight", table_VD.grad)
    for name, parameter in model.connectors["image"].layers.named_parameters():
        case.check(f"grad_weight.mm_projector.{name}", parameter.grad)
    check_gradients(case, model.connectors[kind], "mm_audio_aligner.")
