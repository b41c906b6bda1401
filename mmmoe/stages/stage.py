"""One stage on one screen: build, load, freeze, draw, fit, save."""

from __future__ import annotations

from collections.abc import Mapping

from mmmoe import env
from mmmoe.engine.build import build_engine
from mmmoe.engine.expert_groups import make_groups
from mmmoe.engine.faults import FaultRule, History
from mmmoe.engine.groups import freeze
from mmmoe.engine.loop import fit
from mmmoe.engine.metrics import MetricsFile
from mmmoe.engine.stop import StopRequest
from mmmoe.log import logger
from mmmoe.models.keys import canonical
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.moe.spec import MoESpec
from mmmoe.stages.coefficients import check_coefficients
from mmmoe.stages.draw import draw, total_steps
from mmmoe.stages.handover import build_stage_model
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.ledger import RunFolder, Stopped
from mmmoe.stages.live import LiveExam
from mmmoe.stages.observe import StageObserver
from mmmoe.stages.plan import print_trainable
from mmmoe.stages.saver import Origin, StageSaver
from mmmoe.stages.spec import RunSpec, StageSpec
from mmmoe.stages.watch import RouterWatch


def run_stage(
    run: RunSpec,
    stage: StageSpec,
    folder: RunFolder,
    heritage: Heritage | None,
    parts: Mapping[str, Heritage],
    stop: StopRequest,
) -> None:
    """Trains one stage from its last checkpoint, or its start, to its end, and leaves `stages/<name>/final`.

    Raises:
        Stopped: when a signal asked for the end; a checkpoint is there.
        ValueError: when something declared does not fit the model or the data.
    """
    training, steps = stage.training, total_steps(stage)
    here = folder.stage(stage.name)

    adapters = [*(heritage.adapters if heritage else []), *stage.adapters]
    experts = make_groups(run.engine) if any(isinstance(adapter, MoESpec) for adapter in adapters) else None
    place = ALONE if experts is None else ExpertPlace(experts.rank, experts.size, experts.group)
    start_model = build_stage_model(run, stage, heritage, parts, place)
    model = start_model.model
    print_trainable(stage, freeze(model, stage.trains, canonical))
    model.gradient_checkpointing(training.gradient_checkpointing)
    check_coefficients(model, stage)

    source = draw(run, stage, model, folder, parts)
    engine = build_engine(model, run.engine, training, canonical, experts)
    saver = StageSaver(Origin(run, stage, start_model, heritage, parts), engine, here, experts)
    start = saver.restore(steps)

    metrics = MetricsFile(here / "metrics.jsonl") if env.rank() == 0 else None
    if metrics is not None:
        again = metrics.truncate_after(start)
        folder.record("stage_started", stage=stage.name, step=start, steps=steps, world=env.world_size(), again=again)
        if again:
            logger().info("stage %s: %d steps are done again, from step %d", stage.name, again, start)
    rows = metrics.read() if metrics is not None else None
    watch = RouterWatch(stage.name, steps, rows or [])
    key = f"stages.{stage.name}.training"
    faults = FaultRule(training.faults, History.of(rows, training.faults), key)
    exam = None if stage.evaluate is None else LiveExam(run, stage, model, engine, here, in_step=place.size > 1)
    observer = StageObserver(metrics, stage.mixture.sources, saver, watch, place.traffic, exam)
    try:
        title = f"stage {stage.name}"
        result = fit(engine, source, training, steps, start, observer, stop=stop, faults=faults, title=title, key=key)
        if result.stopped:
            saver.wait()
            raise Stopped(stage.name, result.step)
        saver.finish(steps)
    finally:
        source.close()
        engine.close()
