"""Fills feature stores: media through their transform and the frozen tower, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmmoe.data.feature_part import Encoded
from mmmoe.data.features import FeatureStore
from mmmoe.data.media import Item
from mmmoe.data.transform import Transform, placeholders, stack_items

BATCH = {"image": 64, "video": 8, "speech": 16, "audio": 16}
"""Images, videos or chunks the tower takes at once."""


def encode_missing(
    store: FeatureStore,
    encode: Callable[[Tensor], Tensor],
    transform: Transform,
    *,
    batch: int | None = None,
    rank: int = 0,
    world: int = 1,
    on_items: Callable[[int], None] = lambda count: None,
) -> int:
    """Encodes this process's share of the missing items; a barrier belongs behind it. Returns how many it encoded.

    Args:
        store: Where the features go.
        encode: The frozen tower: media (N, ...) to features (N, ...); takes care of its device.
        transform: Turns encoded items into the tower's input.
        batch: Images, videos or chunks at once; what suits the kind by default.
        rank: This process; it takes every world-th part, so all processes agree without talking.
        world: Number of processes.
        on_items: Told the number of items after each batch, for a progress bar.
    """
    count = 0
    for part in store.missing():
        if part.number % world == rank:
            encoded = _encoded(store.kind, store.items(part), encode, transform, batch or BATCH[store.kind], on_items)
            store.write(part, encoded)
            count += part.stop - part.start
    return count


def _encoded(
    kind: str,
    items: Iterator[Item],
    encode: Callable[[Tensor], Tensor],
    transform: Transform,
    batch: int,
    on_items: Callable[[int], None],
) -> Iterator[Encoded]:
    waiting: list[Tensor] = []
    failures: dict[int, str] = {}

    def flush() -> Encoded:
        counts = tuple(placeholders(kind, made) for made in waiting)
        # One long file may have more chunks than the tower takes at once.
        features = torch.cat([encode(rows) for rows in torch.split(stack_items(kind, waiting), batch)])
        return Encoded(features, counts, dict(failures))

    for item in items:
        try:
            waiting.append(transform(item))
        except ValueError as error:
            failures[len(waiting)] = str(error)
            waiting.append(transform.blank())  # keeps the places; never handed out
        if sum(placeholders(kind, made) for made in waiting) >= batch:
            yield flush()
            on_items(len(waiting))
            waiting, failures = [], {}
    if waiting:
        yield flush()
        on_items(len(waiting))
