"""The plots of routers at the size of a large model: many layers, several routers a layer, two adapters."""

import io

import numpy as np
import pytest
from PIL import Image

from mmmoe.report.curves import Scale
from mmmoe.report.expert_plots import expert_plots
from mmmoe.report.files import StageLog

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj",
         "mlp.down_proj")  # fmt: skip


def mola(layers=32, steps=30):
    """Returns a stage of a model with a router on each linear and more experts in higher layers."""
    generator = np.random.default_rng(0)
    experts = {layer: 2 + 2 * (4 * layer // layers) for layer in range(layers)}

    def draw(factor):
        return {str(n): generator.multinomial(factor * 700, [1 / e] * e).tolist() for n, e in experts.items()}

    rows = []
    for step in range(1, steps + 1):
        by_router = {
            f"language.model.layers.{n}.{part}": generator.multinomial(2000, [1 / e] * e).tolist()
            for n, e in experts.items()
            for part in PARTS
        }
        rows.append({
            "step": step, "positions": 1000, "load_by_router": by_router,
            "load": {source: {"text": draw(4), "image": draw(6)} for source in ("a", "b", "c", "d")},
            "balance": [1.0 + n / 100 for n in experts], "z": [0.5] * layers, "balance_2": [1.0] * 4,
            "entropy": [None if n == 3 else 0.9 for n in experts],
        })  # fmt: skip
    return StageLog("mola", tuple(rows))


@pytest.fixture(scope="module")
def plots():
    return {plot.name: plot for plot in expert_plots([mola()])}


def test_every_view_is_drawn(plots):
    assert list(plots) == [
        "expert_load_mola", "expert_load_mola_by_modality", "expert_load_mola_by_source", "expert_split_mola",
        "balance", "balance_2", "z", "entropy",
    ]  # fmt: skip
    assert plots["balance_2"].title == "Balance loss, adapter 2"
    assert {plot.section for plot in plots.values()} == {"experts"}


def test_they_stay_on_a_page(plots):
    for plot in plots.values():
        with Image.open(io.BytesIO(plot.light)) as image:
            assert image.width < 1600
            assert image.height < 2200


def test_captions_tell_what_is_drawn(plots):
    assert "Figures are shares" not in plots["expert_load_mola"].caption, "no room for figures with 32 layers"
    assert "added up" in plots["expert_load_mola_by_source"].caption
    assert "A row a layer" in plots["entropy"].caption
    assert "Running means" in plots["balance_2"].caption, "four layers are lines"
    assert all("as above" not in plots[name].caption for name in ("expert_load_mola", "balance", "entropy"))


def test_a_run_with_text_alone_has_one_panel():
    rows = [{"step": s, "positions": 500, "load": {"a": {"text": {"0": [250, 250]}}}} for s in (1, 2, 3)]
    (plot,) = expert_plots([StageLog("text", tuple(rows))])
    assert plot.name == "expert_load_text"
    assert "Figures are shares" in plot.caption


def test_no_routers_no_plots():
    assert expert_plots([StageLog("align", ({"step": 1, "loss": 2.0},))]) == []


def test_a_scale_reaches_as_far_as_the_values():
    assert Scale("x", low=1.0, high=1.5).bounds(np.array([1.1, np.nan, 2.0])) == (1.0, 2.0)
    assert Scale("x", low=1.0, high=1.5).bounds(np.array([0.9, 1.2])) == (0.9, 1.5)
    assert Scale("x").bounds(np.array([0.3, 0.7])) == (0.3, 0.7)
