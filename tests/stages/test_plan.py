"""The plan counts the paper's parameters from configuration alone (LLaVA-MoLE sheet, section i.9)."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.models.moe.spec import MoESpec
from mmmoe.paths import project_root
from mmmoe.stages.moe_sizes import Sizes, sizes
from mmmoe.stages.plan import grid_row, print_plan
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec


@pytest.fixture(scope="module")
def spec():
    return load(project_root() / "configs/llava_mole_7b.yaml", RunSpec)


@pytest.mark.parametrize(
    ("experts", "rank", "counts"),
    [
        (1, 32, (46_399_488, 33_554_432, 0)),
        (2, 32, (92_798_976, 33_554_432, 262_208)),
        (3, 16, (69_599_232, 16_777_216, 393_312)),
        (3, 32, (139_198_464, 33_554_432, 393_312)),
        (3, 128, (556_793_856, 134_217_728, 393_312)),
    ],
)
def test_adapter_sizes_of_the_paper(spec, experts, rank, counts):
    assert grid_row(spec.model, spec.stages[-1].adapters, experts, rank) == counts


@pytest.mark.parametrize(
    ("experts", "layers", "total", "active"),
    [
        (4, "interval", 13_231_460_352, 8_902_938_624),
        (4, "all", 19_724_505_088, 11_067_461_632),
        (8, "interval", 21_888_765_952, 8_903_200_768),
        (8, "all", 37_039_116_288, 11_067_985_920),
    ],
)
def test_whole_experts_have_the_sizes_of_uni_moes_table(spec, experts, layers, total, active):
    """Vicuna-7B; the sheet's formula 6,738,415,616 + (E - 1) * 135,266,304 * L + 4096 E L."""
    moe = MoESpec(sites=["language.*.mlp"], experts=["base"] * experts, layers=layers)
    assert sizes(spec.model, moe) == Sizes(total, active, 16 if layers == "interval" else 32)


def test_plan_of_the_7b_run_prints_without_any_weight(spec, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(spec)
    said = capfd.readouterr().err
    assert "6,738,415,616" in said
    assert "173,146,208" in said
    assert "missing" in said


def test_what_is_missing_is_told_all_at_once(spec):
    found = "\n".join(problems(spec))
    for part in ("model.language.path", "model.tower.path", "stages.align.mixture", "stages.mole.mixture.document"):
        assert part in found


@pytest.mark.parametrize(("size", "language"), [("7b", 6_738_415_616), ("8b", 8_030_261_248)])
def test_mova_has_the_sizes_of_its_sheet(size, language, capfd, monkeypatch):
    """Adapter 151,515,661 and about 10 B in all (sheet, section i.8); Co-DETR lies in a file and is not counted."""
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(load(project_root() / f"configs/mova_{size}.yaml", RunSpec))
    said = capfd.readouterr().err
    parts = (language, 306_063_360, 2_555_197_184, 334_092_288, 151_515_661)
    for number in (*parts, sum(parts)):
        assert f"{number:,}" in said


def test_text_harmony_has_the_sizes_of_its_sheet(capfd, monkeypatch):
    """Sheet, section i.6 and i.11: Slide-LoRA 3 x 32 x 2 x 5120 x 4 x 40, 1.21 % of Vicuna-13B; about 15.1 B in all."""
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(load(project_root() / "configs/text_harmony_13b.yaml", RunSpec))
    said = capfd.readouterr().err
    vicuna, synchroniser, slide = 13_015_864_320, 10 * (36_303_537 - 1024), 3 * 32 * 2 * 5120 * 4 * 40
    tower, connector, text_head, start, vit_lora = 330_338_496, 106_987_520, 5_121, 5_120, 4_718_592
    unet, vae, around = 865_910_724, 83_653_863, 56_976_320 + 26_219_520 + 23_168_000 + 78_848
    decoder = unet + vae + around
    parts = (vicuna + synchroniser, tower, connector, text_head, start, decoder, slide, vit_lora)
    for number in (*parts, sum(parts), 157_286_400):
        assert f"{number:,}" in said
    assert f"{synchroniser:,}" in said, "what pretraining sets free of the language model"
    assert f"{decoder - vae:,}" in said, "all but the VAE trains in pretraining"
    assert round(100 * slide / vicuna, 2) == 1.21
    assert abs(sum(parts) - 15.1e9) < 0.1e9
    assert "missing model.decoder.path: no folder checkpoints/stable-diffusion-2-base" in said
