"""What is left of a model when all that it learned with pictures is taken away."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmmoe.models.mmfs.language import SynchronisedLayer
from mmmoe.stages import before_pictures
from mmmoe.stages.before_pictures import _take_language, last_of_text
from mmmoe.stages.ledger import RunFolder

TEXT, PICTURES = ["language.*"], ["language.*", "connector.*"]
ADAPTER = ["language.*.lora.*"]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Returns what declares a run of stages, by name what each trains and starts from."""
    declared = {}

    def declare(name, **stages):
        declared[tmp_path / name] = SimpleNamespace(
            stages=[
                SimpleNamespace(name=stage, trains=trains, init_from=start) for stage, (trains, start) in stages.items()
            ]
        )
        return RunFolder(tmp_path / name)

    monkeypatch.setattr(RunFolder, "open", lambda path: SimpleNamespace(spec=lambda: declared[path]))
    return declare


def test_the_last_stage_of_text_alone_is_found(runs):
    run = runs("one", language=(TEXT, None), more=(TEXT, None), align=(PICTURES, None), route=(ADAPTER, None))
    for name in ("more", "align", "route"):
        assert last_of_text(run.final(name)) == run.final("more"), "what follows pictures does not count"
    assert last_of_text(run.final("language")) == run.final("language")


def test_there_is_none_where_pictures_come_first(runs):
    run = runs("one", pretrain=(PICTURES, None), tune=(ADAPTER, None))
    assert last_of_text(run.final("tune")) is None


def test_stages_of_other_runs_and_branches_are_followed(runs):
    other = runs("other", language=(TEXT, None), align=(PICTURES, None))
    run = runs("one", go=(TEXT, str(other.final("language"))), see=(PICTURES, None), branch=(TEXT, "go"))
    assert last_of_text(run.final("see")) == run.final("go")
    assert last_of_text(run.final("branch")) == run.final("branch")
    run = runs("two", go=(TEXT, str(other.final("align"))))
    assert last_of_text(run.final("go")) == other.final("language")


def test_the_synchroniser_stays_fresh(monkeypatch):
    class Layer(SynchronisedLayer):
        def __init__(self):
            nn.Module.__init__(self)
            self.base, self.attn, self.norm1 = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.gate = nn.Parameter(torch.zeros(1))

    model = nn.ModuleDict(
        {"language": nn.ModuleDict({"layers": nn.ModuleList([Layer()])}), "connector": nn.Linear(2, 2)}
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = ["weight", "attn.weight", "norm1.bias", "gate", "lora.a"]
    tensors = {f"language.layers.0.{name}": torch.full((2, 2), 9.0) for name in names} | {
        "connector.weight": torch.ones(2, 2)
    }
    _take_language(model, SimpleNamespace(checkpoint=SimpleNamespace(tensors=tensors)))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"language.layers.0.base.weight"}
    assert before_pictures.SYNCHRONISER == ("attn", "gate", "norm1", "norm2")
