"""Every variant of the experiments is a configuration; TextHarmony's differ in what the claim is about."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.engine.groups import freeze, parameter_groups, trainable_parameters
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.paths import project_root
from mmmoe.stages.experiment import ExperimentSpec, _spec_of

FOLDER = project_root() / "configs/experiments"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_loads(path):
    experiment = load(path, ExperimentSpec)
    specs = [_spec_of(experiment, variant) for variant in experiment.variants]
    assert len({variant.name for variant in experiment.variants}) == len(specs)


@pytest.fixture(scope="module")
def harmony():
    experiment = load(FOLDER / "text_harmony.yaml", ExperimentSpec)
    return [_spec_of(experiment, variant) for variant in experiment.variants]


def tuned(spec):
    """Returns the model of the last stage without weights, as it trains."""
    stage, model = spec.stages[-1], build_model(spec.model, 0, meta=True)
    add_adapters(model, stage.adapters, 0)
    freeze(model, stage.trains, canonical)
    parameter_groups(trainable_parameters(model, canonical), stage.training.optimizer)
    return model


def size(model, *parts):
    return sum(p.numel() for n, p in model.named_parameters() if any(part in n for part in parts) and p.requires_grad)


def test_text_harmonys_variants_have_adapters_of_one_size(harmony):
    models = [tuned(spec) for spec in harmony]
    assert {size(model, ".lora.", ".experts.") for model in models} == {3 * 16 * 2 * 192 * 4 * 4}
    assert [model.slide is not None for model in models] == [True, False, False, False]
    assert [size(model, "decoder.") > 0 for model in models] == [True, True, False, True]


def test_text_harmonys_variants_start_from_one_model_and_see_as_much_of_a_task(harmony):
    assert all(spec.stages[0] == harmony[0].stages[0] and spec.stages[0].reuse for spec in harmony)
    both, _, comprehension, generation = (spec.stages[1] for spec in harmony)
    total = sum(source.weight for source in both.mixture.sources)
    for stage in (comprehension, generation):
        assert all(source in both.mixture.sources for source in stage.mixture.sources)
        share = sum(source.weight for source in stage.mixture.sources) / total
        assert stage.training.steps == round(both.training.steps * share)
    assert len(comprehension.mixture.sources) + len(generation.mixture.sources) == len(both.mixture.sources)
