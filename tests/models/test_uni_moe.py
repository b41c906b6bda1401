"""Uni-MoE: all kinds of media in one batch, what a kind costs in positions, batches that lack some kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from models_toy import lora_spec, mole_spec
from uni_toy import toy_uni, toy_uni_moe, uni_batch

from mmmoe.config.ids import MEDIA_IDS
from mmmoe.engine.skippable import hide_skippable, show_hidden
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.counts import parameter_table
from mmmoe.models.spec import model_spec

ROOT = Path(__file__).resolve().parents[2]
ALL = ("image", "video", "speech", "audio")


def declared(name):
    return yaml.safe_load((ROOT / f"models/uni_moe/{name}.yaml").read_text())


def gradients(model, batch, num_targets, num_samples):
    model.zero_grad()
    model(**batch).loss(num_targets, num_samples).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_8_positions_of_each_kind_at_the_papers_size():
    model = build_model(model_spec(declared("7b")), seed=0, meta=True)
    chunks_of_70_seconds = -(-70 // int(model.tower_of("speech").chunk_seconds))
    assert model.kinds == ALL
    assert model.positions("image") == model.positions("video") == 576
    assert chunks_of_70_seconds * model.positions("speech") == 150
    assert model.positions("audio") == 50  # 10 s are one chunk


def test_8_positions_of_each_kind_in_a_batch():
    model = toy_uni()
    spliced = model._splice(*uni_batch().values(), None)
    assert [model.positions(kind) for kind in ALL] == [4, 4, 3, 2]
    # Two images, one video, two chunks of speech, one of sound.
    assert torch.bincount(spliced.kind_BT[spliced.mask_BT]).tolist() == [28, 8, 4, 6, 2]
    assert spliced.kind_BT[1, :12].tolist() == [0, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 0]
    assert not spliced.kind_BT[~spliced.mask_BT].any()


def test_9_a_video_of_one_frame_repeated_is_the_image():
    model = toy_uni_moe().eval()
    image = uni_batch(rows=[("image",)])
    pixels_ICHW = image["media"]["image"]
    ids = image["input_ids_BT"].masked_fill(image["input_ids_BT"] == MEDIA_IDS["image"], MEDIA_IDS["video"])
    video = image | {"input_ids_BT": ids, "media": {"video": pixels_ICHW[:, None].expand(1, 8, 3, 4, 4)}}
    torch.testing.assert_close(model(**video).nll_B, model(**image).nll_B, atol=1e-5, rtol=1e-5)
    frames_1FPC = model.encode("video", video["media"]["video"])
    assert frames_1FPC.shape == (1, 8, 4, 12)
    video["media"]["video"] = torch.cat([pixels_ICHW[:, None], -pixels_ICHW[:, None]], dim=1)
    mean = model.connect("video", model.encode("video", video["media"]["video"]))
    parts = [model.connect("image", model.encode("image", sign * pixels_ICHW)) for sign in (1, -1)]
    torch.testing.assert_close(mean, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("rows", [[()], [("image",)], [("speech", "audio")], [("video",), ()]])
def test_12_what_stands_in_for_missing_kinds_changes_nothing(rows, monkeypatch):
    model, batch = toy_uni_moe(), uni_batch(rows=rows)
    before = gradients(model, batch, 3 * len(rows), len(rows))
    loss = model(**batch).nll_B
    blank = type(model).blank
    monkeypatch.setattr(type(model), "blank", lambda self, kind: torch.randn_like(blank(self, kind)) * 9)
    assert torch.equal(model(**batch).nll_B, loss)
    after = gradients(model, batch, 3 * len(rows), len(rows))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    present = {"image" if kind == "video" else kind for row in rows for kind in row}
    for kind in ("image", "speech", "audio"):
        moved = any(g.any() for name, g in before.items() if name.startswith(f"connectors.{kind}."))
        assert moved == (kind in present)


def test_a_batch_without_samples_touches_everything_and_moves_nothing():
    model = toy_uni_moe()
    batch = {name: value[:0] for name, value in uni_batch().items() if name != "media"}
    found = gradients(model, batch, 1, 1)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())


def test_every_kind_runs_its_connector_once_whatever_the_batch():
    model = toy_uni()
    calls = []
    for kind, connector in model.connectors.items():
        connector.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    for rows in ([()], [("video", "audio")], [ALL]):
        calls.clear()
        model(**uni_batch(rows=rows))
        assert calls == ["image", "image", "speech", "audio"]


def test_features_stand_for_media():
    model, batch = toy_uni_moe(), uni_batch()
    by_media = model(**batch).nll_B
    features = {kind: model.encode(kind, raw) for kind, raw in batch.pop("media").items()}
    shapes = {kind: tuple(part.shape) for kind, part in features.items()}
    assert shapes == {"image": (2, 4, 12), "video": (1, 2, 4, 12), "speech": (2, 10, 16), "audio": (1, 10, 16)}
    assert torch.equal(model(**batch, features=features).nll_B, by_media)


def test_shares_of_single_samples_add_up_to_the_batch():
    rows = (("image",), ("speech", "speech", "video"), (), ("audio", "image"))
    model, batch = toy_uni_moe(), uni_batch(rows)
    whole, parts, used = gradients(model, batch, 12, 4), None, dict.fromkeys(ALL, 0)
    for at, row in enumerate(rows):
        one = {name: value[at : at + 1] for name, value in batch.items() if name != "media"}
        one["media"] = {}
        for kind in set(row):
            one["media"][kind] = batch["media"][kind][used[kind] : used[kind] + row.count(kind)]
            used[kind] += row.count(kind)
        part = gradients(model, one, 12, 4)
        parts = part if parts is None else {name: parts[name] + g for name, g in part.items()}
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=2e-5 * float(gradient.abs().max()) + 1e-6, rtol=1e-4)


def test_loads_are_counted_by_kind():
    model, batch = toy_uni_moe(), uni_batch()
    routing = model(**batch).routing
    assert routing.modalities == ("text", *ALL)
    # One choice a position and layer.
    assert routing.load_BLME.sum((0, 3)).tolist() == [[28, 8, 4, 6, 2]] * 2


def test_generation_with_cache_equals_running_everything_anew():
    model, batch = toy_uni_moe().eval(), uni_batch(rows=[("speech", "image", "audio", "video")])
    ids, media = batch["input_ids_BT"], batch["media"]
    rows = model.generate(ids, batch["attention_mask_BT"], media, max_new_tokens=5, eos_id=None)
    produced = []
    for _ in range(5):
        token = int(model.logits(ids, torch.ones_like(ids).bool(), media)[0, -1].argmax())
        produced.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert rows == [produced]


def test_kinds_are_those_of_the_parts():
    model = toy_uni(speech=False, frames=None)
    assert model.kinds == ("image", "audio")
    assert model.modalities == ("text", "image", "audio")
    with pytest.raises(ValueError, match="1 video placeholders, but the model takes no video; leave <video> out"):
        model(**uni_batch(rows=[("video",)]))
    wrong = uni_batch(rows=[("audio", "audio")])
    wrong["media"]["audio"] = wrong["media"]["audio"][:1]
    with pytest.raises(ValueError, match="2 audio placeholders and 1 audio items; each <audio>"):
        model(**wrong)


def test_names_say_part_and_kind_and_towers_are_frozen():
    model = toy_uni_moe()
    parts = {tuple(name.split(".")[:2]) for name, _ in model.named_parameters() if not name.startswith("language.")}
    assert parts == {(part, kind) for part in ("towers", "connectors") for kind in ("image", "speech", "audio")}
    assert not any(p.requires_grad for p in model.towers.parameters())
    assert not any(module.training for module in model.train().towers.children())


def test_towers_work_outside_of_the_tree():
    model, batch = toy_uni(), uni_batch()
    before = model(**batch).nll_B
    hidden = hide_skippable(model, torch.device("cpu"))
    assert not any(name.startswith("towers.") for name, _ in model.named_parameters())
    assert torch.equal(model(**batch).nll_B, before)
    show_hidden(hidden)
    assert sum(name.startswith("towers.") for name, _ in model.named_parameters()) > 0


@pytest.mark.parametrize("name", ["tiny", "7b"])
def test_declared_models_build_from_configuration_alone(name):
    model = build_model(model_spec(declared(name)), seed=0, meta=True)
    add_adapters(model, [lora_spec(), mole_spec()], seed=0)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    rows = {row.part: row for row in parameter_table(model)}
    assert rows["towers"].trainable == 0
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())


def test_parameter_counts_of_the_connectors():
    connectors = build_model(model_spec(declared("7b")), seed=0, meta=True).connectors
    counted = {kind: sum(p.numel() for p in connector.parameters()) for kind, connector in connectors.items()}
    w, f, q, out = 768, 3072, 50, 768 * 4096 + 4096
    norm, square, ffn = 2 * w, w * w + w, 2 * w * f + f + w
    decoder = 12 * (2 * (4 * square - w) + ffn + 3 * norm) + norm + q * w  # no bias in Whisper's keys
    tail = q * w + out

    def qformer(layers):
        return layers * (4 * square + ffn + 2 * norm) + layers // 2 * (4 * square + norm) + norm + tail

    assert counted == {"image": 20_979_712, "speech": decoder + tail, "audio": qformer(12)}
    # The card's numbers.
    assert counted == {"image": 20_979_712, "speech": 116_631_040, "audio": 102_427_648}
    assert qformer(4) == 36_269_056


def test_parameter_counts_of_the_towers():
    def sizes(name):
        parts = build_model(model_spec(declared(name)), seed=0, meta=True)
        return [[sum(p.numel() for p in m.parameters()) for m in g.values()] for g in (parts.towers, parts.connectors)]

    assert sizes("7b")[0] == [304_293_888, 88_154_112, 86_187_264]
    assert sizes("tiny") == [[3_350_000, 7_747_584, 3_350_000], [370_752, 1_300_608, 1_667_136]]


def test_weights_are_a_function_of_the_seed():
    values = declared("tiny")
    values["speech"]["tower"]["path"] = None
    one, two, other = (build_model(model_spec(values), seed) for seed in (1, 1, 2))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
    name = "connectors.speech.decoder.layers.0.fc1.weight"
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_mistakes_in_a_part_name_the_part():
    values = declared("7b")
    values["audio"]["tower"]["chunk_seconds"] = 30
    with pytest.raises(ValueError, match=r"audio: tower\.chunk_seconds is 30\.0, but this AST takes 1024 frames"):
        build_model(model_spec(values), seed=0, meta=True)
    values["speech"]["tower"]["pool"] = 7
    with pytest.raises(ValueError, match="makes 1500 positions, which pool 7 does not divide"):
        model_spec(values)
