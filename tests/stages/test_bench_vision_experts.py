"""bench vision_experts: towers not routed never run, a batch says what its pictures say, the table is whole."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from looking_toy import EXPERTS, looking_toy

from mmmoe.report.vision_cost import VisionCost
from mmmoe.stages.bench_vision_experts import (
    ADAPTER,
    BASE,
    TEXT,
    TOWERS,
    bench_vision_experts,
    error,
    level_alone,
    level_batch,
    measure,
    picture,
)

NUMBERS = range(len(EXPERTS) + 1)


@pytest.fixture
def model():
    return looking_toy().eval()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("images", [1, 5])
def test_only_routed_towers_run_and_a_batch_says_what_its_pictures_say(model, number, images):
    level = level_alone(model) if images == 1 else level_batch(model, images)
    towers = [model.vision_experts[name] for name in EXPERTS]
    for run in level.way(number):
        run()
    assert model.tower.images == level.images
    assert sum(tower.images for tower in towers) == number * level.images
    if images == 1:
        assert [tower.images for tower in towers] == [number] * 3, "each as often as the others"
    assert error(level, number) < 1e-5
    tokens = [look.tokens_IMD for look in level.looks[number]]
    for run in level.way(0):
        run()
    pairs = zip(tokens, [look.tokens_IMD for look in level.looks[0]], strict=True)
    assert all(torch.allclose(one, other, atol=1e-3) == (number == 0) for one, other in pairs), "experts take part"


def test_questions_are_read_anew_each_time(model, monkeypatch):
    (look,) = level_batch(model, 2).looks[1]
    read = []
    monkeypatch.setattr(model.text, "_encoded", lambda ids_IL: read.append(ids_IL) or torch.zeros(len(ids_IL), 16))
    for _ in range(2):
        for run in look.parts():
            run()
    assert [len(ids_IL) for ids_IL in read] == [1] * 4  # a frozen encoder takes them one by one
    assert model.gates[2:] == [], "gates of one picture at a time"


def test_the_table_is_whole_and_the_report_reads_it(model, monkeypatch):
    monkeypatch.setattr("mmmoe.kernels.measure.LEAST_SECONDS", 0.0)
    results = measure(model, images=2, rounds=1)
    plain = [result.name for result in results if result.point is None]
    alone = [f"one image, {number} routed" for number in NUMBERS]
    shares = [f"{TOWERS}, {number} routed" for number in NUMBERS[:-1]]
    assert plain == [*alone, *shares, BASE, *EXPERTS, *(f"batch of 2, {number} routed" for number in NUMBERS)]
    assert [result.bound for result in results if result.bound is not None] == pytest.approx([0.01, 1.1 / 3, 2.2 / 3])
    assert max(result.error for result in results if result.error is not None) < 1e-5
    content = {"name": "vision_experts", "machine": "m", "date": "d", "clock": "c"}
    cost = VisionCost.read(content | {"results": [asdict(result) for result in results]})
    assert [(tower.name, tower.pixels) for tower in cost.towers] == [
        (BASE, 8), ("dots", 8), ("lines", 12), ("wide", 16),
    ]  # fmt: skip
    assert [(one.level, one.routed) for one in cost.routed] == [
        (level, number) for level in ("one image", "batch of 2") for number in NUMBERS
    ]
    assert list(cost.routed[0].parts) == [BASE, TOWERS, TEXT, ADAPTER]
    assert [one.ratio for one in cost.routed if one.routed == 3] == [1.0, 1.0]
    assert cost.routed[0].parts[TOWERS] < 0.1 * cost.routed[3].parts[TOWERS]
    assert picture(content | {"results": [asdict(result) for result in results]}).get_axes()


def test_a_model_without_vision_experts_is_told():
    with pytest.raises(ValueError, match=r"its model \(llava_mole\) has no vision experts"):
        bench_vision_experts(["config=configs/llava_mole_tiny.yaml"])
