"""Everything that can be known to go wrong before a weight is read, told at once."""

from __future__ import annotations

from collections.abc import Iterator

from mmmoe import env, paths
from mmmoe.data.shards import ShardSet
from mmmoe.data.template import Template, load_tokenizer
from mmmoe.engine.groups import freeze, parameter_groups, trainable_parameters
from mmmoe.evaluation.tables import files_of
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.spec import MoVASpec
from mmmoe.models.weights import weight_problems
from mmmoe.stages.assembly import problems_of_sources
from mmmoe.stages.coefficients import idle_declarations
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.heritage import Heritage, check_same_model
from mmmoe.stages.live import live_spec
from mmmoe.stages.preflight_drawing import problems_of_drawing
from mmmoe.stages.preflight_routing import problems_of_routing
from mmmoe.stages.spec import RunSpec, StageSpec


def preflight(spec: RunSpec) -> None:
    """Refuses a run that cannot work.

    Raises:
        ValueError: listing everything that is missing or does not fit together.
    """
    found = list(problems(spec))
    if found:
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise ValueError(f"{spec.name}: {count} before the start\n" + "\n".join(f"  {line}" for line in found))


def problems(spec: RunSpec) -> Iterator[str]:
    """Yields what is missing or does not fit together, in words."""
    yield from _model(spec)
    world = env.world_size() if env.is_launched() else spec.engine.processes
    seen: list[str] = []
    for stage in spec.stages:
        where = f"stages.{stage.name}"
        yield from (f"{where}.{text}" for text in _start(spec, stage, seen))
        yield from (f"{where}: {text}" for text in problems_of_sources(spec, stage, seen))
        yield from (f"{where}.{text}" for text in _length(stage, world))
        yield from (f"{where}.{text}" for text in _data(stage))
        yield from (f"{where}.evaluate: {text}" for text in _live(spec, stage))
        yield from (f"{where}.training.checkpoint.keep_best: {text}" for text in _best(spec, stage))
        seen.append(stage.name)
    yield from problems_of_routing(spec)
    yield from problems_of_drawing(spec)
    yield from _expert_parallel(spec, world)
    yield from _names_in_model(spec)
    for benchmark in spec.evaluation.benchmarks if spec.evaluation else ():
        join = None if benchmark.fields is None else benchmark.fields.join
        try:
            files_of(benchmark.file)
            files_of([] if join is None else join.file)
        except ValueError as error:
            yield f"evaluation.benchmarks.{benchmark.name}: {error}"
    if spec.engine.port is not None and not env.is_launched() and not env.is_port_free(spec.engine.port):
        yield f"engine.port: {spec.engine.port} is taken by another program; leave it out to get a free one"


def problems_of_world(spec: RunSpec, world: int) -> Iterator[str]:
    """Yields why so many processes cannot carry a run out."""
    for stage in spec.stages:
        if stage.training.batch < world:
            yield f"stages.{stage.name}.{_too_many(stage, world)}"
    if world % spec.engine.ep_size:
        yield f"engine.ep_size: {spec.engine.ep_size} must divide the number of processes, {world}"


def _too_many(stage: StageSpec, world: int) -> str:
    return f"training.batch: {stage.training.batch} samples cannot be shared by {world} processes; raise it"


def _model(spec: RunSpec) -> Iterator[str]:
    yield from (f"model.language.{text}" for text in weight_problems(spec.model.language))
    yield from _templates(spec)
    for route, part in spec.model.parts().items():
        yield from (f"model.{route}.{text}" for text in weight_problems(part))


def _templates(spec: RunSpec) -> Iterator[str]:
    """Tries every stage's template on the tokenizer."""
    try:
        tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(spec.model)))
    except ValueError as error:
        yield f"model.language.tokenizer: {error}"
        return
    for stage in spec.stages:
        try:
            Template(stage.template, tokenizer)
        except ValueError as error:
            yield f"stages.{stage.name}.template: {error}"


def _start(spec: RunSpec, stage: StageSpec, seen: list[str]) -> Iterator[str]:
    """Checks where a stage starts from."""
    start = stage.init_from
    if start is None or start in seen:
        return
    if start in [s.name for s in spec.stages]:
        yield f"init_from: {start!r} comes later in this run; put it before (the order is {', '.join(_names(spec))})"
        return
    try:
        check_same_model(Heritage.read(paths.resolve(start)), spec.model)
    except ValueError as error:
        yield f"init_from: {start!r} is no stage of this run ({', '.join(_names(spec))}) and: {error}"


def _names(spec: RunSpec) -> list[str]:
    return [stage.name for stage in spec.stages]


def _expert_parallel(spec: RunSpec, world: int) -> Iterator[str]:
    """Checks that experts can be shared out among the processes."""
    size = spec.engine.ep_size
    if size == 1:
        return
    if world % size:
        yield f"engine.ep_size: {size} must divide the number of processes, {world}"
    blocks = [adapter for stage in spec.stages for adapter in stage.adapters if isinstance(adapter, MoESpec)]
    if not blocks:
        yield f"engine.ep_size: {size} has nothing to share out: no stage adds whole experts (kind: moe)"
    if isinstance(spec.model, MoVASpec):
        yield (
            f"engine.ep_size: {size} keeps processes in step, but in mova those without an image have no routing pass; "
            "use ep_size 1"
        )
    for block in blocks:
        if len(block.experts) % size:
            yield f"engine.ep_size: {size} must divide the number of experts, {len(block.experts)}"


def _names_in_model(spec: RunSpec) -> Iterator[str]:
    """Builds each stage's model without weights and tries its adapter sites and name patterns on it."""
    for stage in spec.stages:
        try:
            model = build_model(spec.model, spec.seed, meta=True)
        except ValueError as error:
            yield f"model: {error}"
            return
        try:
            add_adapters(model, adapters_in(spec, stage), spec.seed)
            freeze(model, stage.trains, canonical)
            trainable = trainable_parameters(model, canonical)
            parameter_groups(trainable, stage.training.optimizer)
        except ValueError as error:
            yield f"stages.{stage.name}.{error}"
            continue
        yield from (f"stages.{stage.name}.{text}" for text in idle_declarations(model, stage))
        experts = [name for name, _ in trainable if name.startswith("vision_experts.")]
        if experts:
            yield f"stages.{stage.name}.trains: vision experts stay frozen; leave patterns that match {experts[0]} out"
        if stage.encode_once and all(model.tower_of(view).is_trained for view in model.views):
            yield (
                f"stages.{stage.name}.encode_once: every tower trains, so features change with every step; write "
                "encode_once: false, or leave patterns that match a tower out of trains"
            )


def _length(stage: StageSpec, world: int) -> Iterator[str]:
    training = stage.training
    if (training.steps is None) == (training.epochs is None):
        yield "training: give steps or epochs, one of the two"
    if training.batch < world:
        yield _too_many(stage, world)


def _live(spec: RunSpec, stage: StageSpec) -> Iterator[str]:
    """Checks the exams that a stage asks for while it trains."""
    live = stage.evaluate
    if live is None:
        return
    if spec.evaluation is None:
        yield "the run declares no evaluation to take questions from; add one"
        return
    kinds = {benchmark.name: benchmark.kind for benchmark in spec.evaluation.benchmarks}
    unknown = [name for name in live.benchmarks or () if name not in kinds]
    if unknown:
        yield f"benchmarks: {unknown[0]!r} is not in the run's evaluation, which has {', '.join(kinds)}"
    if "drawing" in [kinds.get(name) for name in live.benchmarks or ()] or set(kinds.values()) == {"drawing"}:
        yield "benchmarks: drawings are not judged while a model trains; name others"
    if spec.engine.kind == "deepspeed" and spec.engine.zero == 3:
        yield "with zero 3 no process holds the model; use zero 0 to 2, or `mmmoe eval` when the stage is finished"
    if spec.engine.ep_size > 1 and spec.evaluation.beams > 1:
        yield "beams end at their own time, but processes that share experts must stay in step; use beams 1"


def _best(spec: RunSpec, stage: StageSpec) -> Iterator[str]:
    """Checks that the benchmark which tells the best checkpoint is asked while the stage trains."""
    wanted = stage.training.checkpoint.keep_best
    if wanted is None:
        return
    if stage.evaluate is None or spec.evaluation is None:
        yield f"nothing asks {wanted!r} while the stage trains; declare the stage's `evaluate`, or leave keep_best out"
        return
    asked = [benchmark.name for benchmark in live_spec(spec, stage).benchmarks]
    if wanted not in asked:
        yield f"{wanted!r} is not asked while the stage trains; its `evaluate` asks {', '.join(asked) or 'nothing'}"
    if stage.reuse:
        yield "a result taken from the cache has no best checkpoint; set reuse to false"


def _data(stage: StageSpec) -> Iterator[str]:
    for source in stage.mixture.sources:
        try:
            size = len(ShardSet(paths.resolve(source.shards)))
        except ValueError as error:
            yield f"mixture.{source.name}: {error}"
            continue
        if size < stage.training.batch and len(stage.mixture.sources) == 1:
            yield (
                f"mixture.{source.name}: {size} samples are fewer than one batch of {stage.training.batch}; "
                "pack more or lower training.batch"
            )
