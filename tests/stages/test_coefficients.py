"""A coefficient that no module consumes stops the run, before a weight is read and again in the stage."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.engine.groups import freeze
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.paths import project_root
from mmmoe.stages.coefficients import check_coefficients
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec

FROZEN = "stages.mole.trains=['*.lora.*', '*.experts.*', 'connector.*']"
GATED = "stages.mole.adapters.1.router.selection=top1_gated"


def run(*overrides):
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, list(overrides))


def told(*overrides):
    return [line for line in problems(run(*overrides)) if ".balance." in line]


def frozen_model(spec):
    stage = spec.stages[-1]
    model = build_model(spec.model, spec.seed, meta=True)
    add_adapters(model, adapters_in(spec, stage), spec.seed)
    freeze(model, stage.trains, canonical)
    return model, stage


def test_routers_that_train_consume_their_coefficients():
    assert told() == []
    assert told("stages.mole.adapters.1.balance.z_weight=0.001") == []


def test_preflight_names_stage_key_and_cure():
    (line,) = told(FROZEN)
    assert line.startswith("stages.mole.adapters.1.balance.weight: 0.0033 weighs a term of routers that do not train")
    assert "put '*.router.*' under trains" in line
    assert "none" not in line, "selection top1 without a balance term is refused"


def test_each_coefficient_is_named():
    balance, z = told(FROZEN, GATED, "stages.mole.adapters.1.balance.z_weight=0.001")
    assert balance.endswith("or set balance: {kind: none}")
    assert z.startswith("stages.mole.adapters.1.balance.z_weight: 0.001")
    assert z.endswith("or set z_weight: 0")


def test_without_a_coefficient_routers_may_stay_as_they_were_drawn():
    assert told(FROZEN, GATED, "stages.mole.adapters.1.balance={kind: none}") == []


def test_the_stage_itself_refuses():
    model, stage = frozen_model(run(FROZEN))
    with pytest.raises(ValueError, match=r"^stages\.mole\.adapters\.1\.balance\.weight: 0\.0033"):
        check_coefficients(model, stage)
    check_coefficients(*frozen_model(run()))


def test_adapters_of_an_earlier_stage_may_be_frozen():
    spec = run()
    later = spec.stages[-1].model_copy(update={"name": "later", "adapters": [], "trains": ["connector.*"]})
    spec = spec.model_copy(update={"stages": [*spec.stages, later]})
    check_coefficients(*frozen_model(spec))
    assert [line for line in problems(spec) if "later" in line and "balance" in line] == []


def test_weights_of_blocks_that_are_mixed_as_a_whole_cannot_train():
    mixlora = load(project_root() / "configs/mixlora_tiny.yaml", RunSpec, ["stages.mixlora.trains=['language.*']"])
    (line,) = [line for line in problems(mixlora) if "level ffn" in line]
    assert line.startswith("stages.mixlora.trains: language.model.layers.0.mlp carries experts of level ffn")
    with pytest.raises(ValueError, match="leave its own weights without a gradient"):
        check_coefficients(*frozen_model(mixlora))
