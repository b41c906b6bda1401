import json

import pytest
from synthetic_run import write_run

from mmmoe.report.files import StageLog, read_run


def test_stages_come_in_declared_order(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert [stage.name for stage in run.stages] == ["words", "align", "experts"]
    assert run.name == "llava_mole_synthetic"
    assert len(run.scores) == 6
    assert len(run.answers["trained", "shapes"]) == 40


def test_series_skip_rows_without_the_number(tmp_path):
    folder = tmp_path / "stages" / "s"
    folder.mkdir(parents=True)
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2},
        {"step": 3, "loss": 1.0, "losses": {"a": 1.0}, "balance": [0.5, 0.7]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = read_run(tmp_path).stages[0]
    assert stage.series("loss") == ([1, 3], [2.0, 1.0])
    assert stage.series_of("losses") == {"a": ([3], [1.0])}
    assert stage.series_of("balance") == {"layer 0": ([3], [0.5]), "layer 1": ([3], [0.7])}


def test_lists_by_layer_take_the_numbers_of_the_layers_that_are_routed():
    load = {"a": {"text": {"16": [1, 1], "9": [2, 0]}}}
    row = {"step": 1, "load": load, "balance": [1.0, 1.5], "entropy": [0.5, None], "balance_2": [1.0]}
    stage = StageLog("s", (row,))
    assert stage.series_of("balance") == {"layer 9": ([1], [1.0]), "layer 16": ([1], [1.5])}
    assert stage.series_of("entropy") == {"layer 9": ([1], [0.5])}
    assert stage.series_of("balance_2") == {"row 0": ([1], [1.0])}, "which layers they are is not told"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        read_run(tmp_path / "none")
    with pytest.raises(ValueError, match="nothing to report yet"):
        read_run(tmp_path)


def test_names_in_the_scores_cannot_lead_out_of_the_folder(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "secret.jsonl").write_text('{"question": "secret"}\n')
    row = json.loads((run / "evaluation" / "scores.json").read_text())[0]
    row.update(variant="..", benchmark="../secret")
    (run / "evaluation" / "scores.json").write_text(json.dumps([row]))
    assert read_run(run).answers == {("..", "../secret"): ()}
