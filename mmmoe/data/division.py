"""Who forwards what in a step: samples dealt to processes and micro-batches, alike wherever it is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

Combination = tuple[str, ...]
"""The modalities of a sample."""


def divide_pure(
    combinations: Sequence[Combination], lengths: Sequence[int], micro_batch: int, world: int
) -> list[list[list[int]]]:
    """Returns, for each process, its micro-batches as places in the step; every process has as many.

    No micro-batch mixes combinations. Each combination gets as few micro-batches as hold it; if the total is no
    multiple of the processes, the fullest are cut further, and what cannot be cut is made up by empty ones. Samples of
    like length stand together, the longest first. The processes' n-th micro-batches are neighbours, mostly of one
    combination, so that none waits long for another.

    Args:
        combinations: Of each sample of the step.
        lengths: Estimated length of each.
        micro_batch: Most samples at once.
        world: Number of processes.
    """
    groups: dict[Combination, list[int]] = defaultdict(list)
    for place, combination in enumerate(combinations):
        groups[combination].append(place)
    cuts = {combination: -(-len(places) // micro_batch) for combination, places in groups.items()}
    free = -sum(cuts.values()) % world
    while free and (splittable := [c for c in sorted(groups) if cuts[c] < len(groups[c])]):
        cuts[max(splittable, key=lambda c: len(groups[c]) / cuts[c])] += 1
        free -= 1
    slots: list[list[int]] = []
    for combination in sorted(groups):
        places = sorted(groups[combination], key=lambda place: (-lengths[place], place))
        ends = [len(places) * number // cuts[combination] for number in range(cuts[combination] + 1)]
        slots += [places[start:end] for start, end in pairwise(ends)]
    slots += [[] for _ in range(free)]
    return [slots[rank::world] for rank in range(world)]
