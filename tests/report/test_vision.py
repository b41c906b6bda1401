"""The report of vision experts: from a MoVA's files to shares, plots and tables; nothing without them."""

import json

import numpy as np
import pytest
from synthetic_run import write_run
from test_page import Checker
from vision_run import EXPERTS, add_vision, costs

from mmmoe.report.files import read_run
from mmmoe.report.page import write_report
from mmmoe.report.vision import EVALUATED, LABELS, NAMED, chosen_experts, trained_experts
from mmmoe.report.vision_cost import VisionCost
from mmmoe.report.vision_plots import routing_bars, vision_plots


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return add_vision(write_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


def test_who_looks_at_which_questions_beside_what_labels_want(run):
    chosen = chosen_experts(run)
    assert chosen.experts == tuple(EXPERTS)
    assert chosen.rows == ("charts", "shapes: shapes", "shapes: round"), "questions without a picture are none"
    assert chosen.panels[EVALUATED].tolist() == [[0, 1, 0.25], [0.5, 0, 0], [1, 0.5, 0.5]]
    assert chosen.panels[NAMED][0].tolist() == [0, 1, 0]
    assert chosen.panels[LABELS][0].tolist() == [0, 0.5, 0.5]
    assert np.isnan(chosen.panels[LABELS][1:]).all()


def test_answers_that_were_all_labelled_are_shown_once(tmp_path):
    folder = add_vision(write_run(tmp_path / "run"))
    everything = json.loads((folder / "evaluation" / "routing.json").read_text())
    everything[0]["shares"][0]["n"] = 4
    shapes = [{"domain": domain, "n": 2, "predicted": [0, 0, 0], "labels": [0, 0, 0]} for domain in ("shapes", "round")]
    everything.append(everything[0] | {"benchmark": "shapes", "shares": shapes})
    (folder / "evaluation" / "routing.json").write_text(json.dumps(everything))
    assert list(chosen_experts(read_run(folder)).panels) == [EVALUATED, LABELS]


def test_training_is_told_by_images_of_the_last_fifth_of_the_last_stage(run):
    trained = trained_experts(run.stages)
    assert (trained.stage, trained.experts) == ("experts", tuple(EXPERTS))
    assert trained.share.rows == ("charts", "general")
    assert trained.share.panels[""].tolist() == [[0, 1, 0.25], [0, 0, 0]]
    assert list(trained.gates) == ["charts"], "nobody looked at the other source's images"
    np.testing.assert_allclose(trained.gates["charts"], [[0, 0.875, 0.125], [0, 0.75, 0.25]])


def test_means_of_steps_count_by_their_images(tmp_path):
    path = tmp_path / "stages" / "a" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    few = {"s": {"images": 1, "enriched": 1, "routed": {"x": 1, "y": 0}, "gates": [[1.0, 0.0]]}}
    many = {"s": {"images": 5, "enriched": 3, "routed": {"x": 0, "y": 3}, "gates": [[0.0, 1.0]]}}
    rows = [{"step": 9, "vision": few}, {"step": 10, "vision": many}, {"step": 11, "vision": {}}]
    first = {"step": 1, "vision": {"s": few["s"] | {"images": 900}}}
    path.write_text("".join(json.dumps(row) + "\n" for row in [first, *rows]))
    trained = trained_experts(read_run(tmp_path).stages)
    np.testing.assert_allclose(trained.share.panels[""], [[1 / 6, 3 / 6]])
    np.testing.assert_allclose(trained.gates["s"], [[0.25, 0.75]])


def test_scores_stand_side_by_side_by_routing_where_there_are_several(run):
    found = [(bar.group, bar.series, bar.score) for bar in routing_bars(run)]
    assert found == [
        ("charts", "named by the model", 0.75), ("charts", "no experts", 0.3), ("charts", "random experts", 0.4),
        ("charts", "sketch, sam", 0.2),
    ]  # fmt: skip


def test_costs_are_read_whole(run):
    (found,) = run.costs
    cost = VisionCost.read(found)
    assert [(tower.name, tower.pixels, tower.ms) for tower in cost.towers][1] == ("sketch", 224, 4.0)
    alone = [one for one in cost.routed if one.level == "one image"]
    assert [one.routed for one in alone] == [0, 1, 2, 3]
    assert alone[0].ratio == pytest.approx(3.5 / 12)
    assert alone[-1].ms == pytest.approx(12.0)


def test_the_page_has_the_section_and_loads_nothing(folder):
    text = write_report(folder).read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in checker.addresses)
    assert 'id="vision"' in text
    assert 'href="#vision"' in text
    assert "<td>2</td><td>12.5</td><td>62.5</td><td>–</td>" in text, "agreement"
    assert "a &lt;quick&gt; one" in text
    assert text.count("<td>12.00</td><td>100.0</td>") == 2, "both levels of the cost"
    names = {path.stem for path in (folder / "plots").glob("vision_*.png")}
    assert names == {f"vision_{name}" for name in ("chosen", "routed", "gates", "routings", "cost")}


def test_a_run_without_them_has_nothing_of_it(tmp_path):
    folder = write_run(tmp_path / "run")
    assert vision_plots(read_run(folder)) == []
    text = write_report(folder).read_text()
    assert "vision" not in text.lower()
    assert not list((folder / "plots").glob("vision*"))


def test_costs_can_be_given_and_other_files_are_refused(tmp_path):
    folder = tmp_path / "run"
    (folder / "stages" / "s").mkdir(parents=True)
    (folder / "stages" / "s" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0, "lr": [0.1]}\n')
    given = tmp_path / "elsewhere.json"
    given.write_text(json.dumps(costs()))
    assert "What experts cost" in write_report(folder, [given]).read_text()
    given.write_text(json.dumps(costs() | {"name": "mov_adapter"}))
    with pytest.raises(ValueError, match=r"elsewhere.json holds no results of `mmmoe bench vision_experts`"):
        write_report(folder, [given])
    given.write_text("{")
    with pytest.raises(ValueError, match=r"elsewhere.json is no file of `mmmoe bench vision_experts`"):
        write_report(folder, [given])
