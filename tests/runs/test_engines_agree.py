"""The same losses whatever carries the run: ZeRO 0 to 3 or plain torch, one process or two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from small_project import losses, start

pytestmark = pytest.mark.slow

NO_DROPOUT = [f"stages.mole.adapters.{n}.dropout=0" for n in (0, 1)]
"""Dropout draws by process, so it is the one thing that a world size changes by more than rounding."""

CASES = [("local", 0, 2), ("deepspeed", 1, 1), *(("deepspeed", zero, 2) for zero in (0, 1, 2, 3))]
"""tests/engine crosses every ZeRO stage with every world size on a model small enough for that."""


def _run(project, kind, zero, world):
    runs = Path(yaml.safe_load(project.read_text())["runs"]).with_name(f"{kind}{zero}x{world}")
    engine = [f"engine.kind={kind}", f"engine.zero={zero}", f"engine.processes={world}"]
    return runs / "small", start("run", project, f"runs={runs}", "evaluation=null", *engine, *NO_DROPOUT)


@pytest.fixture(scope="module")
def reference(project):
    """Plain torch, one process."""
    run, process = _run(project, "local", 0, 1)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    return run


@pytest.mark.parametrize(("kind", "zero", "world"), CASES)
def test_losses_agree(project, reference, kind, zero, world):
    run, process = _run(project, kind, zero, world)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    for stage in ("align", "mole"):
        found, expected = (torch.tensor(losses(r, stage)) for r in (run, reference))
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)
