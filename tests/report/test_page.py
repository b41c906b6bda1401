import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_run import write_run

from mmmoe.report.curves import smooth
from mmmoe.report.examples import thumbnail
from mmmoe.report.files import read_run
from mmmoe.report.page import write_report
from mmmoe.report.summary import duration, make_cards

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    """Collects addresses and tags, and sees that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    page = write_report(folder)
    return folder, page, page.read_text()


def test_the_page_loads_nothing(report):
    checker = Checker()
    checker.feed(report[2])
    assert checker.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in checker.addresses)
    assert not {"script", "link", "iframe", "form"} & set(checker.tags)
    assert "default-src 'none'" in report[2]
    assert not re.search(r"@import|url\(", report[2])


def test_text_from_the_run_is_escaped(report):
    assert "<b>it</b>" not in report[2]
    assert "&lt;b&gt;it&lt;/b&gt; &amp; why?" in report[2]
    assert "&lt;script&gt;alert" in report[2]


def test_every_part_is_there(report):
    text = report[2]
    for anchor in ("scores", "examples", "training", "experts", "record"):
        assert f'id="{anchor}"' in text
        assert f'href="#{anchor}"' in text
    assert "expert 2 gets" in text
    assert "between sources" in text
    assert "between modalities" in text
    assert "<li>experts, layer 3: expert 2 gets 0." in text, "the alarm at the end"
    assert text.count("still so") == 1, "the dead expert"
    assert text.count(">over<") == 1, "the collapse"
    assert text.count('class="tag right"') == 8
    assert text.count('class="tag wrong"') == 8
    assert "3 stages, 660 steps" in text
    assert "2026-01-05T10:00:00" in text
    assert "prefers-color-scheme: dark" in text


def test_plots_are_files_too(report):
    names = {path.stem for path in (report[0] / "plots").glob("*.png")}
    assert names == {
        "scores", "loss", "loss_by_source", "learning_rate", "throughput", "balance", "z", "entropy",
        "expert_load_experts", "expert_load_experts_by_source", "expert_split_experts",
    }  # fmt: skip
    for path in (report[0] / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 900
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 20, "not blank"
    assert report[1] == report[0] / "report.html"


def test_scores_alone_or_training_alone_make_a_page(tmp_path):
    folder = tmp_path / "scores_only"
    (folder / "evaluation").mkdir(parents=True)
    row = {
        "variant": "trained", "benchmark": "b", "domain": "b", "kind": "short_answer", "n": 3, "score": 0.0, "low": 0.0,
        "high": 0.7, "chance": 0.3, "majority": 0.4, "empty_share": 1.0, "partial": False, "prompt_hash": "x",
        "seconds": 1,
    }  # fmt: skip
    (folder / "evaluation" / "scores.json").write_text(json.dumps([row]))
    text = write_report(folder).read_text()
    assert "Not clearly above guessing" in text
    assert 'id="training"' not in text
    folder = tmp_path / "one_step"
    (folder / "stages" / "s").mkdir(parents=True)
    (folder / "stages" / "s" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0, "lr": [0.1]}\n')
    text = write_report(folder).read_text()
    assert 'id="scores"' not in text
    assert "3.00" in text


def test_a_metric_is_named_and_its_points_categories_and_faults_are_told(tmp_path):
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    row = {
        "variant": "trained", "benchmark": "mme", "domain": "b", "kind": "short_answer", "n": 4, "score": 1234.0,
        "low": 1100.0, "high": 1300.0, "chance": 75.0, "majority": None, "empty_share": 0.0, "partial": False,
        "prompt_hash": "x", "seconds": 1, "metric": "mme", "scale": 1.0, "is_share": False, "unparsable_share": 0.125,
        "categories": [{"name": "count", "n": 4, "score": 155.0}, {"name": "OCR", "n": 0, "score": None}],
        "measures": {"count acc": 75.0}, "set_aside": 2, "set_aside_reasons": ["line 7: <no> picture"],
        "published": [{"model": "Paper-7B", "value": "1562 / 371", "source": "table 3"}],
    }  # fmt: skip
    (folder / "evaluation" / "scores.json").write_text(json.dumps([row]))
    text = " ".join(write_report(folder).read_text().split())
    assert "<strong>1234.0<small></small></strong>" in text, "points are no percent"
    assert "mme, unparsed 12.5 %" in text
    assert "<summary>mme: by category</summary>" in text
    assert '<td class="text">count</td><td>155.0</td><td>4</td>' in text
    assert "Paper-7B: 1562 / 371 (table 3)" in text
    assert "2 rows of its files are set aside, the first: line 7: &lt;no&gt; picture" in text
    assert "majority –" in text
    assert not (folder / "plots" / "scores.png").exists(), "points do not stand among shares"


def test_scores_while_training_are_a_curve(tmp_path):
    (tmp_path / "stages" / "s").mkdir(parents=True)
    lines = [
        {"step": n, "loss": 1.0, "lr": [0.1], **({"evaluation": {"b": 0.5}} if n % 2 else {})} for n in range(1, 5)
    ]
    (tmp_path / "stages" / "s" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path)
    assert (tmp_path / "plots" / "scores_while_training.png").is_file()


def test_the_verdict_needs_the_whole_interval_above_everything(report):
    scores = [dict(row) for row in read_run(report[0]).scores]
    assert [card.beats_guessing for card in make_cards(scores)] == [True, True]
    blind = next(row for row in scores if row["variant"] == "blind" and row["benchmark"] == "shapes")
    blind["score"] = 0.8
    assert [card.beats_guessing for card in make_cards(scores)] == [False, True]


def test_thumbnails_are_new_pictures_or_nothing(tmp_path):
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "big.png")
    address = thumbnail(tmp_path / "big.png")
    assert address.startswith("data:image/png;base64,")
    import base64

    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
        assert image.size == (360, 180)
    (tmp_path / "secret.txt").write_text("password")
    assert thumbnail(tmp_path / "secret.txt") is None
    assert thumbnail(tmp_path / "none.png") is None


def test_smooth_is_a_running_mean():
    assert smooth([1.0, 2.0, 6.0, 3.0]) == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert smooth([2.0] * 100) == pytest.approx([2.0] * 100)


def test_duration():
    assert [duration(s) for s in (3.21, 75, 3725)] == ["3.2 s", "1 min 15 s", "1 h 2 min"]
