"""Fills in the losses that routing labels are made of: a judge answers every sample, with the experts it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmmoe import dist
from mmmoe.config.ids import IMAGE_ID
from mmmoe.data.collate import collate
from mmmoe.data.dataset import Dataset
from mmmoe.data.routing_labels import LabelPart, LossColumn
from mmmoe.data.sample import Sample
from mmmoe.log import console
from mmmoe.models.spliced import SplicedModel

BATCH = 32
"""Samples that a judge answers at once, of like length."""
NEAR = 4 * BATCH
"""Samples held in memory at once."""


@dataclass(frozen=True)
class Judged:
    """One column to fill: whose losses, where they go, and the samples as the judge is asked them."""

    column: LossColumn
    dataset: Dataset
    """Of the one source, with the judge's template and the experts it is given."""


def fill(model: SplicedModel, judged: Sequence[Judged], title: str) -> None:
    """Computes what is missing; every process its share, a barrier stands at the end; collective.

    Args:
        model: the judge, trained.
        judged: its columns.
        title: of the progress bar.
    """
    device = dist.device()
    tasks = [
        (one, part)
        for place, one in enumerate(judged)
        for part in one.column.missing()
        if (place + part.number) % dist.world_size() == dist.rank()
    ]
    dist.barrier()
    was_training = model.training
    model.to(device).eval()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=dist.rank() != 0 or not tasks) as progress:
        task = progress.add_task("", total=sum(part.stop - part.start for _, part in tasks))
        for one, part in tasks:
            losses_N = _losses(model, one, part, device, lambda count: progress.advance(task, count))
            one.column.write(part, losses_N)
    model.train(was_training)
    dist.barrier()


def _losses(
    model: SplicedModel, one: Judged, part: LabelPart, device: torch.device, on_samples: Callable[[int], None]
) -> np.ndarray:
    """Returns the mean negative log-likelihood of each sample's answer (N,)."""
    first = one.column.first(part)
    losses_N = np.full(part.stop - part.start, np.nan, dtype=np.float32)
    for places, samples in _batches(one.dataset, first, len(losses_N)):
        batch = collate(samples, one.dataset.template.pad_id).to(device)
        with torch.inference_mode():
            output = model(**batch.inputs())
        mean_B = output.nll_B / output.num_targets_B.clamp(min=1)
        losses_N[places] = torch.where(output.num_targets_B > 0, mean_B, torch.nan).float().cpu().numpy()
        on_samples(len(samples))
    return losses_N


def _batches(dataset: Dataset, first: int, count: int) -> Iterator[tuple[list[int], list[Sample]]]:
    """Yields places and samples, those that have an image and can be read; near ones of like length together."""
    for start in range(0, count, NEAR):
        places = range(start, min(start + NEAR, count))
        read = ((place, dataset.get(0, first + place)) for place in places)
        found = [(place, sample) for place, sample in read if sample is not None and IMAGE_ID in sample.input_ids]
        found.sort(key=lambda pair: len(pair[1].input_ids))
        for at in range(0, len(found), BATCH):
            some = found[at : at + BATCH]
            yield [place for place, _ in some], [sample for _, sample in some]
