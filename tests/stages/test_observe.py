"""The line of a step: sums over micro-batches, and alarms that change nothing but the line."""

from __future__ import annotations

import json

import torch

from mmmoe.data.collate import Batch
from mmmoe.data.spec import SourceSpec
from mmmoe.engine.metrics import MetricsFile
from mmmoe.engine.protocol import StepRecord
from mmmoe.models.output import ModelOutput, RoutingStatistics
from mmmoe.stages.observe import StageObserver
from mmmoe.stages.watch import RouterWatch

SITES, LAYERS, EXPERTS = ("l.0.mlp", "l.1.mlp"), (0, 1), (2, 4)


def batch():
    """Returns two samples, one of each source."""
    ids = torch.zeros(2, 3, dtype=torch.int64)
    return Batch(ids, ids, ids.bool(), None, None, torch.tensor([0, 1]), -ids[:, 0], ("a1", "b1"), ("a", "b"), 2, 2, 6)


def output(first, second):
    """Returns what a model says whose two routers choose alike in both samples: positions are text, then image."""
    load_BLME = torch.zeros(2, 2, 2, 4, dtype=torch.int64)
    load_BLME[:, 0, 0, :2] = torch.tensor(first)
    load_BLME[:, 1, 1] = torch.tensor(second)
    entropy_BL = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    routing = RoutingStatistics(
        SITES, LAYERS, EXPERTS, ("text", "image"), load_BLME, torch.zeros(2, 2, 4), entropy_BL, torch.tensor([10, 10])
    )
    layers = {"balance": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    return ModelOutput(torch.tensor([2.0, 4.0]), torch.tensor([1, 1]), {}, layers, {}, routing)


def record(step):
    return StepRecord(step, 3.0, 1.0, (0.1,), 1.0, 0.0, 6, 4)


def observer(path):
    sources = [SourceSpec(name=name, shards=name, domain=name) for name in "ab"]
    file = MetricsFile(path)
    return StageObserver(file, sources, None, RouterWatch("mole", 60, file.read()))


def test_a_line_adds_up_micro_batches_by_source_modality_and_layer(tmp_path):
    watched = observer(tmp_path / "metrics.jsonl")
    for _ in range(2):
        watched.on_batch(batch(), output([6, 4], [1, 2, 3, 4]))
    watched.on_step(record(1))
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row["load"]["a"] == {"text": {"0": [12, 8], "1": [0, 0, 0, 0]}, "image": {"0": [0, 0], "1": [2, 4, 6, 8]}}
    assert row["positions"] == 40
    assert row["balance"] == [2.0, 3.0]
    assert "alarms" not in row


def test_an_alarm_stands_in_the_line_that_raised_it_and_nowhere_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    watched = observer(path)
    for step in range(1, 56):
        watched.on_batch(batch(), output([5, 5], [0, 10, 0, 0]))
        watched.on_step(record(step))
        if step == 52:
            watched = observer(path)  # the run was stopped here and goes on
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows if "alarms" in row] == [50]
    kinds = [(alarm["kind"], alarm["router"], alarm["experts"]) for alarm in rows[49]["alarms"]]
    dead = [("dead", "layer 1", [expert]) for expert in (0, 2, 3)]
    assert kinds == [*dead, ("collapsed", "layer 1", [1])]
