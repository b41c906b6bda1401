"""The loop: what it tells, when it stops, what it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from engine_toy import Recorder, ToyBatch, ToyOutput, ToySource, on_processes, toy_engine, toy_training

from mmmoe import dist, env
from mmmoe.engine.deepspeed_config import deepspeed_config
from mmmoe.engine.loop import fit
from mmmoe.engine.outputs import join, split
from mmmoe.engine.spec import EngineSpec
from mmmoe.engine.stop import StopRequest


def test_observer_sees_every_step_and_batch() -> None:
    training, observer = toy_training(micro_batch=4), Recorder(save_at=(2,))
    engine = toy_engine(EngineSpec(kind="local"), training)
    result = fit(engine, ToySource(0, 1, 4), training, 3, 0, observer)
    assert (result.step, result.stopped) == (3, False)
    assert [record.step for record in observer.records] == [1, 2, 3]
    assert observer.batches == 6
    assert observer.saves == [2]
    record = observer.records[0]
    assert (record.samples, record.tokens) == (8, 40)
    assert record.rates == (0.02, 0.01)
    assert 0 <= record.data_seconds <= record.seconds


def test_a_signal_ends_the_run_after_the_step_at_hand() -> None:
    class Interrupting(Recorder):
        def on_step(self, record) -> None:
            super().on_step(record)
            if record.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    training, observer = toy_training(), Interrupting()
    engine = toy_engine(EngineSpec(kind="local"), training)
    before = signal.getsignal(signal.SIGTERM)
    result = fit(engine, ToySource(0, 1, 2), training, 10, 0, observer)
    assert (result.step, result.stopped) == (2, True)
    assert observer.saves == [2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_trigger_file_ends_the_run(tmp_path: Path) -> None:
    training, observer = toy_training(), Recorder()
    engine = toy_engine(EngineSpec(kind="local"), training)
    (tmp_path / "stop").touch()
    stop = StopRequest(tmp_path / "stop")
    assert fit(engine, ToySource(0, 1, 2), training, 10, 0, observer, stop=stop).step == 0


class Poisoned(ToySource):
    """Its first sample of the second step is not a number."""

    def step(self, step: int) -> list[ToyBatch]:
        batches = super().step(step)
        if step == 1 and self.rank == 0:
            batches[0].pixels_BD[0, 0] = float("nan")
        return batches


def stop_together() -> list[object]:
    """One process is asked to stop, then one meets a bad loss; returns what each of them did."""
    training = toy_training()
    engine = toy_engine(EngineSpec(kind="local"), training)
    stop = StopRequest()
    if env.rank() == 1:
        stop.request()
    source = ToySource(env.rank(), 2, 2)
    result = fit(engine, source, training, 3, 0, Recorder(), stop=stop)
    try:
        fit(engine, Poisoned(env.rank(), 2, 2), training, 3, 0, Recorder())
    except FloatingPointError:
        return dist.gather_objects((result.step, result.stopped, "raised"))
    return dist.gather_objects((result.step, result.stopped, "went on"))


def test_all_processes_stop_together(tmp_path: Path) -> None:
    assert on_processes(2, tmp_path, stop_together) == [(0, True, "raised")] * 2


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_samples() -> None:
    training = toy_training()
    engine = toy_engine(EngineSpec(kind="local"), training)
    observer = Recorder()
    with pytest.raises(FloatingPointError, match=r"loss is not finite at step 2 .*sample1_0, sample1_1"):
        fit(engine, Poisoned(0, 1, 2), training, 3, 0, observer)
    assert len(observer.records) == 1
    assert all(torch.isfinite(tensor).all() for tensor in engine.tensors().values())


def test_outputs_are_taken_apart_and_put_together() -> None:
    weight = torch.ones(2, requires_grad=True)
    output = ToyOutput(weight * 2, torch.tensor([1, 2]), {"balance": weight * 3, "plain": torch.zeros(1)})
    tensors: list[torch.Tensor] = []
    form = split([output, ("x", None)], tensors)
    assert [tensor.tolist() for tensor in tensors] == [[2.0, 2.0], [3.0, 3.0]]
    again, rest = join(form, tuple(tensor + 1 for tensor in tensors))
    assert again.nll_B.tolist() == [3.0, 3.0]
    assert again.auxiliary["balance"].tolist() == [4.0, 4.0]
    assert again.num_targets_B is output.num_targets_B
    assert rest == ("x", None)


def test_deepspeed_keys_are_merged_or_refused() -> None:
    training = toy_training(micro_batch=2)
    extra = {"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 4096}, "wall_clock_breakdown": True}
    config = deepspeed_config(EngineSpec(zero=2, deepspeed=extra), training, 2, 5000)
    assert config["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 4096,
        "allgather_bucket_size": 5120,
        "overlap_comm": False,
    }
    assert config["gradient_accumulation_steps"] == 2
    assert config["wall_clock_breakdown"] is True
    with pytest.raises(ValueError, match=r"sets 'zero_optimization\.stage' to 3"):
        deepspeed_config(EngineSpec(deepspeed={"zero_optimization": {"stage": 3}}), training, 1, 10)
