"""Exams while a stage trains: scores are those of a finished stage, and training does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from expert_project import make_expert_project
from small_project import start

from mmmoe.config.load import load
from mmmoe.engine.checkpoint import read
from mmmoe.evaluation.scores import read_scores
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec

pytestmark = pytest.mark.slow

NOT_THE_SAME = ("seconds", "data_seconds", "tokens_per_s", "memory_mb", "gpu_memory_mb")


def run(project, name, *overrides):
    runs = Path(yaml.safe_load(project.read_text())["runs"]).with_name(name)
    process = start("run", project, f"runs={runs}", *overrides)
    said = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, said
    return runs / "small", said


def lines(folder, stage):
    """Returns a stage's lines, and what they say of exams."""
    rows = [json.loads(line) for line in (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
    exams = {row["step"]: (row.pop("evaluation"), row.pop("evaluation_seconds")) for row in rows if "evaluation" in row}
    return [{name: value for name, value in row.items() if name not in NOT_THE_SAME} for row in rows], exams


def same_weights(one, other, stage):
    first, second = (read(folder / "stages" / stage / "final").tensors for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def benchmarks_of(project):
    """Returns the project's benchmark, and the same questions to be answered in words."""
    [benchmark] = yaml.safe_load(project.read_text())["evaluation"]["benchmarks"]
    words = benchmark | {"name": "say", "kind": "short_answer", "max_new_tokens": 4}
    return f"evaluation.benchmarks={json.dumps([benchmark, words])}"


@pytest.mark.parametrize(
    "engine",
    [
        ["engine.kind=local"],
        ["engine.kind=local", "engine.processes=2"],
        ["engine.kind=deepspeed", "engine.zero=2", "engine.precision=bf16"],
    ],
    ids=["local", "local, two", "deepspeed in bf16"],
)
def test_training_goes_on_bit_for_bit(project, engine):
    name = "-".join(part.split("=")[1] for part in engine)
    engine = [*engine, "stages.align.reuse=true"]
    plain, _ = run(project, f"plain-{name}", *engine, "evaluation=null")
    asked, said = run(
        project, f"asked-{name}", *engine, benchmarks_of(project), "stages.mole.evaluate={every: 2, limit: 8}"
    )
    expected, found = lines(plain, "mole")[0], lines(asked, "mole")
    assert found[0] == expected
    assert same_weights(plain, asked, "mole")
    assert sorted(found[1]) == [2, 4, 6]
    assert all(set(scores) == {"shape", "say"} and seconds > 0 for scores, seconds in found[1].values())
    assert "stage mole, step 2: shape" in said
    last = read_scores(asked / "stages/mole/evaluation/step-6/scores.json")
    assert [(row.n, row.partial) for row in last] == [(8, True)] * 2
    if "bf16" not in name:
        # The model after the last step is the finished one.
        final = [json.loads(x) for x in (asked / "evaluation/trained/shape.jsonl").read_text().splitlines()][:8]
        live = asked / "stages/mole/evaluation/step-6/trained/shape.jsonl"
        answers = [json.loads(x) for x in live.read_text().splitlines()]
        assert [one["prediction"] for one in answers] == [one["prediction"] for one in final]
        for one, other in zip(answers, final, strict=True):
            assert one["scores"] == pytest.approx(other["scores"], rel=1e-4)


def test_processes_that_share_experts_stay_in_step(tmp_path):
    project = make_expert_project(tmp_path / "project")
    share = ["engine.processes=2", "engine.ep_size=2"]
    share += [f"stages.{stage}.reuse=true" for stage in ("align", "shape_expert", "colour_expert")]
    plain, _ = run(project, "plain", *share, "evaluation=null")
    # Five questions for two processes, and one: they have unlike numbers of batches, or none.
    for limit in (5, 1):
        exams = f"stages.moe.evaluate={{every: 2, limit: {limit}}}"
        asked, _ = run(project, f"asked-{limit}", *share, benchmarks_of(project), "evaluation.batch=2", exams)
        found, told = lines(asked, "moe")
        assert found == lines(plain, "moe")[0]
        assert same_weights(plain, asked, "moe")
        assert [set(scores) for scores, _ in told.values()] == [{"shape", "say"}]
        [row, other] = read_scores(asked / "stages/moe/evaluation/step-2/scores.json")
        assert (row.n, other.n) == (limit, limit)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["evaluation=null"], "declares no evaluation"),
        (["stages.mole.evaluate.benchmarks=[shades]"], "'shades' is not in the run's evaluation, which has shape"),
        (["engine.kind=deepspeed", "engine.zero=3"], "with zero 3 no process holds the model"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_start(project, overrides, told):
    found = list(problems(load(project, RunSpec, ["stages.mole.evaluate={every: 2}", *overrides])))
    assert any(line.startswith("stages.mole.evaluate: ") and told in line for line in found), found
