"""Stages with a Slide-LoRA: its size at the paper's model, and a gate's loss that teaches nothing."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.models.lora.spec import SlideLoRASpec
from mmmoe.paths import project_root
from mmmoe.stages.cache import _depends_on_cut
from mmmoe.stages.plan import print_plan
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec

VICUNA_13B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
LEARNED = {"gate": "learned", "gate_weight": 1.0}


def slide_spec(**changes):
    return SlideLoRASpec(**({"sites": ["language.*.self_attn.*_proj"], "rank": 32, "alpha": 32} | changes))


def with_slide(name, trains, *, config=None, **changes):
    """Returns a declared run whose last stage adds a Slide-LoRA and nothing else."""
    run = load(project_root() / f"configs/{name}.yaml", RunSpec)
    last = run.stages[-1].model_copy(update={"adapters": [slide_spec(**changes)], "trains": trains})
    language = run.model.language
    if config is not None:
        language = language.model_copy(update={"config": language.config | config})
    model = run.model.model_copy(update={"language": language})
    return run.model_copy(update={"stages": [*run.stages[:-1], last], "model": model})


@pytest.mark.parametrize(
    ("changes", "experts", "routers"),
    [({}, 157_286_400, 0), (LEARNED, 157_286_400, 2 * 5120), ({"tasks": 4}, 262_144_000, 0)],
)
def test_size_at_13b(changes, experts, routers, capfd, monkeypatch):
    """E r 2 5120 4 40 (TextHarmony sheet, section i.6), 1.21 % of 13,015,864,320; five experts would be 2.01 %."""
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(with_slide("llava_mole_7b", ["*.experts.*"], config=VICUNA_13B, **changes))
    table = capfd.readouterr().err.rpartition("parameters in stage")[2]
    rows = {row[0]: row[1:] for row in (line.strip(" │|").split() for line in table.splitlines()) if row}
    assert f"{13_015_864_320:,}" in rows["language"]
    assert f"{experts:,}" in rows["experts"]
    assert ("routers" in rows) == (routers > 0)
    if routers:
        assert f"{routers:,}" in rows["routers"]
    assert "slide" not in rows


def test_the_loss_of_a_gate_that_does_not_train_is_told():
    told = [line for line in problems(with_slide("llava_mole_tiny", ["*.experts.*"], **LEARNED)) if "gate" in line]
    assert told == [
        "stages.mole.adapters.0.gate_weight: 1.0 weighs the loss of a gate that does not train; "
        "put 'slide.router.*' under trains, or use gate: label"
    ]
    for trains, changes in ((["*.experts.*", "slide.router.*"], LEARNED), (["*.experts.*"], {})):
        run = with_slide("llava_mole_tiny", trains, **changes)
        assert not [line for line in problems(run) if "gate" in line]


def test_only_dropout_makes_a_result_depend_on_the_cut_into_micro_batches():
    assert not _depends_on_cut(slide_spec(**LEARNED))
    assert _depends_on_cut(slide_spec(dropout=0.1))
