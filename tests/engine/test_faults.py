"""Steps that must not count: what they are, that they change nothing, and that a resumed stage skips the same ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import BATCH, TRAINS, Recorder, Toy, ToyBatch, ToySource, on_processes, toy_engine, toy_training
from moe_toy import MoEToy, moe_engine, moe_spec
from test_engines import KINDS, assert_equal, engine_spec

from mmmoe import dist, env
from mmmoe.config.load import load
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.engine.faults import Fault, FaultRule, History
from mmmoe.engine.groups import freeze, rates, trainable_parameters
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.loop import fit
from mmmoe.engine.memory import MemoryFullError
from mmmoe.engine.spec import CheckpointSpec, EngineSpec, FaultsSpec, TrainingSpec
from mmmoe.engine.stop import StopRequest
from mmmoe.paths import project_root
from mmmoe.stages.spec import RunSpec, StageSpec

NAN_AT, LEAP_AT, NORM_AT, STEPS = 1, 4, 5, 8
"""Steps, counted from 0, whose loss is no number, leaps, or whose gradients alone are no numbers."""
LEAP, BLOW = 2.0**10, 2.0**20
"""Pixels that bfloat16 holds as they are."""
KEY = "stages.mole.training"
SKIPS = FaultsSpec(nonfinite="skip", spike=3.0, window=2, budget=3)


class Blown(torch.autograd.Function):
    """Hands numbers on and lets gradients overflow."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.inf


class Spoiled:
    """A pixel of LEAP multiplies the first sample's loss, one of BLOW spoils its gradient, NaN its loss."""

    def forward(self, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, pixels_BD: torch.Tensor) -> Any:
        mark = float(pixels_BD[0, 0])
        clean = pixels_BD.clone()
        clean[0, 0] = 0.5 if abs(mark) > 100 else mark
        output = super().forward(input_ids_BT, labels_BT, clean)  # type: ignore[misc]
        nll_B = output.nll_B * 1e3 if mark == LEAP else output.nll_B
        return type(output)(Blown.apply(nll_B) if mark == BLOW else nll_B, output.num_targets_B, output.auxiliary)


class Faulty(Spoiled, Toy):
    """Both engines' toy."""


class FaultyMoE(Spoiled, MoEToy):
    """The toy whose experts may be spread over processes; a NaN goes through its routers."""

    def forward(self, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, pixels_BD: torch.Tensor) -> Any:
        factor = math.nan if math.isnan(pixels_BD[0, 0]) else 1.0
        hook = self.tokens.register_forward_hook(lambda module, inputs, output: output * factor)
        try:
            return super().forward(input_ids_BT, labels_BT, pixels_BD)
        finally:
            hook.remove()


class Faults(ToySource):
    """Marks the first sample of the last process's last micro-batch at three steps."""

    def step(self, step: int) -> list[ToyBatch]:
        batches = super().step(step)
        mark = {NAN_AT: math.nan, LEAP_AT: LEAP, NORM_AT: BLOW}.get(step)
        if mark is not None and self.rank == self.world - 1:
            batches[-1].pixels_BD[0, 0] = mark
        return batches


def faulty_engine(spec: EngineSpec, training: TrainingSpec) -> Any:
    return toy_engine(spec, training, kind=Faulty)


def engine_that_skips(*case: Any) -> Any:
    return faulty_engine(engine_spec(*case), training_that_skips())


def training_that_skips(micro_batch: int = 2, faults: FaultsSpec = SKIPS) -> TrainingSpec:
    return toy_training(micro_batch).model_copy(update={"faults": faults})


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """Returns the records as a stage's file has them."""
    lines = [
        {"step": one.step, "loss": one.loss if math.isfinite(one.loss) else None}
        | ({"skipped": one.skipped} if one.skipped else {})
        for one in records
    ]
    return [json.loads(json.dumps(line)) for line in lines]


class Watching(Recorder):
    """Keeps the state after each step."""

    def __init__(self, engine: Any, end: int) -> None:
        super().__init__()
        self.engine, self.end, self.stop = engine, end, StopRequest()
        self.states = [self.state()]

    def state(self) -> tuple[Any, Any, Any, int]:
        own = {name: p.detach().clone() for name, p in self.engine.module.named_parameters()}
        return self.engine.tensors(), self.engine.optimizer_tensors(), own, self.engine.updates

    def on_step(self, record: Any) -> None:
        super().on_step(record)
        self.states.append(self.state())
        if record.step == self.end:
            self.stop.request()


def run(engine: Any, training: TrainingSpec, start: int, end: int, rule: FaultRule) -> Watching:
    watch = Watching(engine, end)
    source = Faults(env.rank(), env.world_size(), training.micro_batch)
    fit(engine, source, training, STEPS, start, watch, stop=watch.stop, faults=rule)
    return watch


def faulty_moe_engine(kind: str, zero: int, ep_size: int) -> Any:
    spec = EngineSpec.model_validate({"kind": kind, "zero": zero, "ep_size": ep_size, "precision": "fp32"})
    return moe_engine(spec, moe_spec(), kind=FaultyMoE)[0]


def skip_and_resume(cases: list[tuple[Any, ...]], folder: Path, build: Any = engine_that_skips) -> dict[Any, Any]:
    """Trains in one go and with a new engine after step 5, between a skipped step and the next one to skip."""
    results = {}
    for case in cases:
        training = training_that_skips()
        engine = build(*case)
        whole = run(engine, training, 0, STEPS, FaultRule(SKIPS))
        for step in range(1, STEPS + 1):
            tensors, moments, own, updates = whole.states[step - 1]
            is_kept = whole.records[step - 1].skipped is not None
            if is_kept:
                assert_equal(tensors, whole.states[step][0])
                assert_equal(moments, whole.states[step][1])
                assert_equal(own, whole.states[step][2])
            else:
                assert not torch.equal(tensors["head.weight"], whole.states[step][0]["head.weight"])
            assert whole.states[step][3] - updates == (not is_kept)
        engine.close()
        place = folder / "_".join(map(str, case))
        first = build(*case)
        before = run(first, training, 0, 5, FaultRule(SKIPS))
        CheckpointKeeper(place, CheckpointSpec(), in_background=False).save(first, CheckpointState(5))
        first.close()
        second = build(*case)
        held = CheckpointKeeper(place, CheckpointSpec()).resume(second)
        assert held is not None
        rows = rows_of(before.records) if env.rank() == 0 else None
        after = run(second, training, 5, STEPS, FaultRule(SKIPS, History.of(rows, SKIPS)))
        for one, other in zip(whole.states[-1][:3], after.states[-1][:3], strict=True):
            assert_equal(one, other)
        assert whole.states[-1][3] == after.states[-1][3] == STEPS - 3
        second.close()
        results[case] = (
            dist.gather_objects([record.skipped for record in whole.records]),
            [record.loss for record in whole.records],
            [record.loss for record in (*before.records, *after.records)],
            whole.states[-1][0],
        )
    return results


def reference() -> tuple[list[float], dict[str, torch.Tensor]]:
    """A loop in the open that leaves the three steps out."""
    training = toy_training(BATCH)
    torch.manual_seed(3)
    model = Faulty()
    freeze(model, TRAINS)
    named = dict(trainable_parameters(model))
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0, "name": n} for n, p in named.items()]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    losses = []
    for step in range(STEPS):
        batch = ToySource(0, 1, BATCH).step(step)[0]
        loss = model(**batch.inputs()).loss(batch.num_targets, BATCH)
        losses.append(float(loss.detach()))
        if step in (NAN_AT, LEAP_AT, NORM_AT):
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        default, head = rates(training.schedule, training.optimizer, step, STEPS)
        for group in optimizer.param_groups:
            group["lr"] = head if group["name"].startswith("head.") else default
        optimizer.step()
        optimizer.zero_grad()
    return losses, {name: parameter.detach() for name, parameter in named.items()}


def check(results: dict[Any, Any], tolerance: float) -> None:
    losses, tensors = reference()
    for case, (told, whole, halves, found) in results.items():
        assert all(one == told[0] for one in told), case
        skipped = {step: text for step, text in enumerate(told[0]) if text}
        assert skipped.keys() == {NAN_AT, LEAP_AT, NORM_AT}, case
        assert skipped[NAN_AT] == "loss is not finite"
        assert "times the median of the last 2" in skipped[LEAP_AT]
        assert skipped[NORM_AT] == "gradient norm is not finite"
        assert [str(loss) for loss in whole] == [str(loss) for loss in halves], case
        for step in set(range(STEPS)) - skipped.keys():
            assert whole[step] == pytest.approx(losses[step], rel=tolerance), (case, step)
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=10 * tolerance, atol=tolerance, msg=f"{case} {name}")


def test_a_skipped_step_changes_nothing_and_is_skipped_again_after_a_resume(tmp_path: Path) -> None:
    check(skip_and_resume([("local", 0, "fp32")], tmp_path), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_engine_skips_alike(precision: str, tmp_path: Path) -> None:
    cases = [(kind, zero, precision) for kind, zero in KINDS]
    check(on_processes(2, tmp_path, skip_and_resume, cases, tmp_path), 1e-5 if precision == "fp32" else 0.02)


def test_experts_spread_over_processes_skip_as_one_process_does(tmp_path: Path) -> None:
    (want,) = skip_and_resume([("local", 0, 1)], tmp_path / "one", faulty_moe_engine).values()
    cases = [("local", 0, 2), ("deepspeed", 1, 2), ("deepspeed", 2, 2)]
    for told, whole, halves, tensors in on_processes(
        2, tmp_path, skip_and_resume, cases, tmp_path / "two", faulty_moe_engine
    ).values():
        assert [bool(text) for text in told[0]] == [step in (NAN_AT, LEAP_AT, NORM_AT) for step in range(STEPS)]
        assert told[0] == told[1]
        assert [str(loss) for loss in whole] == [str(loss) for loss in halves]
        assert whole == pytest.approx(want[1], rel=1e-6, nan_ok=True)
        for name, tensor in want[3].items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-6, msg=name)


def fit_with(training: TrainingSpec, source: ToySource, steps: int, rule: FaultRule | None = None) -> Recorder:
    observer = Recorder()
    fit(faulty_engine(EngineSpec(kind="local"), training), source, training, steps, 0, observer, faults=rule)
    return observer


def test_without_a_rule_a_bad_loss_stops_the_stage() -> None:
    with pytest.raises(
        FloatingPointError, match=r"loss is not finite at step 2 .*set\s+training\.faults\.nonfinite=skip"
    ):
        fit_with(toy_training(), Faults(0, 1, 2), STEPS)


def test_one_fault_more_than_the_budget_stops_the_stage_and_names_samples() -> None:
    training = training_that_skips(faults=SKIPS.model_copy(update={"budget": 1}))
    with pytest.raises(FloatingPointError, match=r"^loss .* at step 5, and 1 steps were skipped .*sample4_0") as told:
        fit_with(training, Faults(0, 1, 2), STEPS)
    assert "raise the budget" in str(told.value)


def test_skips_before_a_resume_count_against_the_budget() -> None:
    rule = FaultRule(SKIPS, History.of([{"step": n, "loss": None, "skipped": "x"} for n in range(3)], SKIPS))
    with pytest.raises(FloatingPointError, match="at step 2, and 3 steps were skipped before"):
        fit_with(training_that_skips(), Faults(0, 1, 2), STEPS, rule)


def test_a_spike_is_judged_by_accepted_losses_alone_and_not_before_the_window_is_full() -> None:
    rule = FaultRule(FaultsSpec(spike=2.0, window=3), History((1.0,)))
    assert rule.of_loss(100.0) is None
    for loss in (3.0, 2.0):
        rule.accept(loss)
    assert rule.of_loss(4.0) is None
    fault = rule.of_loss(4.1)
    assert fault is not None
    assert fault.text == "loss 4.1 is 2.05 times the median of the last 3, 2"
    assert rule.of_loss(100.0) is not None
    for loss in (9.0, 8.0):
        rule.accept(loss)
    assert rule.of_loss(15.0) is None


def test_history_is_that_of_the_lines() -> None:
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": None, "skipped": "x"},
        {"step": 3, "loss": 9.0, "skipped": "y"},
    ]
    rows += [{"step": 4, "loss": 0.1 + 0.2}, {"step": 5, "loss": 2.0}]
    assert History.of(rows, FaultsSpec(window=2)) == History((0.1 + 0.2, 2.0), 2)


class Hungry(Toy):
    def forward(self, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, pixels_BD: torch.Tensor) -> Any:
        torch.empty(2**60)
        raise AssertionError("no machine has so much")


def test_a_step_that_does_not_fit_into_memory_says_where_it_was_and_what_to_do() -> None:
    training = toy_training(micro_batch=4)
    engine = toy_engine(EngineSpec(kind="local"), training, kind=Hungry)
    with pytest.raises(MemoryFullError) as told:
        fit(engine, ToySource(0, 1, 4), training, 3, 0, Recorder(), title="stage mole", key=KEY)
    for part in ("out of memory in stage mole, step 1, micro_batch 4", "`mmmoe plan`"):
        assert part in str(told.value)
    training = stage_with(re.findall(r"stages\S+=\S+", str(told.value))).training
    assert (training.micro_batch, training.gradient_checkpointing) == (2, True)


def test_the_keys_that_messages_name_are_those_of_the_run() -> None:
    said = ""
    for spec in (FaultsSpec(), SKIPS.model_copy(update={"budget": 0})):
        rule = FaultRule(spec, key=KEY)
        with pytest.raises(FloatingPointError) as told:
            rule.skip(Fault("loss is not finite"), 3, [])
        said += f"{told.value} "
    keys = {key.rstrip(",") for key in re.findall(r"stages\.[\w.]+", said)}
    assert {key.removeprefix(f"{KEY}.") for key in keys} == {
        "optimizer.lr",
        "optimizer.clip",
        "faults.nonfinite",
        "faults.budget",
    }
    assert not re.search(r"(?<!mole\.)training\.", said)
    values = {f"{KEY}.faults.nonfinite": "skip"}
    faults = stage_with([f"{key}={values.get(key, 1)}" for key in keys]).training.faults
    assert (faults.nonfinite, faults.budget) == ("skip", 1)


def stage_with(overrides: list[str]) -> StageSpec:
    run = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, overrides)
    return next(stage for stage in run.stages if stage.name == "mole")
