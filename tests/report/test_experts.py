import numpy as np
import pytest

from mmmoe.report.experts import expert_load, place_of, short_routers, split
from mmmoe.report.files import StageLog


def stage(*loads, k=1, **fields):
    """Returns a stage with a line for each load by source, modality and layer."""
    rows = []
    for at, load in enumerate(loads):
        tables = [table for by_modality in load.values() for table in by_modality.values()]
        positions = sum(sum(next(iter(table.values()))) for table in tables) // k
        rows.append({"step": at + 1, "load": load, "positions": positions, **fields})
    return StageLog("moe", tuple(rows))


def test_shares_weigh_sources_by_their_choices():
    load = expert_load(stage({"a": {"text": {"0": [30, 10]}}, "b": {"text": {"0": [0, 60]}}}))
    assert load.layers == (0,)
    assert np.allclose(load.by_source["a"], [[0.75, 0.25]])
    assert np.allclose(load.by_source["b"], [[0.0, 1.0]])
    assert np.allclose(load.overall, [[0.3, 0.7]])
    assert split(load.by_source).tolist() == pytest.approx([0.75])


def test_modalities_are_told_apart_over_all_sources():
    a = {"text": {"0": [30, 10]}, "image": {"0": [0, 40]}}
    load = expert_load(stage({"a": a, "b": {"text": {"0": [30, 30]}}}))
    assert np.allclose(load.by_modality["text"], [[0.6, 0.4]])
    assert np.allclose(load.by_modality["image"], [[0.0, 1.0]])
    assert np.allclose(load.overall, [[60 / 140, 80 / 140]])
    assert split(load.by_modality).tolist() == pytest.approx([0.6])
    assert split(load.by_source).tolist() == pytest.approx([0.5 - 0.375])


def test_text_alone_from_one_source_has_no_split():
    load = expert_load(stage({"a": {"text": {"0": [30, 10]}}}))
    assert split(load.by_source) is None
    assert split(load.by_modality) is None


def test_layers_with_unequal_numbers_of_experts():
    load = expert_load(stage({"a": {"text": {"10": [20, 20], "9": [10, 10, 20]}, "image": {"9": [1, 1, 2]}}}))
    assert load.layers == (9, 10)
    assert np.allclose(load.overall, [[0.25, 0.25, 0.5], [0.5, 0.5, np.nan]], equal_nan=True)
    assert load.by_source["a"].shape == (2, 3)
    assert np.isnan(load.by_modality["image"][1]).all(), "a layer the images never reached"
    assert split(load.by_modality).tolist()[0] == 0.0


def test_shares_of_choices_add_up_to_one_whatever_k():
    load = expert_load(stage({"a": {"text": {"0": [60, 30, 30]}}}, k=2))
    assert np.allclose(load.overall, [[0.5, 0.25, 0.25]])
    assert load.routers.num_chosen().tolist() == [2]


def test_only_the_end_of_the_stage_counts():
    early, late = {"a": {"text": {"0": [100, 0]}}}, {"a": {"text": {"0": [50, 50]}}}
    load = expert_load(stage(*[early] * 8, *[late] * 2))
    assert np.allclose(load.overall, [[0.5, 0.5]])
    assert load.routers.positions == 200


def test_several_routers_of_a_layer():
    by_router = {"m.0.attn.q": [30, 10], "m.0.attn.k": [10, 30], "m.1.attn.q": [5, 5, 30]}
    load = expert_load(
        stage({"a": {"text": {"0": [40, 40], "1": [5, 5, 30]}}}, k=2, load_by_router=by_router)
    )  # positions 40: each router decides over all of them
    assert list(load.by_part) == ["q", "k"]
    assert np.allclose(load.by_part["q"], [[0.75, 0.25, np.nan], [0.125, 0.125, 0.75]], equal_nan=True)
    assert np.isnan(load.by_part["k"][1]).all(), "layer 1 has no such router"
    assert load.cell("m.1.attn.q") == ("q", 1)
    assert load.routers.num_chosen().tolist() == [1, 1, 1]


def test_no_routers_no_load():
    assert expert_load(StageLog("s", ({"step": 1, "loss": 1.0},))) is None


def test_names_of_routers():
    assert place_of("layer 12") == (12, "")
    assert place_of("language.model.layers.3.self_attn.q_proj") == (3, "self_attn.q_proj")
    assert short_routers(["layer 3"]) == {"layer 3": "layer 3"}
    assert list(short_routers(["l.0.a.q", "l.0.a.k"]).values()) == ["layer 0, q", "layer 0, k"]
    assert list(short_routers(["l.0.a.q", "l.0.b.q"]).values()) == ["layer 0, a.q", "layer 0, b.q"]
