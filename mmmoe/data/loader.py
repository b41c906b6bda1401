"""The micro-batches of any step, prepared ahead in the background; what a step holds depends on its number alone."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Literal

from mmmoe.data.collate import Batch, collate
from mmmoe.data.dataset import Dataset
from mmmoe.data.division import divide_pure
from mmmoe.data.mixture import Draws, Order
from mmmoe.data.sample import Sample

AHEAD = 2
"""Steps prepared ahead beyond the number of workers."""


class StepLoader:
    """Gives a process its micro-batches of a step; there is no state, so a resume is a call with another number.

    Step s of the run takes positions [s * batch, (s + 1) * batch) of the order. With mixed batches process r takes a
    contiguous share of them, longest samples first (little padding, and the step that needs most memory fails at its
    start), cut into as many micro-batches as every other process. With pure ones `divide_pure` deals the whole step out
    by what the indexes say, so a step may have more micro-batches than another, but as many on every process.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        total_steps: int | None = None,
        batches: Literal["mixed", "pure"] = "mixed",
    ) -> None:
        """Starts the background threads.

        Args:
            dataset: Where samples come from.
            order: Which ones, in which order.
            batch: Samples of a step over all processes.
            micro_batch: Most samples at once.
            rank: This process.
            world: Number of processes.
            workers: Threads; 0 prepares each step when it is asked for.
            total_steps: Where the run ends; nothing is prepared beyond.
            batches: Whether micro-batches may mix modalities.

        Raises:
            ValueError: The batch gives some process nothing to do, or dataset and order differ in sizes.
        """
        if batch < world or micro_batch < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch {batch}, micro_batch {micro_batch}, process {rank} of {world}: batch must be at least the "
                "number of processes, so raise training.batch or start fewer"
            )
        if dataset.sizes != order.sizes:
            raise ValueError(f"order was made for sources of {order.sizes} samples, the dataset has {dataset.sizes}")
        self._dataset = dataset
        self._order = order
        self._batch = batch
        self._micro_batch = micro_batch
        self._rank, self._world = rank, world
        self._batches = batches
        self._total_steps = total_steps
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="data") if workers else None
        self._ahead: dict[int, Future[list[Batch]]] = {}
        self.wait_s = 0.0
        """Seconds that callers of `step` have waited, in all."""

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, step: int) -> list[Batch]:
        """Returns this process's micro-batches of step `step` (from 0).

        Raises:
            ValueError: Too many samples are unreadable.
        """
        begin = time.perf_counter()
        if self._pool is None:
            batches = self._prepare(step)
        else:
            for passed in [number for number in self._ahead if number < step]:
                self._ahead.pop(passed).cancel()
            self._schedule(step)
            batches = self._ahead.pop(step).result()
        self.wait_s += time.perf_counter() - begin
        return batches

    def close(self) -> None:
        """Stops the background threads and lets go of the features."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._dataset.close()

    def _schedule(self, step: int) -> None:
        assert self._pool is not None
        end = step + 1 + self._workers + AHEAD
        if self._total_steps is not None:
            end = min(end, max(self._total_steps, step + 1))
        for number in range(step, end):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._prepare, number)

    def _prepare(self, step: int) -> list[Batch]:
        positions = range(step * self._batch, (step + 1) * self._batch)
        parts = self._pure(positions) if self._batches == "pure" else self._mixed(positions)
        return [collate(part, self._dataset.template.pad_id) for part in parts]

    def _mixed(self, positions: range) -> list[list[Sample]]:
        rank, world = self._rank, self._world
        share = positions[rank * self._batch // world : (rank + 1) * self._batch // world]
        samples = self._longest_first(self._order.draws(share))
        largest_share = -(-self._batch // world)
        num = -(-largest_share // self._micro_batch)
        cuts = [len(samples) * number // num for number in range(num + 1)]
        return [samples[a:b] for a, b in pairwise(cuts)]

    def _pure(self, positions: range) -> list[list[Sample]]:
        draws = self._order.draws(positions)
        outlines = [self._dataset.outline(draw.source, draw.index) for draw in (draws[i] for i in range(len(draws)))]
        combinations, lengths = zip(*outlines, strict=True)
        mine = divide_pure(combinations, lengths, self._micro_batch, self._world)[self._rank]
        return [self._longest_first(self._order.draws([positions[place] for place in part])) for part in mine]

    def _longest_first(self, draws: Draws) -> list[Sample]:
        drawn = (self._dataset.get(draw.source, draw.index) for draw in (draws[i] for i in range(len(draws))))
        return sorted((s for s in drawn if s is not None), key=lambda s: len(s.input_ids), reverse=True)
