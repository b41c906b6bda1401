"""Edit distance, closeness and contained answers against TextHarmony's own scorers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmmoe.evaluation.writing import closeness, contains, edit_distance, filtered, is_same


def lines(request, case):
    folder = Path(request.config.getoption("--golden") or Path(__file__).parent)
    return [json.loads(line) for line in (folder / f"{case.name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.golden("metrics/edit_distance")
def test_edit_distance(case, request):
    rows = lines(request, case)
    for row in rows:
        prediction, (reference,) = row["prediction"], row["references"]
        assert filtered(prediction) == row["filtered_prediction"]
        assert filtered(reference) == row["filtered_reference"]
        assert edit_distance(prediction, reference) == row["raw_edit_distance"]
        assert closeness(prediction, reference) == pytest.approx(row["textharmony_ned"], abs=1e-9)
        assert is_same(prediction, reference) == (row["filtered_prediction"] == row["filtered_reference"])
    mean = sum(closeness(row["prediction"], row["references"][0]) for row in rows) / len(rows)
    assert mean == pytest.approx(case.meta["aggregate"]["textharmony_ned"], abs=1e-9)


@pytest.mark.golden("metrics/textharmony_containment")
def test_contained_answers(case, request):
    rows = lines(request, case)
    found = [float(contains(row["prediction"], row["references"])) for row in rows]
    assert found == [row["textharmony"] for row in rows]
    assert sum(found) / len(found) == pytest.approx(case.meta["aggregate"]["textharmony"], abs=1e-9)
