"""What survival costs: checkpoints as a share of the steps between them, and the time from `mmmoe resume` to a step.

mmmoe bench checkpoint [config=configs/llava_mole_tiny.yaml rounds=5 resumes=3 key=value ...]

The first is measured in this process, on the run's last stage and its engine: a step, and a step with a checkpoint that
is waited for, take turns, by CPU time, so that what the writer does beside the training counts in full. How long a
checkpoint holds up a step, and how long it takes to write, are by the wall clock. For the second a run of its own,
whose earlier stages are one step long, is killed in the last stage and resumed: from the start of the process to the
line of its first step, by the wall clock.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mmmoe import dist
from mmmoe.config.load import load
from mmmoe.engine.build import build_engine
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.engine.groups import freeze
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.metrics import MetricsFile
from mmmoe.engine.protocol import Engine
from mmmoe.engine.spec import CheckpointSpec
from mmmoe.engine.step_folders import all_steps
from mmmoe.kernels.bench import parse_sizes
from mmmoe.kernels.measure import Result, compare, compare_amounts, one_thread, take_turns
from mmmoe.log import console
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.stages.bench import TARGETS, inputs_of
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec, StageSpec

CONFIG = "configs/llava_mole_tiny.yaml"
DEFAULTS = {"rounds": 5, "resumes": 3}
SHARE = 0.05
"""Of the time of the steps between two checkpoints, what a checkpoint may take."""
RESUME_S = 15.0
"""Seconds from the start of `mmmoe resume` to the end of its first step, at most."""
PATIENCE_S = 900.0
"""What a started run may take to where it is waited for."""


def bench_checkpoint(given: Sequence[str]) -> list[Result]:
    """Returns what checkpoints and a resume of a run cost.

    Args:
        given: `config=FILE`, sizes of DEFAULTS, and overrides of the configuration.

    Raises:
        ValueError: The configuration is wrong, or its last stage declares no steps between checkpoints.
    """
    files = [one.partition("=")[2] for one in given if one.startswith("config=")]
    sizes = [one for one in given if one.partition("=")[0] in DEFAULTS]
    rest = [one for one in given if one not in sizes and not one.startswith("config=")]
    config, size = Path(files[-1] if files else CONFIG), DEFAULTS | parse_sizes(sizes)
    spec = load(config, RunSpec, rest)
    if spec.stages[-1].training.checkpoint.every is None:
        raise ValueError(f"{spec.name}: its last stage has checkpoint.every null, so there is no rhythm to measure")
    with TemporaryDirectory(prefix="mmmoe-bench-") as folder:
        results = costs(spec, Path(folder) / "checkpoints", size["rounds"])
        if size["resumes"]:
            results.append(resumes(spec, config, rest, Path(folder) / "runs", size["resumes"]))
    return results


def costs(spec: RunSpec, folder: Path, rounds: int) -> list[Result]:
    """Returns what a checkpoint of the last stage takes: of the steps between two, of a step's time, of the disk."""
    stage = spec.stages[-1]
    every = stage.training.checkpoint.every
    assert every is not None, "whoever measures has looked"
    engine, run_step = _engine(spec, stage)
    keeper = CheckpointKeeper(folder, CheckpointSpec(keep=1))
    numbers = iter(range(1, 1_000_000))
    blocked: list[float] = []
    written: list[float] = []

    def save() -> None:
        began = time.perf_counter()
        keeper.save(engine, CheckpointState(next(numbers)))
        blocked.append(time.perf_counter() - began)
        keeper.wait()
        written.append(time.perf_counter() - began)

    def step_and_save() -> None:
        run_step()
        save()

    with one_thread(dist.device()):
        times = take_turns({"a step": run_step, "a step and a checkpoint": step_and_save}, rounds, dist.device())
        began = time.perf_counter()
        run_step()
        wall = time.perf_counter() - began
    plain = statistics.median(times["a step"])
    pairs = zip(times["a step and a checkpoint"], times["a step"], strict=True)
    extra = statistics.median(with_save - without for with_save, without in pairs)
    steps = 1e3 * every * plain
    path = all_steps(folder)[-1]
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    weights = sum(tensor.numel() * tensor.element_size() for tensor in engine.tensors().values()) / 2**20
    engine.close()
    name = f"{spec.name}, {stage.name}"
    count = len(written)
    return [
        compare_amounts(
            f"{name}: {every} steps and a checkpoint", steps + 1e3 * extra, "the steps", steps, "ms", bound=1 + SHARE
        ),
        compare(f"{name}: a checkpoint holds up training", blocked, "a step, wall clock", [wall] * count),
        compare(f"{name}: a checkpoint is written", written, "a step, wall clock", [wall] * count),
        compare_amounts(f"{name}: a checkpoint on the disk", size, "trained weights in float32", weights, "MiB"),
    ]


def _engine(spec: RunSpec, stage: StageSpec) -> tuple[Engine, Callable[[], None]]:
    """Returns the stage's engine in this process, and a step of one of the run's processes."""
    training = stage.training
    model = build_model(spec.model, spec.seed)
    add_adapters(model, adapters_in(spec, stage), spec.seed)
    freeze(model, stage.trains, canonical)
    model.gradient_checkpointing(training.gradient_checkpointing)
    samples = math.ceil(training.batch / spec.engine.processes)
    rows = min(training.micro_batch, samples)
    micro_batches = math.ceil(samples / rows)
    engine = build_engine(model.to(dist.device()).train(), spec.engine, training, canonical)
    inputs = inputs_of(model, rows)
    rates = [training.optimizer.lr, *(rule.lr for rule in training.optimizer.rates)]

    def run_step() -> None:
        total = float(rows * micro_batches)
        for place in range(micro_batches):
            output = engine.forward(inputs)
            engine.backward(output.loss(TARGETS * total, total), is_last=place + 1 == micro_batches)
        engine.step(rates)

    return engine, run_step


def resumes(spec: RunSpec, config: Path, overrides: Sequence[str], runs: Path, count: int) -> Result:
    """Returns the time from `mmmoe resume` of a killed run to its first step, the median of some."""
    stage = spec.stages[-1]
    short = [
        f"stages.{one.name}.training.{field}"
        for one in spec.stages[:-1]
        for field in ("steps=1", "epochs=null", "checkpoint.every=null")
    ]
    alone = ("reuse=false", "evaluate=null", "training.checkpoint.keep_best=null")
    short += [f"stages.{one.name}.{field}" for one in spec.stages for field in alone]
    last = [f"stages.{stage.name}.training.{field}" for field in ("steps=100000", "epochs=null", "checkpoint.every=2")]
    arguments = ["run", str(config), *overrides, *short, *last, "evaluation=null", f"runs={runs}"]
    run = runs / spec.name
    console.print(f"a run of {spec.name} to be killed in stage {stage.name}", style="dim")
    steps = run / "stages" / stage.name / "checkpoints"
    _until(arguments, lambda: bool(all_steps(steps)))
    seconds = [_until(["resume", str(run)], _first_step(run, stage.name)) for _ in range(count)]
    result = compare(
        f"{spec.name}: resume to the first step of {stage.name}, wall clock",
        seconds,
        f"the {RESUME_S:.0f} s it may take",
        [RESUME_S] * count,
        bound=1.0,
    )
    return replace(result, sizes={"processes": spec.engine.processes})


def _first_step(run: Path, stage: str) -> Callable[[], bool]:
    """Returns what says whether a resumed stage has done a step since now."""
    folder = RunFolder(run)
    before = len(folder.events())

    def is_done() -> bool:
        started = [event for event in folder.events()[before:] if event["event"] == "stage_started"]
        if not started:
            return False
        rows = MetricsFile(run / "stages" / stage / "metrics.jsonl").read()
        return bool(rows) and int(rows[-1]["step"]) > int(started[-1]["step"])

    return is_done


def _until(arguments: Sequence[str], is_there: Callable[[], bool]) -> float:
    """Starts the command line and kills it, and all that it started, when something is there; returns the seconds.

    Raises:
        ValueError: It ended before, or took too long; what it said is told.
    """
    with TemporaryDirectory(prefix="mmmoe-bench-") as folder, (Path(folder) / "log").open("w+b") as log:
        began = time.perf_counter()
        command = [sys.executable, "-m", "mmmoe.cli", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while not is_there():
                if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    raise ValueError(f"the run to be measured did not get far enough; it said:\n{said}")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            # Its own session; the processes that it started ask the kernel to die with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
