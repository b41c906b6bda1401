"""The record of a stage's steps."""

from __future__ import annotations

from pathlib import Path

from mmmoe.engine.metrics import MetricsFile, peak_memory_mb


def test_rows_are_appended_and_cut_back(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "stage" / "metrics.jsonl")
    assert metrics.read() == []
    for step in range(1, 6):
        metrics.append({"step": step, "loss": 1.0 / step})
    metrics.truncate_after(3)
    metrics.append({"step": 4, "loss": 9.0})
    assert [row["step"] for row in metrics.read()] == [1, 2, 3, 4]
    assert metrics.read()[-1]["loss"] == 9.0


def test_a_torn_last_line_is_left_out_and_not_glued_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2,"lo')
    assert MetricsFile(path).read() == [{"step": 1}]
    metrics = MetricsFile(path)
    metrics.append({"step": 2})
    assert path.read_text() == '{"step":1}\n{"step":2}\n'


def test_memory_is_measured() -> None:
    assert peak_memory_mb()["memory_mb"] > 50
