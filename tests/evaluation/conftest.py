"""Benchmark files on demand, and this folder's own modules importable (also by the processes a test starts)."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def benchmark_file(tmp_path):
    """Writes a benchmark of dictionaries, each `shade` becoming a picture of one byte."""

    def write(rows, name="questions.jsonl"):
        folder = tmp_path / "benchmark"
        folder.mkdir(exist_ok=True)
        lines = []
        for row in rows:
            row = dict(row)
            shade = row.pop("shade", None)
            if shade is not None:
                row["image"] = f"{shade}.png"
                (folder / row["image"]).write_bytes(bytes([shade]))
            lines.append(json.dumps(row))
        (folder / name).write_text("\n".join(lines) + "\n")
        return folder / name

    return write
