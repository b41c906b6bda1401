"""Puts a run's trained model to its benchmarks, and the model before it saw any picture beside it."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any, Literal

import torch

from mmmoe import dist, env, paths
from mmmoe.config.ids import CANVAS_VIEW
from mmmoe.data.slide_task import IMAGE_GENERATION, TEXT_GENERATION, keyword_task
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Template, load_tokenizer
from mmmoe.evaluation.paper_scores import paper_scores
from mmmoe.evaluation.runner import evaluate_all
from mmmoe.evaluation.scores import ScoreRow
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.evaluation.subject import Subject, TaskRule
from mmmoe.evaluation.table import category_table, score_table
from mmmoe.log import console
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.spec import ModelSpec
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.weights import base_fingerprint
from mmmoe.stages.before_pictures import before_pictures, last_of_text
from mmmoe.stages.cache_content import PICTURES
from mmmoe.stages.draw import transforms_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.heartbeat import heartbeat
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.image_routing import guide_of
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec

EVALUATION = "evaluation"
TaskSource = Literal["model", "keyword", "label"]


def evaluate_run(spec: RunSpec, folder: RunFolder) -> list[ScoreRow]:
    """Evaluates the last stage of a run, unless that is done; collective."""
    assert spec.evaluation is not None
    if any(event["event"] == "evaluated" for event in folder.events()):
        return []
    dist.barrier()
    final = folder.final(spec.stages[-1].name)
    rows = evaluate_checkpoint(final, spec.evaluation, folder.path / EVALUATION, Path(spec.cache))
    if env.rank() == 0:
        folder.record("evaluated", checkpoint=str(final))
    return rows


def evaluate_checkpoint(final: Path, spec: EvaluationSpec, out: Path, cache: Path) -> list[ScoreRow]:
    """Evaluates a finished stage's folder; collective."""
    model, heritage = rebuild(final)
    key = _weights(heritage)

    def untrained() -> Subject:
        text = last_of_text(heritage.path)
        taught = "" if text is None else _weights(Heritage.read(text))
        return subject_of(before_pictures(heritage), heritage, cache, spec.tasks, f"{key} before pictures: {taught}")

    trained = subject_of(model, heritage, cache, spec.tasks, key)
    rows = evaluate_all(trained, spec, out, untrained, cache, paper_scores(heritage.model.family))
    if env.rank() == 0:
        console.print(score_table(rows))
        for row in rows:
            if row.categories and row.variant == "trained":
                console.print(category_table(row))
    return rows


def evaluate_again(path: Path, overrides: list[str]) -> None:
    """Evaluates a run folder, or a finished stage's folder inside one, anew.

    Args:
        path: of either.
        overrides: of the run's configuration; `suite=FILE` puts that file in place of the run's own evaluation.

    Raises:
        ValueError: when the folder is neither, or the run declares no evaluation.
    """
    run_path = path.parent.parent.parent if (path / "manifest.json").is_file() else path
    folder = RunFolder.open(run_path)
    spec = folder.spec([_suite(override) for override in overrides])
    if spec.evaluation is None:
        raise ValueError(f"{run_path} declares no evaluation; name one, for example suite=configs/evaluation/vqa.yaml")
    final = path if path != run_path else folder.final(spec.stages[-1].name)
    if not (final / "manifest.json").is_file():
        raise ValueError(f"{final} is not finished; go on with `mmmoe resume {run_path}`")
    dist.start()
    own = folder.spec().evaluation
    name = folder_name(spec.evaluation, own or spec.evaluation)
    if path == run_path:
        out = run_path / name
    else:
        # A stage's best checkpoint stands beside its last; so do their scores.
        out = path.parent / (name if path.name == "final" else f"{path.name}_{name}")
    with heartbeat(spec.engine.deadline_s, shlex.join(["mmmoe", "eval", str(path), *overrides])):
        evaluate_checkpoint(final, spec.evaluation, out, Path(spec.cache))
        dist.barrier()
    dist.stop()


def _weights(heritage: Heritage) -> str:
    """Returns what names a finished stage's weights: its checkpoint, and the base weights that it does not hold."""
    parts = [heritage.model.language, *heritage.model.parts().values()]
    return " ".join([heritage.checkpoint.digest, *(base_fingerprint(part) for part in parts)])


def _suite(override: str) -> str:
    """Returns `suite=FILE` as what it stands for; anything else as it is."""
    key, _, file = override.partition("=")
    return f"evaluation={{base: {file}}}" if key == "suite" else override


def folder_name(spec: EvaluationSpec, own: EvaluationSpec) -> str:
    """Returns where scores go, so that nothing asked otherwise takes the place of the run's own scores.

    Otherwise are a quick look, another routing, other decoding, and a benchmark of the run's that is declared anew.

    Args:
        spec: what is evaluated.
        own: what the run declares.
    """
    name = EVALUATION if spec.tasks == own.tasks else f"{EVALUATION}_tasks_{spec.tasks}"
    if spec.beams != own.beams:
        name += f"_beams_{spec.beams}"
    if spec.repetition_penalty != own.repetition_penalty:
        name += f"_penalty_{spec.repetition_penalty:g}"
    name += _suite_name(spec, own)
    # The report takes what begins with the routing for the same exam under another one, so all else stands before it.
    if spec.routing != own.routing:
        name += f"_routing_{spec.routing if isinstance(spec.routing, str) else '+'.join(spec.routing) or 'none'}"
    return name if spec.limit is None else f"{name}_partial"


def _suite_name(spec: EvaluationSpec, own: EvaluationSpec) -> str:
    """Returns a mark of the run's own benchmarks as another suite declares them; empty where none is declared anew."""
    known = {benchmark.name: benchmark for benchmark in own.benchmarks}
    other = [one.model_dump_json() for one in spec.benchmarks if known.get(one.name, one) != one]
    drawn = any(one.kind == "drawing" and one.name in known for one in spec.benchmarks)
    if drawn and spec.drawing is not None and spec.drawing != own.drawing:
        other.append(spec.drawing.model_dump_json())
    return f"_suite_{hashlib.sha256(repr(other).encode()).hexdigest()[:8]}" if other else ""


def subject_of(
    model: SplicedModel, heritage: Heritage, cache: Path, tasks: TaskSource = "model", key: str | None = None
) -> Subject:
    """Returns a model ready to be asked, as its last stage was taught to answer.

    Args:
        model: with its weights.
        heritage: the stage.
        cache: where features of pictures are kept.
        tasks: who tells a Slide-LoRA's gate a question's task.
        key: names the weights, so that answers can be kept; None: they are not.
    """
    device = dist.device()
    return asked_as(
        heritage.model,
        heritage.template,
        model.to(device).eval(),
        device,
        cache=cache / PICTURES,
        task=question_task(model, tasks),
        key=key,
    )


def asked_as(
    declared: ModelSpec, template: TemplateSpec, model: SplicedModel, device: torch.device, **options: Any
) -> Subject:
    """Returns a model as it is asked.

    Args:
        declared: the model's declaration.
        template: what it was taught to answer in.
        model: on its device.
        device: that.
        options: further ones of a subject.
    """
    tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(declared)))
    return Subject(
        model,
        Template(template, tokenizer, draws=model.canvas is not None),
        {view: transform for view, transform in transforms_of(model).items() if view != CANVAS_VIEW},
        device,
        guide=guide_of(declared),
        **options,
    )


def question_task(model: SplicedModel, tasks: TaskSource) -> TaskRule | None:
    """Returns what tells a question's task to a Slide-LoRA's gate; a learned gate is not told.

    Raises:
        ValueError: A task is to be told to a model that has no such gate.
    """
    if model.slide is None:
        if tasks != "model":
            raise ValueError(
                f"evaluation.tasks is {tasks}, but the model has no Slide-LoRA that could be told; leave it out"
            )
        return None
    source = model.slide.spec.gate if tasks == "model" else tasks
    if source == "learned":
        return None
    model.slide.heeds_tasks = True
    if source == "keyword":
        return lambda question, draws: keyword_task(question)
    return lambda question, draws: IMAGE_GENERATION if draws else TEXT_GENERATION
