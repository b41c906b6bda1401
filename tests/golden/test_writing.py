"""Edit distance, closeness and contained answers against TextHarmony's own scorers."""

from __future__ import annotations

import pytest

from mmmoe.evaluation.writing import closeness, contains, edit_distance, filtered, is_same


@pytest.mark.golden("metrics/edit_distance")
def test_edit_distance(case, lines):
    for row in lines:
        prediction, (reference,) = row["prediction"], row["references"]
        assert filtered(prediction) == row["filtered_prediction"]
        assert filtered(reference) == row["filtered_reference"]
        assert edit_distance(prediction, reference) == row["raw_edit_distance"]
        assert closeness(prediction, reference) == pytest.approx(row["textharmony_ned"], abs=1e-9)
        assert is_same(prediction, reference) == (row["filtered_prediction"] == row["filtered_reference"])
    mean = sum(closeness(row["prediction"], row["references"][0]) for row in lines) / len(lines)
    assert mean == pytest.approx(case.meta["aggregate"]["textharmony_ned"], abs=1e-9)


@pytest.mark.golden("metrics/textharmony_containment")
def test_contained_answers(case, lines):
    found = [float(contains(row["prediction"], row["references"])) for row in lines]
    assert found == [row["textharmony"] for row in lines]
    assert sum(found) / len(found) == pytest.approx(case.meta["aggregate"]["textharmony"], abs=1e-9)
