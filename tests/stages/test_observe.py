"""The line of a step: sums over micro-batches, and alarms that change nothing but the line."""

from __future__ import annotations

import json
from dataclasses import replace

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


class Saver:
    """Notes what it is asked to save."""

    def __init__(self):
        self.saved = []

    def is_due(self, step, scores):
        return bool(scores)

    def save(self, step, scores):
        self.saved.append((step, scores))


class Exam:
    def is_due(self, step):
        return step == 2

    def sit(self, step):
        return {"evaluation": {"shape": 0.5}, "evaluation_seconds": 1.0}


def test_a_skipped_step_says_why_and_tells_nothing_of_the_model(tmp_path):
    watched = observer(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        watched.on_batch(batch(), output([6, 4], [1, 2, 3, 4]))
        told = {"loss": float("nan"), "grad_norm": float("nan"), "skipped": "loss is not finite"} if step == 1 else {}
        watched.on_step(replace(record(step), **told))
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["loss"], first["grad_norm"]) == (1, None, None)
    assert (first["skipped"], first["lr"], first["samples"]) == ("loss is not finite", [0.1], 4)
    assert not {"losses", "load", "balance"} & first.keys()
    # What the skipped step's batches told is no part of the next line.
    assert second["load"]["a"]["text"]["0"] == [6, 4]
    assert "skipped" not in second


def test_a_checkpoint_has_the_scores_of_the_exam_after_its_own_step(tmp_path):
    sources = [SourceSpec(name=name, shards=name, domain=name) for name in "ab"]
    saver = Saver()
    watched = StageObserver(None, sources, saver, RouterWatch("mole", 60), None, Exam())
    due = []
    for step in (1, 2, 3):
        watched.on_batch(batch(), output([6, 4], [1, 2, 3, 4]))
        watched.on_step(record(step))
        due.append(watched.should_save(step))
        watched.save(step)
    assert due == [False, True, False]
    assert saver.saved == [(1, {}), (2, {"shape": 0.5}), (3, {})]
