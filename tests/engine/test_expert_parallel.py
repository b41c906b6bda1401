"""Experts spread over processes: the same training as in one process, and states that fit any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import on_processes
from moe_toy import EXPERTS, moe_engine, moe_fit, moe_spec

from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.spec import CheckpointSpec, EngineSpec

STEPS = 4


def engine_spec(kind: str, zero: int, ep_size: int, precision: str = "fp32") -> EngineSpec:
    return EngineSpec.model_validate({"kind": kind, "zero": zero, "ep_size": ep_size, "precision": precision})


def train(cases: list[tuple[Any, ...]], fields: dict[str, Any]) -> dict[Any, Any]:
    """Losses, norms, trained tensors and moments after some steps, by case."""
    results = {}
    for case in cases:
        engine, _ = moe_engine(engine_spec(*case), moe_spec(**fields))
        losses, norms = moe_fit(engine, 0, STEPS)
        results[case] = (losses, norms, engine.tensors(), engine.optimizer_tensors())
        engine.close()
    return results


def assert_alike(got: tuple[Any, ...], want: tuple[Any, ...]) -> None:
    """Losses, tensors and moments (so gradients) within 1e-6; norms, which are some tens, within that of themselves."""
    assert got[0] == pytest.approx(want[0], abs=1e-6, rel=0)
    assert got[1] == pytest.approx(want[1], abs=0, rel=1e-6)
    for ours, theirs in zip(got[2:], want[2:], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("move", ["tokens", "weights", "auto"])
def test_four_processes_train_as_one_whatever_the_group(tmp_path: Path, move: str) -> None:
    want = train([("local", 0, 1)], {"move": move})[("local", 0, 1)]
    assert want[2]["language.layers.0.mlp.experts.gate_proj.lora.a_ERI"].shape[0] == EXPERTS
    cases = [("local", 0, size) for size in (1, 2, 4)]
    if move == "tokens":
        cases += [("deepspeed", zero, size) for zero in (0, 1, 2) for size in (1, 2, 4)]
    for got in on_processes(4, tmp_path, train, cases, {"move": move}).values():
        assert_alike(got, want)


def test_in_bf16_deepspeed_trains_as_plain_torch_does(tmp_path: Path) -> None:
    cases = [("local", 0, 2, "bf16"), ("deepspeed", 1, 2, "bf16"), ("deepspeed", 2, 2, "bf16")]
    plain, *others = on_processes(2, tmp_path, train, cases, {}).values()
    for found in others:
        assert found[0] == pytest.approx(plain[0], rel=1e-4)
        assert found[1] == pytest.approx(plain[1], rel=1e-4)


def save_and_go_on(folder: Path) -> list[float]:
    """Two steps at ep_size 4, a checkpoint, two more."""
    engine, _ = moe_engine(engine_spec("deepspeed", 1, 4), moe_spec())
    moe_fit(engine, 0, 2)
    CheckpointKeeper(folder, CheckpointSpec(), in_background=False).save(engine, CheckpointState(2))
    losses, _ = moe_fit(engine, 2, STEPS)
    engine.close()
    return losses


def go_on(folder: Path, cases: list[tuple[Any, ...]]) -> list[list[float]]:
    """The two further steps in other layouts."""
    held, curves = checkpoint.read(folder / "step_000002"), []
    for case in cases:
        engine, _ = moe_engine(engine_spec(*case), moe_spec())
        engine.load(held.tensors, held.moments, 2)
        for name, tensor in engine.tensors().items():
            assert torch.equal(tensor, held.tensors[name]), name
        for name, tensor in engine.optimizer_tensors().items():
            assert torch.equal(tensor, held.moments[name]), name
        curves.append(moe_fit(engine, 2, STEPS)[0])
        engine.close()
    return curves


def test_a_state_saved_at_ep_size_4_goes_on_in_any_layout(tmp_path: Path) -> None:
    want = on_processes(4, tmp_path, save_and_go_on, tmp_path)
    layouts = {2: [("deepspeed", 1, 2), ("local", 0, 2)], 1: [("local", 0, 1)], 4: [("deepspeed", 2, 1)]}
    for world, cases in layouts.items():
        for curve in on_processes(world, tmp_path, go_on, tmp_path, cases):
            assert curve == pytest.approx(want, abs=1e-6, rel=0)


def test_layouts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="use zero 0, 1 or 2"):
        engine_spec("deepspeed", 3, 2)
    with pytest.raises(ValueError, match="in bf16 needs zero 1 or 2"):
        engine_spec("deepspeed", 0, 2, "bf16")
    with pytest.raises(ValueError, match="ep_size 2 must divide the number of processes, 1"):
        moe_engine(engine_spec("local", 0, 2), moe_spec())
