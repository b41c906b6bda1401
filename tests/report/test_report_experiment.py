import json
from types import SimpleNamespace

import pytest
from PIL import Image

from mmmoe.report.experiment import ExperimentRow, write_experiment

VARIANTS = (
    ("plain LoRA on general", 0.81, 0.30),
    ("plain LoRA on the mix", 0.70, 0.66),
    ("LLaVA-MoLE on the mix", 0.8, 0.69),
)


def row(variant, domain, score, seed=None, benchmark=None):
    score_row = SimpleNamespace(
        benchmark=benchmark or domain, domain=domain, n=400, score=score, low=score - 0.04, high=score + 0.04,
        chance=0.25, majority=0.3, partial=False, prompt_hash="left out",
    )  # fmt: skip
    return ExperimentRow.of(variant, score_row, seed)


def test_table_findings_and_plot(tmp_path):
    rows = [
        row(name, domain, score)
        for name, *scores in VARIANTS
        for domain, score in zip(("general", "charts"), scores, strict=True)
    ]
    page = write_experiment(tmp_path / "new" / "folder", rows)
    text = page.read_text()
    assert "| variant | general | charts |" in text
    assert "| plain LoRA on the mix | 70.0 (66.0 to 74.0) | 66.0 (62.0 to 70.0) |" in text
    assert (
        "general: plain LoRA on the mix is 11.0 points below plain LoRA on general; the intervals do not overlap."
        in text
    )
    assert "general: LLaVA-MoLE on the mix is 1.0 points below plain LoRA on general; the intervals overlap." in text
    assert "400 questions" in text
    record = json.loads((page.parent / "experiment.json").read_text())
    assert len(record["rows"]) == 6
    assert record["findings"][0]["difference"] == pytest.approx(-0.11)
    with Image.open(page.parent / "experiment.png") as image:
        assert image.width > 900


def test_seeds_are_averaged_and_widen_the_interval(tmp_path):
    rows = [row("one", "general", 0.5, 0), row("one", "general", 0.6, 1), row("two", "general", 0.7, 0)]
    text = write_experiment(tmp_path, rows).read_text()
    assert "| one | 55.0 (46.0 to 64.0) |" in text
    assert "means over seeds" in text


def test_a_domain_is_the_mean_of_its_benchmarks(tmp_path):
    rows = [row("one", "general", score, benchmark=b) for b, score in (("vqa", 0.5), ("caption", 0.7))]
    rows.append(row("two|x", "general", 0.4, benchmark="vqa"))
    text = write_experiment(tmp_path, rows).read_text()
    half = 4.0 / 2**0.5  # two independent intervals of 4 points either side
    assert f"| one | 60.0 ({60 - half:.1f} to {60 + half:.1f}) |" in text
    assert "| general | caption | 25.0 | 30.0 | 70.0 (66.0 to 74.0) | – |" in text
    assert "two\\|x" in text


def test_many_benchmarks_lie_below_each_other(tmp_path):
    rows = [row(v, f"domain {at}", 0.5) for at in range(15) for v in ("one", "two", "three")]
    write_experiment(tmp_path, rows)
    with Image.open(tmp_path / "experiment.png") as image:
        assert image.height > 0.6 * image.width


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="no score rows"):
        write_experiment(tmp_path, [])
