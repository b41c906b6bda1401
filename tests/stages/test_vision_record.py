"""What experts did, from a forward to the line of a step: by sample, by source, routing passes left out."""

from __future__ import annotations

import json

import pytest
import torch
from looking_toy import looking_toy

from mmmoe.config.ids import IMAGE_ID, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.data.collate import Batch
from mmmoe.data.spec import SourceSpec
from mmmoe.engine.metrics import MetricsFile
from mmmoe.engine.outputs import join, split
from mmmoe.engine.protocol import StepRecord
from mmmoe.stages.observe import StageObserver
from mmmoe.stages.watch import RouterWatch

ROUTED = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [-1, -1, -1]]
"""Of the images, in reading order: two of the first row, one of the third, a routing pass in the fourth."""


def inputs(model):
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, 50, (4, 8), generator=generator)
    ids_BT[0, [1, 3]], ids_BT[2, 1], ids_BT[3, 2] = IMAGE_ID, IMAGE_ID, IMAGE_ID
    routing_IE = torch.tensor(ROUTED, dtype=torch.int8)
    media = {"image": torch.randn(4, 3, 8, 8, generator=generator)}
    for e, name in enumerate(model.experts):
        side = model.vision_experts[name].image_size
        media[f"image.{name}"] = torch.randn(int((routing_IE[:, e] == 1).sum()), 3, side, side, generator=generator)
    words_IL = torch.randint(1, 40, (4, 5), generator=generator)
    ids = {"input_ids_BT": ids_BT, "labels_BT": ids_BT.masked_fill(ids_BT < 0, -100)}
    mask = {"attention_mask_BT": torch.ones_like(ids_BT, dtype=torch.bool)}
    return ids | mask | {"media": media | {ROUTING_VIEW: routing_IE, QUESTION_VIEW: words_IL}}


def batch(given, sources):
    ids_BT, mask_BT = given["input_ids_BT"], given["attention_mask_BT"]
    keys = tuple("abcd"[: len(ids_BT)])
    source_B, task_B = torch.tensor(sources), torch.full((len(sources),), -1)
    return Batch(ids_BT, ids_BT, mask_BT, given["media"], {}, source_B, task_B, keys, keys, len(keys), 9, 9)


def test_a_forward_tells_what_experts_did_with_each_sample():
    model = looking_toy().train()
    output = model(**inputs(model))
    vision = output.vision
    assert vision.experts == ("dots", "lines", "wide")
    assert vision.images_B.tolist() == [2, 0, 1, 0], "the routing pass is none"
    assert vision.enriched_B.tolist() == [1, 0, 1, 0]
    assert vision.routed_BE.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    first_LE, third_LE = vision.weight_BLE[0], vision.weight_BLE[2]
    torch.testing.assert_close(first_LE, torch.stack([gate_IE[0] for gate_IE in model.gates]))
    assert first_LE.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert (first_LE[:, [0, 2]] > 0.01).all()
    assert third_LE.tolist() == [[0.0, 1.0, 0.0]] * 2
    assert vision.weight_BLE[1].count_nonzero() == vision.weight_BLE[3].count_nonzero() == 0
    assert not vision.weight_BLE.requires_grad
    assert output.cut(1).vision.routed_BE.tolist() == [[1, 0, 1]]
    tensors = []
    assert join(split(output, tensors), tuple(tensors)).vision.images_B.tolist() == [2, 0, 1, 0]


def test_text_alone_and_no_samples_at_all_have_tables_of_the_same_shape():
    model = looking_toy().train()
    model(**inputs(model))  # the gates of this one must not be told again
    ids_BT = torch.randint(3, 50, (2, 6))
    for rows in (2, 0):
        given_BT = ids_BT[:rows]
        vision = model(given_BT, torch.ones_like(given_BT, dtype=torch.bool), given_BT).vision
        assert (vision.routed_BE.shape, vision.weight_BLE.shape) == ((rows, 3), (rows, 2, 3))
        assert vision.images_B.sum() + vision.weight_BLE.count_nonzero() == 0


def test_the_line_has_counts_and_mean_weights_by_source_and_so_it_does_for_two_processes(tmp_path, monkeypatch):
    model = looking_toy().train()
    given = inputs(model)
    output = model(**given)
    monkeypatch.setattr("mmmoe.dist.sum_over_ranks", lambda values: [2 * value for value in values])
    sources = [SourceSpec(name=name, shards=name, domain=name) for name in ("pairs", "text", "ask")]
    watched = StageObserver(MetricsFile(tmp_path / "metrics.jsonl"), sources, None, RouterWatch("one", 9, []))
    for _ in range(3):
        watched.on_batch(batch(given, [0, 1, 0, 2]), output)
    watched.on_step(StepRecord(1, 3.0, 1.0, (0.1,), 1.0, 0.0, 6, 4))
    watched.on_batch(batch(given, [0, 1, 0, 2]), output)
    watched.on_step(StepRecord(2, 3.0, 1.0, (0.1,), 1.0, 0.0, 6, 4))
    first, second = (json.loads(line)["vision"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert set(first) == {"pairs"}, "what has no images but in routing passes is left out"
    assert first["pairs"]["images"] == 2 * 3 * 3
    assert first["pairs"]["enriched"] == 2 * 3 * 2
    assert first["pairs"]["routed"] == {"dots": 6, "lines": 6, "wide": 6}
    assert second["pairs"]["images"] == 2 * 3, "each step begins anew"
    mean_LE = (output.vision.weight_BLE[0] + output.vision.weight_BLE[2]) / 2
    for line in (first, second):
        torch.testing.assert_close(torch.tensor(line["pairs"]["gates"]), mean_LE, atol=1e-5, rtol=0)
