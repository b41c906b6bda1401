"""Towers that a stage trains: gradients, modes, batches without media, recomputed layers, keys."""

from __future__ import annotations

import pytest
import torch
from models_toy import CONFIG
from uni_toy import toy_uni, uni_batch

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.engine.groups import freeze
from mmmoe.models.build import build_tower
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import build_language
from mmmoe.models.spec import ConnectorSpec, ScratchLanguage
from mmmoe.models.towers.spec import (
    Dinov2TowerSpec,
    OpenCLIPTower,
    Pix2StructTowerSpec,
    SamTowerSpec,
    ViTAdapterTowerSpec,
)

VISION = {"image_size": 8, "patch_size": 4, "width": 12, "head_width": 6, "layers": 2}
CLIP = OpenCLIPTower(name="tiny", path=None, layer=-1, config={"embed_dim": 8, "vision_cfg": VISION})
IDLE = ("visual.ln_post", "visual.proj")
"""What comes after the layer that is taken."""
DINO = {
    "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
SAM = {
    "model_type": "sam_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "output_channels": 6, "window_size": 2, "global_attn_indexes": [1],
    "mlp_dim": 24,
}  # fmt: skip
PIX2STRUCT = {
    "model_type": "pix2struct",
    "vision_config": {
        "hidden_size": 16, "patch_embed_hidden_size": 48, "d_ff": 24, "d_kv": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "initializer_range": 0.3,
    },
}  # fmt: skip
VIT_ADAPTER = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip
SPECS = [
    CLIP, Dinov2TowerSpec(config=DINO), SamTowerSpec(config=SAM, strides=[7]),
    Pix2StructTowerSpec(config=PIX2STRUCT, image_size=16), ViTAdapterTowerSpec(config=VIT_ADAPTER, prior_width=4),
]  # fmt: skip


def model(trains=("connector.*",)):
    torch.manual_seed(0)
    language = build_language(ScratchLanguage(config=CONFIG, tokenizer="none"))
    made = LlavaMole(build_tower(CLIP), MLPConnector(ConnectorSpec(), 12, 32, 4), None, language, 128)
    freeze(made, list(trains))
    return made.train()


def batch(images=1):
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (2, 9), generator=rng)
    labels = torch.full_like(ids, IGNORE_ID)
    labels[:, -3:] = ids[:, -3:]
    ids[:images, 1] = IMAGE_ID
    pixels = torch.randn(images, 3, 8, 8, generator=rng)
    return {
        "input_ids_BT": ids, "attention_mask_BT": torch.ones_like(ids), "labels_BT": labels, "media": {"image": pixels}
    }  # fmt: skip


def loss(made, inputs):
    return made(**inputs).nll_B.sum()


def test_a_frozen_tower_has_no_graph_and_no_training_mode():
    made = model()
    assert not made.encode("image", torch.randn(1, 3, 8, 8)).requires_grad
    assert (made.tower.is_trained, made.tower.is_skippable, made.tower.training) == (False, True, False)
    assert made.training
    loss(made, batch()).backward()
    assert all(parameter.grad is None for parameter in made.tower.parameters())


def test_a_trained_tower_gets_gradients_and_follows_the_models_mode():
    made = model(["tower.*", "connector.*"])
    assert (made.tower.is_trained, made.tower.is_skippable) == (True, False)
    assert all(module.training for module in made.tower.modules())
    assert not any(module.training for module in made.eval().tower.modules())
    with torch.no_grad():
        assert not made.encode("image", torch.randn(1, 3, 8, 8)).requires_grad
    before = loss(made, batch())
    before.backward()
    for name, parameter in made.tower.named_parameters():
        assert (parameter.grad is None) == name.startswith(IDLE), name
    with torch.no_grad():
        for parameter in made.tower.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
        assert loss(made, batch()) < before


def test_one_trained_layer_is_enough_and_no_other_gets_a_gradient():
    made = model(["tower.visual.transformer.resblocks.1.*"])
    loss(made, batch()).backward()
    held = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert held
    assert all(name.startswith("tower.visual.transformer.resblocks.1.") for name in held)


def test_a_batch_without_images_runs_a_trained_tower_with_weight_zero():
    made, frozen = model(["tower.*", "connector.*"]), model()
    calls = []
    made.tower.register_forward_hook(lambda *_: calls.append(1))
    total = loss(made, batch(images=0))
    assert torch.equal(total, loss(frozen, batch(images=0)))
    total.backward()
    assert len(calls) == 1
    for name, parameter in made.tower.named_parameters():
        if not name.startswith(IDLE):
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_every_kind_runs_its_trained_tower_once_whatever_the_batch_holds():
    calls = {}
    for rows in ((("image",), ("speech", "video", "audio")), ((), ())):
        made = toy_uni()
        freeze(made, ["towers.*"])
        made.train()
        counts = calls[rows] = dict.fromkeys(made.towers, 0)
        for kind, tower in made.towers.items():

            def count(*_, kind=kind, counts=counts):
                counts[kind] += 1

            tower.register_forward_hook(count)
        total = made(**uni_batch(rows)).nll_B.sum()
        total.backward()
        reached = {name.split(".")[1] for name, p in made.named_parameters() if p.grad is not None}
        assert reached == set(made.towers)
    # The image's tower also sees videos.
    assert list(calls.values()) == [{"image": 2, "speech": 1, "audio": 1}] * 2


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_recomputed_layers_give_the_same_gradients(spec):
    torch.manual_seed(0)
    tower = build_tower(spec)
    tower.requires_grad_(True)
    tower.train()
    pixels = torch.randn(2, *tower.input_shape)
    gradients, saved = [], []
    for enabled in (False, True):
        tower.zero_grad()
        tower.gradient_checkpointing(enabled)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            total = tower.encode(pixels).square().sum()
        total.backward()
        gradients.append({name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None})
        saved.append(sum(kept))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert saved[1] < saved[0]


def test_a_model_recomputes_the_towers_that_train_and_no_others():
    for trains, expected in ((["tower.*"], True), (["connector.*"], False)):
        made = model(trains)
        made.gradient_checkpointing(True)
        assert made.tower.visual.transformer.grad_checkpointing is expected


def test_a_key_tells_what_a_stage_made_of_the_tower():
    tower = build_tower(CLIP)
    before, keys = tower.key, set()
    for number in (1.0, 2.0, 1.0):
        tower.note_training({"tower.weight": torch.full((3,), number)})
        keys.add(tower.key)
    assert len(keys) == 2
    assert all(key.startswith(f"{before}-trained-") for key in keys)
