"""LLaVA-MoLE's feed-forward block and complete model against recordings of the official code."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.lora.block import ProjectionExperts
from mmmoe.models.lora.spec import BalanceSpec, ExpertsSpec, LoRASpec, RouterSpec
from mmmoe.models.lora.tape import RoutingTape
from mmmoe.models.spec import ConnectorSpec
from mmmoe.models.towers.tower import ImageTower


class GivenFeatures(ImageTower):
    num_tokens, channels, image_size, key = 6, 24, 1, "given"


def mole_spec(config, **changes):
    rule = "dense" if config["dense_moe"] else "top1"
    values = {
        "level": "block",
        "sites": ["language.*.mlp"],
        "experts": config["experts"],
        "rank": config["rank"],
        "alpha": config["alpha"],
        "router": RouterSpec(selection=rule),
    }
    return ExpertsSpec(**(values | changes))


def stacked(tensors, prefix, experts):
    """Returns the official experts' matrices under a prefix as our two stacks."""
    rows = range(experts)
    a = torch.stack([tensors[f"{prefix}.{e}.lora_A"] for e in rows])
    b = torch.stack([tensors[f"{prefix}.{e}.lora_B"] for e in rows])
    return a, b


@pytest.mark.golden("llava_mole/ffn_*")
@pytest.mark.parametrize("strategy", ["masked", "permuted", "fused"])
def test_feed_forward(case, strategy):
    config, weights = case.config, case.group("weight")
    sizes = {size: config[size] for size in ("hidden_size", "intermediate_size")}
    base = LlamaMLP(LlamaConfig(**sizes, num_attention_heads=1)).requires_grad_(False)
    prefix = "original_module."
    base.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    tape = RoutingTape(["layers.0.mlp"])
    block = ProjectionExperts(base, mole_spec(config), config["experts"], tape, 0)
    block.router.load_state_dict({n: weights[f"router.{n}"] for n in ("weight", "bias")})
    for name, experts in block.experts.items():
        experts.a_ERD.data, experts.b_EDR.data = stacked(weights, f"moe_{name}", config["experts"])
        experts.strategy = strategy

    x = case.tensors["input.x"].clone().requires_grad_()
    with tape.recording() as rows:
        y = block(x)
    case.check("output.y", y)
    case.check("output.router_prob", rows[0].probability_BTE)
    case.check("output.expert_index", rows[0].index_BTK[..., 0])
    (y * case.tensors["cotangent.y"]).sum().backward()
    case.check("grad_input.x", x.grad)
    for name, experts in block.experts.items():
        for e in range(config["experts"]):
            case.check(f"grad_weight.moe_{name}.{e}.lora_A", experts.a_ERD.grad[e])
            case.check(f"grad_weight.moe_{name}.{e}.lora_B", experts.b_EDR.grad[e])
    for name, parameter in block.router.named_parameters():
        if f"weight.router.{name}" in case.meta["no_gradient"]:
            assert parameter.grad is None
        else:
            case.check(f"grad_weight.router.{name}", parameter.grad)


def build(case):
    """Returns our model with the recorded weights."""
    config, weights = case.config, case.group("weight")
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"], hidden_size=config["hidden_size"], num_hidden_layers=config["layers"],
            intermediate_size=config["intermediate_size"], num_attention_heads=config["heads"],
            rms_norm_eps=config["rms_eps"], rope_theta=config["rope_theta"], tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )  # fmt: skip
    width = config["hidden_size"]
    connector = MLPConnector(ConnectorSpec(), config["vision_channels"], width, config["patches"])
    model = LlavaMole(GivenFeatures(), connector, ImageBounds(width), language.requires_grad_(False), 2048)
    attention = config["attention_lora"]
    sites = [f"language.*.self_attn.{target}" for target in attention["targets"]]
    model.add_adapters(
        [
            LoRASpec(sites=sites, rank=attention["rank"], alpha=attention["alpha"]),
            mole_spec(config, balance=BalanceSpec(weight=config["balance_w"] / config["experts"])),
        ]
    )
    model.load_state_dict({official_to_ours(name): w for name, w in base_weights(weights).items()}, strict=False)
    for name, value in ours_by_official(model, config["experts"]).items():
        value.data.copy_(weights[name].reshape(value.shape))
    return model


def base_weights(weights):
    marks = ("lora_", "router", "in_adaptor", "vit.")
    return {name: w for name, w in weights.items() if not any(mark in name for mark in marks)}


def official_to_ours(name):
    name = name.replace("llm_model.base_model.model.", "language.").replace("base_layer", "base")
    return name.replace("original_module", "base")


def ours_by_official(model, experts, gradient=False):
    """Returns our trained tensors (or their gradients), cut up and named as the official ones."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        value = parameter.grad if gradient else parameter
        layer = re.match(r"language\.model\.(layers\.\d+\..*)", name)
        official = f"llm_model.base_model.model.model.{layer[1]}" if layer else name
        if ".experts." in name:
            stem, letter = re.sub(r"experts\.(\w+)\..*", r"moe_\1", official), "A" if "a_ERD" in name else "B"
            found |= {f"{stem}.{e}.lora_{letter}": value[e] for e in range(experts)}
        elif ".lora." in name:
            official = official.replace("lora.a_ERD", "lora_A.default.weight")
            found[official.replace("lora.b_EDR", "lora_B.default.weight")] = value[0]
        else:
            official = official.replace("connector.layers", "in_adaptor.projector")
            official = re.sub(r"bounds\.(start|end)_D", r"in_adaptor.visual_\1_token", official)
            found[official] = value.reshape(1, 1, -1) if "visual_" in official else value
    return found


class OfficialLayout(LlavaMole):
    """Ours with the official treatment of a text-only sample: its image takes up positions, but nobody sees them.

    Ours gives such a sample no image at all, which moves the text after it closer to the text before it.
    """

    official_mask_BT = None

    def _splice(self, *args, **options):
        spliced = super()._splice(*args, **options)
        return replace(spliced, mask_BT=self.official_mask_BT[:, : spliced.mask_BT.shape[1]])


@pytest.mark.golden("llava_mole/model_*")
def test_model(case):
    config, tensors = case.config, case.tensors
    real = tensors["output.attention_mask"].bool()
    model = build(case)
    model.__class__, model.official_mask_BT = OfficialLayout, real
    ids, mask, labels = batch_of(case, real)
    features = [tensors[f"input.image_features.{i}"].clone().requires_grad_() for i in range(len(ids))]

    output = model(ids, mask, labels, features={"image": torch.cat(features)})
    total = output.loss(int(output.num_targets_B.sum()), len(ids))
    assert torch.equal(output.num_targets_B, tensors["output.loss_mask"].sum(1))
    case.check("output.text_loss", output.nll_B.sum() / output.num_targets_B.sum())
    # Ours is 1 for even loads whatever the number of experts, theirs 1 / E.
    case.check("output.balance_loss", output.auxiliary["balance"].mean() / config["experts"])
    case.check("output.total_loss", total)
    load = nn.functional.one_hot(tensors["output.expert_index"], config["experts"]) * real[None, :, :, None]
    assert torch.equal(output.routing.load_BLME.sum(2), load.sum(2).transpose(0, 1))
    probability = (tensors["output.router_prob"] * real[None, :, :, None]).sum(2).transpose(0, 1)
    torch.testing.assert_close(output.routing.probability_BLE, probability, atol=1e-4, rtol=1e-5)

    spliced = model._splice(ids, mask, labels, None, {"image": torch.cat(features)})
    logits = model.logits(ids, mask, features={"image": torch.cat(features)})
    for name, value in (("inputs_embeds", spliced.embeddings_BTD), ("logits", logits), ("labels", spliced.labels_BT)):
        check_real(case, f"output.{name}", value, real)

    total.backward()
    gradients = ours_by_official(model, config["experts"], gradient=True)
    assert set(gradients) == set(case.group("grad_weight")) - set(case.meta["no_gradient"])
    for name, gradient in gradients.items():
        case.check(f"grad_weight.{name}", gradient)
    for i, feature in enumerate(features):
        case.check(f"grad_input.image_features.{i}", feature.grad)


def batch_of(case, real):
    """Returns ids, mask and labels before splicing, every sample with its image."""
    config, tensors = case.config, case.tensors
    rows, labels = [], []
    for i in range(len(real)):
        row = torch.cat([tensors[f"input.instruction_ids.{i}"], tensors[f"input.answer_ids.{i}"]])
        rows.append(row.masked_fill(row == config["image_placeholder_id"], IMAGE_ID))
        at, extent = int((rows[-1] == IMAGE_ID).nonzero()), config["patches"] + 2
        target = tensors["output.labels"][i]
        target = torch.cat([target[:at], target.new_full((1,), IGNORE_ID), target[at + extent :]])
        labels.append(target[: len(row)])
    longest = max(map(len, rows))
    ids = torch.stack([nn.functional.pad(row, (0, longest - len(row)), value=config["pad_id"]) for row in rows])
    targets = torch.stack([nn.functional.pad(row, (0, longest - len(row)), value=IGNORE_ID) for row in labels])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
    return ids, mask, targets


def check_real(case, name, value, real):
    """Compares real positions; the official batch has one column of padding more."""
    columns = value.shape[1]
    assert not real[:, columns:].any()
    want, seen = case.tensors[name][:, :columns][real[:, :columns]], value[real[:, :columns]]
    tolerance = case.meta["tolerance"]
    torch.testing.assert_close(seen, want, atol=tolerance["atol"].get(name, 0.0), rtol=tolerance["rtol"])
