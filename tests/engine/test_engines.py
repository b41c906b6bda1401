"""Both engines, every ZeRO stage: the same training, whatever the number of processes, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import TRAINS, Toy, ToySource, on_processes, toy_engine, toy_fit, toy_training

from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.engine.groups import freeze, rates, trainable_parameters
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.spec import CheckpointSpec, EngineSpec

CUT_UP = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
KINDS = [("local", 0), *(("deepspeed", zero) for zero in range(4))]


def engine_spec(kind: str, zero: int, precision: str = "fp32") -> EngineSpec:
    extra = CUT_UP if kind == "deepspeed" and zero == 3 else {}
    return EngineSpec.model_validate({"kind": kind, "zero": zero, "precision": precision, "deepspeed": extra})


def train(cases: list[tuple[str, int, str]], micro_batch: int) -> dict[Any, Any]:
    """Trains 6 steps without dropout; returns losses, norms and final state by case."""
    results = {}
    for case in cases:
        training = toy_training(micro_batch)
        engine = toy_engine(engine_spec(*case), training)
        records = toy_fit(engine, training, 0, 6)
        results[case] = (
            [record.loss for record in records],
            [record.grad_norm for record in records],
            engine.tensors(),
            engine.optimizer_tensors(),
        )
        engine.close()
    return results


def resume(cases: list[tuple[str, int, str]], folder: Path) -> dict[Any, Any]:
    """Trains 6 steps in one go and in 3 + 3 with a checkpoint on disk and a new engine between; dropout is on."""
    results = {}
    for case in cases:
        place = folder / "_".join(map(str, case))
        training = toy_training(2)
        spec = engine_spec(*case)
        whole = toy_engine(spec, training, dropout=0.3)
        losses = [record.loss for record in toy_fit(whole, training, 0, 6)]
        first = toy_engine(spec, training, dropout=0.3)
        halves = [record.loss for record in toy_fit(first, training, 0, 3)]
        save(first, place, 3)
        second = toy_engine(spec, training, dropout=0.3)
        held = CheckpointKeeper(place, CheckpointSpec()).resume(second)
        assert held is not None
        assert held.state.step == 3
        assert_equal(second.tensors(), held.tensors)
        assert_equal(second.optimizer_tensors(), held.moments)
        halves += [record.loss for record in toy_fit(second, training, 3, 6)]
        results[case] = (losses, halves, whole.tensors(), second.tensors())
        assert_equal(whole.optimizer_tensors(), second.optimizer_tensors())
        save(whole, place, 6)
        for engine in (whole, first, second):
            engine.close()
    return results


def save(engine: Any, place: Path, step: int) -> None:
    CheckpointKeeper(place, CheckpointSpec(), in_background=False).save(engine, CheckpointState(step))


def carry_on(cases: list[tuple[str, int, str]], folder: Path) -> dict[Any, Any]:
    """Continues each case's checkpoint after 3 steps, without dropout, on whatever processes there are."""
    results = {}
    for case in cases:
        training = toy_training(2)
        held = checkpoint.read(folder / "_".join(map(str, case)) / "step_000003")
        engine = toy_engine(engine_spec(*case), training)
        engine.load(held.tensors, held.moments, 3)
        results[case] = [record.loss for record in toy_fit(engine, training, 3, 6)]
        engine.close()
    return results


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def reference(micro_batch: int = 8) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """A loop in the open: one process, the whole batch, torch alone."""
    training = toy_training(micro_batch)
    torch.manual_seed(3)
    model = Toy()
    freeze(model, TRAINS)
    named = dict(trainable_parameters(model))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0, "head": n.startswith("head.")}
            for n, p in named.items()
        ],
        lr=0.0,
    )
    losses, norms = [], []
    for step in range(6):
        batch = ToySource(0, 1, 8).step(step)[0]
        loss = model(**batch.inputs()).loss(batch.num_targets, 8)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), 0.5)))
        default, head = rates(training.schedule, training.optimizer, step, 10)
        for group in optimizer.param_groups:
            group["lr"] = head if group["head"] else default
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms, {name: parameter.detach() for name, parameter in named.items()}


def check_against_reference(results: dict[Any, Any]) -> None:
    losses, norms, tensors = reference()
    for case, (found_losses, found_norms, found_tensors, moments) in results.items():
        assert found_losses == pytest.approx(losses, rel=1e-5), case
        assert found_norms == pytest.approx(norms, rel=1e-4), case
        for name, tensor in tensors.items():
            torch.testing.assert_close(found_tensors[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{case} {name}")
        assert {name.split(".", 1)[1] for name in moments} == set(tensors)


def test_the_plain_loop_learns() -> None:
    """Guards the other comparisons: on one and the same batch, the trained weights do better than the first."""
    losses, _, tensors = reference()
    torch.manual_seed(3)
    model = Toy()
    model.load_state_dict(tensors, strict=False)
    batch = ToySource(0, 1, 8).step(0)[0]
    assert float(model(**batch.inputs()).loss(batch.num_targets, 8).detach()) < losses[0]


def test_two_processes_train_as_the_plain_loop(tmp_path: Path) -> None:
    cases = [("local", 0, "fp32"), ("deepspeed", 1, "fp32")]
    check_against_reference(on_processes(2, tmp_path, train, cases, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (2, 2)])
def test_every_engine_trains_as_the_plain_loop(world: int, micro_batch: int, tmp_path: Path) -> None:
    cases = [(kind, zero, "fp32") for kind, zero in KINDS]
    check_against_reference(on_processes(world, tmp_path, train, cases, micro_batch))


@pytest.mark.slow
def test_bf16_follows_float32(tmp_path: Path) -> None:
    losses, _, _ = reference()
    cases = [(kind, zero, "bf16") for kind, zero in KINDS]
    results = on_processes(2, tmp_path, train, cases, 2)
    for case in cases:
        assert results[case][0] == pytest.approx(losses, rel=0.02), case
        # Masters have more digits than bf16: a rounded copy differs.
        head = results[case][2]["head.weight"]
        assert not torch.equal(head, head.bfloat16().float()), case


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("resumed")
    cases = [(kind, zero, precision) for precision in ("fp32", "bf16") for kind, zero in KINDS]
    return folder, on_processes(2, folder, resume, cases, folder)


@pytest.mark.slow
def test_resume_is_exact_to_the_bit(resumed: tuple[Path, dict[Any, Any]]) -> None:
    for case, (losses, halves, whole, second) in resumed[1].items():
        assert losses == halves, case
        assert_equal(whole, second)


@pytest.mark.slow
def test_resume_on_another_number_of_processes(resumed: tuple[Path, dict[Any, Any]], tmp_path: Path) -> None:
    cases = [(kind, zero, "fp32") for kind, zero in KINDS]
    on_two = on_processes(2, tmp_path, carry_on, cases, resumed[0])
    on_one = on_processes(1, tmp_path, carry_on, cases, resumed[0])
    for case in cases:
        assert on_one[case] == pytest.approx(on_two[case], rel=1e-5), case


def test_only_what_the_patterns_name_moves(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = {name: tensor.clone() for name, tensor in Toy().state_dict().items()}
    training = toy_training()
    engine = toy_engine(EngineSpec(kind="local"), training)
    toy_fit(engine, training, 0, 3)
    moved = {name for name, tensor in engine.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(engine.tensors())
    assert "tokens.weight" not in moved
    assert "blocks.0.base.weight" not in moved


def test_a_checkpoint_of_another_model_is_refused() -> None:
    engine = toy_engine(EngineSpec(kind="local"), toy_training())
    tensors = engine.tensors()
    tensors["stranger"] = tensors.pop("marks")
    tensors["head.bias"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"1 missing: marks; 1 unused: stranger; 1 of another shape: head\.bias"):
        engine.load(tensors, {}, 0)
