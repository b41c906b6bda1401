"""The micro-batches of any step, prepared ahead in the background; what a step holds depends on its number alone."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType

from mmmoe.data.collate import Batch, collate
from mmmoe.data.dataset import Dataset
from mmmoe.data.mixture import Order

AHEAD = 2
"""Steps prepared ahead beyond the number of workers."""


class StepLoader:
    """Gives a process its micro-batches of a step; there is no state, so a resume is a call with another number.

    Step s of the run takes positions [s * batch, (s + 1) * batch) of the order. Process r takes a contiguous share of
    them, longest samples first (little padding, and the step that needs most memory fails at its start), cut into as
    many micro-batches as every other process.
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
        self._start, self._stop = rank * batch // world, (rank + 1) * batch // world
        largest_share = -(-batch // world)
        self._num_micro = -(-largest_share // micro_batch)
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

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of every step on every process."""
        return self._num_micro

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
        """Stops the background threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _schedule(self, step: int) -> None:
        assert self._pool is not None
        end = step + 1 + self._workers + AHEAD
        if self._total_steps is not None:
            end = min(end, max(self._total_steps, step + 1))
        for number in range(step, end):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._prepare, number)

    def _prepare(self, step: int) -> list[Batch]:
        first = step * self._batch
        draws = self._order.draws(range(first + self._start, first + self._stop))
        drawn = (self._dataset.get(draw.source, draw.index) for draw in (draws[i] for i in range(len(draws))))
        samples = sorted((s for s in drawn if s is not None), key=lambda s: len(s.input_ids), reverse=True)
        count, num = len(samples), self._num_micro
        cuts = [count * number // num for number in range(num + 1)]
        pad_id = self._dataset.template.pad_id
        return [collate(samples[a:b], pad_id) for a, b in pairwise(cuts)]
