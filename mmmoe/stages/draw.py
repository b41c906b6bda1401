"""Where a stage's batches come from: sources opened, pictures encoded once if it asks for that, order fixed."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmmoe import dist, paths
from mmmoe.data.dataset import Dataset, Source, open_sources, with_features
from mmmoe.data.features import encode_missing
from mmmoe.data.loader import StepLoader
from mmmoe.data.mixture import order_of
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.template import Template, load_tokenizer
from mmmoe.data.transforms import ImageTransform
from mmmoe.log import console
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import tokenizer_folder
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec, StageSpec


def draw(run: RunSpec, stage: StageSpec, model: LlavaMole, folder: RunFolder) -> StepLoader:
    """Returns this process's micro-batches by step; collective when pictures have to be encoded first."""
    sources = open_sources(stage.mixture)
    transform = transform_of(model)
    if stage.encode_once:
        sources = with_features(sources, Path(run.cache) / "features", model.tower.key)
        encode(model, sources, transform)
    template = Template(stage.template, load_tokenizer(paths.resolve(tokenizer_folder(run.model))))
    here = folder.stage(stage.name)
    dataset = Dataset(
        sources,
        template,
        transform,
        Quarantine(here, stage.mixture.bad_samples, dist.rank()),
        max_positions=model.max_positions,
        image_positions=model.tower.num_tokens + (2 if model.bounds is not None else 0),
    )
    return StepLoader(
        dataset,
        order_of(stage.mixture, dataset.sizes),
        stage.training.batch,
        stage.training.micro_batch,
        dist.rank(),
        dist.world_size(),
        total_steps=total_steps(stage),
    )


def transform_of(model: LlavaMole) -> ImageTransform:
    """Returns what turns picture files into the model's pixels."""
    tower = model.tower
    return ImageTransform(tower.image_size, tower.mean, tower.std, tower.fit)


def total_steps(stage: StageSpec) -> int:
    """Returns the number of optimiser steps of a stage; needs the shards when it is given in epochs."""
    training = stage.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None, "preflight asks for one of the two"
    samples = sum(len(source.shards) for source in open_sources(stage.mixture))
    return max(1, round(samples * training.epochs / training.batch))


def encode(model: LlavaMole, sources: list[Source], transform: ImageTransform) -> None:
    """Runs the frozen tower over every picture whose features are not on disk yet; collective."""
    device = dist.device()
    model.tower.to(device)

    def features(pixels_ICHW: Tensor) -> Tensor:
        return model.encode_images(pixels_ICHW.to(device))

    stores = [source.features for source in sources if source.features is not None]
    waiting = [part for store in stores for part in store.missing()]
    own = sum(part.stop - part.start for part in waiting if part.number % dist.world_size() == dist.rank())
    dist.barrier()
    if waiting:
        said = "encoding pictures" + (" (one process's share)" if dist.world_size() > 1 else "")
        columns = (TextColumn(said), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=dist.rank() != 0) as progress:
            task = progress.add_task("", total=own)
            for store in stores:
                encode_missing(
                    store,
                    features,
                    transform,
                    rank=dist.rank(),
                    world=dist.world_size(),
                    on_images=lambda count: progress.advance(task, count),
                )
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.empty_cache()
