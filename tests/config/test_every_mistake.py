"""Nineteen mistakes over four files and the command line, told in one go, each where it was made."""

from __future__ import annotations

import pytest

from mmmoe.config.load import ConfigError, load
from mmmoe.stages.spec import RunSpec

FILES = {
    "run.yaml": """# a run with mistakes
name: Has Spaces
base: common.yaml
seed: twelve
modle: nowhere
engine: {zero: 7, base: gone.yaml}
stages:
- base: stage.yaml
  name: align
  trains: []
- base: stage.yaml
  name: tune
  trains: ["*"]
  evaluate:
    every: 0
  trains: ["connector.*"]
""",
    "common.yaml": """# shared by runs
cache_limit_gb: -1
runs:
  - a list
model: {base: model.yaml}
""",
    "model.yaml": """# a model
family: llava_mole
language:
  kind: scratch
  confg: {}
tower: {kind: open_klip, name: x}
""",
    "stage.yaml": """# a stage
mixture:
  source: []
training:
  steps: 10
  batch: 2
  micro_batch: 0
when: 2001-99-99
""",
}
OVERRIDES = ["engine.procesess=4", "stages.align.training.lr=", "stages.nobody.steps=3", "seed", "engine.port=99999"]
TOLD = [
    "run.yaml:2: name: String should match pattern",
    "run.yaml:4: seed: Input should be a valid integer",
    "run.yaml:5: modle: unknown key; did you mean 'model'?",
    "run.yaml:6: engine.zero: Input should be 0, 1, 2 or 3, got 7",
    "run.yaml:6: engine.base: no such file: gone.yaml",
    "run.yaml:10: stages.align.trains: List should have at least 1 item",
    "run.yaml:15: stages.tune.evaluate.every: Input should be greater than or equal to 1, got 0",
    "run.yaml:16: stages.1.trains: given twice",
    "common.yaml:2: cache_limit_gb: Input should be greater than 0, got -1",
    "common.yaml:3: runs: Input should be a valid string",
    "model.yaml:5: model.language.confg: unknown key; did you mean 'config'?",
    "model.yaml:6: model.tower.kind: 'open_klip' is not known; did you mean 'open_clip'?",
    "stage.yaml:3: stages.align.mixture.source: unknown key; did you mean 'sources'?",
    "stage.yaml:7: stages.tune.training.micro_batch: Input should be greater than or equal to 1, got 0",
    "stage.yaml:8: when: '2001-99-99' is no timestamp",
    "override 'engine.procesess=4': engine.procesess: unknown key; did you mean 'processes'?",
    "override 'stages.nobody.steps=3': stages.nobody does not exist; the list has 2 items named align, tune",
    "override 'seed': write it as key.path=value",
    "override 'engine.port=99999': engine.port: Input should be less than or equal to 65535, got 99999",
]


def test_all_mistakes_are_told_at_once_where_they_were_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml", RunSpec, OVERRIDES)
    problems = caught.value.problems
    untold = [said for said in TOLD if not any(line.startswith(said) for line in problems)]
    assert untold == [], "\n".join(problems)
    assert all(str(problem) in str(caught.value) for problem in problems)
