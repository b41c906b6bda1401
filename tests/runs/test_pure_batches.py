"""Pure micro-batches train as mixed ones do: the same samples a step, nobody waits for nobody, whatever the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_project import losses, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures_and_text(project, tmp_path_factory):
    """The small project with text beside pictures, without dropout and evaluation; one stage, half of it each."""
    declared = yaml.safe_load(project.read_text())
    (mole,) = (stage for stage in declared["stages"] if stage["name"] == "mole")
    for adapter in mole["adapters"]:
        adapter["dropout"] = 0.0
    shards = Path(mole["mixture"]["sources"][0]["shards"]).parent
    mole["mixture"]["sources"].append({"name": "text", "shards": str(shards / "text"), "domain": "text"})
    declared |= {"stages": [mole], "evaluation": None}
    path = tmp_path_factory.mktemp("pure") / "run.yaml"
    path.write_text(yaml.safe_dump(declared))
    return path


def run(path, name, *overrides):
    runs = path.with_name(name)
    process = start("run", path, f"runs={runs}", *overrides)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    return runs / "small"


@pytest.mark.parametrize(
    ("kind", "zero", "world"), [("local", 0, 1), ("local", 0, 2), ("deepspeed", 2, 2), ("deepspeed", 3, 2)]
)
def test_losses_are_those_of_mixed_batches(pictures_and_text, kind, zero, world):
    mixed = pictures_and_text.with_name("mixed") / "small"
    if not mixed.is_dir():
        run(pictures_and_text, "mixed")
    engine = [f"engine.kind={kind}", f"engine.zero={zero}", f"engine.processes={world}"]
    pure = run(
        pictures_and_text,
        f"{kind}{zero}x{world}",
        "stages.mole.mixture.batches=pure",
        *engine,
    )
    found, expected = (torch.tensor(losses(folder, "mole")) for folder in (pure, mixed))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)
    lines = [json.loads(line) for line in (pure / "stages" / "mole" / "metrics.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line["losses"]} == {"shapes", "colours", "text"}
