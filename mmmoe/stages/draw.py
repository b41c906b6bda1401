"""Where a stage's batches come from: sources opened, media encoded once if it asks for that, order fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmmoe import dist, env, paths
from mmmoe.config.ids import CANVAS_VIEW
from mmmoe.data.canvas import CanvasTransform
from mmmoe.data.dataset import Dataset, Source, TaskRule, open_sources, with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.loader import StepLoader
from mmmoe.data.media import kind_of
from mmmoe.data.mixture import order_of
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.slide_task import answer_task, keyword_task
from mmmoe.data.spectrograms import AudioTransform, SpeechTransform
from mmmoe.data.template import Template, load_tokenizer
from mmmoe.data.transform import Transform
from mmmoe.data.transforms import ImageTransform
from mmmoe.data.video import VideoTransform
from mmmoe.log import console
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.feature_budget import make_room
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.image_routing import training_guide
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec, StageSpec


def draw(
    run: RunSpec, stage: StageSpec, model: SplicedModel, folder: RunFolder, parts: Mapping[str, Heritage]
) -> StepLoader:
    """Returns this process's micro-batches by step; collective when media have to be encoded or images routed first."""
    sources = open_sources(stage.mixture)
    transforms = transforms_of(model)
    if stage.encode_once:
        frozen = [view for view in model.views if not model.tower_of(view).is_trained]
        keys = {view: feature_key(model, view, transforms[view]) for view in frozen}
        sources = with_features(sources, Path(run.cache) / "features", keys)
        make_room(run, stage, model, sources)
        encode(model, sources, transforms)
    tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(run.model)))
    here = folder.stage(stage.name)
    dataset = Dataset(
        sources,
        Template(stage.template, tokenizer, draws=model.canvas is not None),
        transforms,
        Quarantine(here, stage.mixture.bad_samples, env.rank()),
        max_positions=model.max_positions,
        positions={view: model.positions(view) for view in model.sizes},
        guide=training_guide(run, stage, model, sources, transforms, parts),
        task=task_rule(model),
    )
    return StepLoader(
        dataset,
        order_of(stage.mixture, dataset.sizes),
        stage.training.batch,
        stage.training.micro_batch,
        env.rank(),
        env.world_size(),
        total_steps=total_steps(stage),
        batches=stage.mixture.batches,
    )


def task_rule(model: SplicedModel) -> TaskRule | None:
    """Returns what tells a dialogue's task to a Slide-LoRA's gate: the released phrases, or what the answer is."""
    if model.slide is None:
        return None
    if model.slide.spec.gate == "keyword":
        return lambda turns: keyword_task("\n".join(turn.text for turn in turns if turn.role == "human"))
    return answer_task


def transforms_of(model: SplicedModel) -> dict[str, Transform]:
    """Returns by view what turns files into the input of the model's towers, as the towers say."""
    makers: dict[str, Callable[[Any], Transform]] = {
        "image": _image,
        "video": lambda tower: VideoTransform(_image(tower), frames=model.frames),
        "speech": lambda tower: SpeechTransform(
            tower.sample_rate, tower.num_mels, tower.chunk_seconds, tower.max_chunks
        ),
        "audio": lambda tower: AudioTransform(
            tower.sample_rate,
            tower.num_mels,
            tower.chunk_seconds,
            tower.max_frames,
            tower.mean,
            tower.std,
            tower.max_chunks,
        ),
    }
    found = {view: makers[kind_of(view)](model.tower_of(view)) for view in model.views if view != CANVAS_VIEW}
    return found if model.canvas is None else found | {CANVAS_VIEW: CanvasTransform(*model.canvas)}


def feature_key(model: SplicedModel, view: str, transform: Transform) -> str:
    """Returns what names the features of a view: the tower, and what the transform adds to it."""
    return f"{model.tower_of(view).key} {transform.key}"


def total_steps(stage: StageSpec) -> int:
    """Returns the number of optimiser steps of a stage; needs the shards when it is given in epochs."""
    training = stage.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None, "preflight asks for one of the two"
    samples = sum(len(source.shards) for source in open_sources(stage.mixture))
    return max(1, round(samples * training.epochs / training.batch))


def encode(model: SplicedModel, sources: list[Source], transforms: Mapping[str, Transform]) -> None:
    """Runs the frozen towers over all media whose features are not on disk yet; collective."""
    device = dist.device()
    for view in model.views:
        model.tower_of(view).to(device)
    stores = [(view, store) for source in sources for view, store in source.features.items()]
    waiting = [part for _, store in stores for part in store.missing()]
    own = sum(part.stop - part.start for part in waiting if part.number % env.world_size() == env.rank())
    dist.barrier()
    if waiting:
        said = "encoding media" + (" (one process's share)" if env.world_size() > 1 else "")
        columns = (TextColumn(said), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=env.rank() != 0) as progress:
            task = progress.add_task("", total=own)
            for view, store in stores:

                def features(media: Tensor, view: str = view) -> Tensor:
                    return model.encode(view, media.to(device))

                encode_missing(
                    store,
                    features,
                    transforms[view],
                    rank=env.rank(),
                    world=env.world_size(),
                    on_items=lambda count: progress.advance(task, count),
                )
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _image(tower: Any) -> ImageTransform:
    return ImageTransform(tower.image_size, tower.mean, tower.std, tower.fit)
