"""Fills in what a judge says of samples, a number each: its loss with given experts, or the experts that it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmmoe import dist, env
from mmmoe.config.ids import IMAGE_ID
from mmmoe.data.collate import Batch, collate
from mmmoe.data.dataset import Dataset
from mmmoe.data.routed_images import RoutedImages
from mmmoe.data.routing_labels import number_of
from mmmoe.data.sample import Sample
from mmmoe.data.sample_column import ColumnPart, Numbers, SampleColumn
from mmmoe.data.template import Template
from mmmoe.evaluation.routing import ANSWER_TOKENS
from mmmoe.log import console
from mmmoe.models.generation import words_of
from mmmoe.models.spliced import SplicedModel

BATCH = 32
"""Samples that a judge answers at once, of like length."""
NEAR = 4 * BATCH
"""Samples held in memory at once."""

Ask = Callable[[SplicedModel, Batch], Tensor]
"""From a judge and samples to a number (B,) each, NaN where there is none."""


def mean_loss(model: SplicedModel, batch: Batch) -> Tensor:
    """Returns the mean negative log-likelihood of each sample's answer."""
    output = model(**batch.inputs())
    mean_B = output.nll_B / output.num_targets_B.clamp(min=1)
    return torch.where(output.num_targets_B > 0, mean_B, torch.nan)


def experts_named_by(guide: RoutedImages, template: Template) -> Ask:
    """Returns what lets a judge write the answers of routing passes, and reads them as an exam does."""
    tokenizer = template.tokenizer

    def ask(model: SplicedModel, batch: Batch) -> Tensor:
        answers = model.generate(
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.media,
            batch.features,
            max_new_tokens=ANSWER_TOKENS,
            eos_id=tokenizer.eos_token_id,
            pad_id=template.pad_id,
        )
        said = [words_of(tokenizer, answer) for answer in answers]
        numbers = [math.nan if words is None else number_of(guide.read(words)) for words in said]
        return torch.tensor(numbers, dtype=torch.float64)

    return ask


@dataclass(frozen=True)
class Judged:
    """One column to fill: where it lies, and the samples as the judge is asked them."""

    column: SampleColumn
    dataset: Dataset
    """Of the one source, with the judge's template and the experts it is given."""
    ask: Ask = mean_loss


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
        if (place + part.number) % env.world_size() == env.rank()
    ]
    dist.barrier()
    was_training = model.training
    model.to(device).eval()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=env.rank() != 0 or not tasks) as progress:
        task = progress.add_task("", total=sum(part.stop - part.start for _, part in tasks))
        for one, part in tasks:
            numbers_N = _numbers(model, one, part, device, lambda count: progress.advance(task, count))
            one.column.write(part, numbers_N)
    model.train(was_training)
    dist.barrier()


def _numbers(
    model: SplicedModel, one: Judged, part: ColumnPart, device: torch.device, on_samples: Callable[[int], None]
) -> Numbers:
    """Returns the number of each sample of a part (N,)."""
    first = one.column.first(part)
    numbers_N = np.full(part.stop - part.start, np.nan)
    for places, samples in _batches(one.dataset, first, len(numbers_N)):
        batch = collate(samples, one.dataset.template.pad_id).to(device)
        with torch.inference_mode():
            numbers_N[places] = one.ask(model, batch).double().cpu().numpy()
        on_samples(len(samples))
    return numbers_N


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
