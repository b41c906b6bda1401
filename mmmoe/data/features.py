"""What a frozen tower sees, kept on disk: each image is encoded once, whatever the number of epochs, stages and runs.

Features are stored per shard in parts of a fixed number of images. A part is complete as soon as its file has its name,
so processes divide parts without talking, a stopped encoding goes on at the next missing part, and at any world size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from mmmoe.data.index import write_atomically
from mmmoe.data.shards import ShardSet
from mmmoe.data.transforms import ImageTransform

PART = 256
"""Images of one part: 300 MB for 576 tokens of 1024 channels, so that a stopped encoding loses little."""
VERSION = 1
HALF_MAX = 65504.0
"""Largest float16; some CLIP channels have outliers, and an infinity would poison a whole run."""


@dataclass(frozen=True)
class Part:
    """A run of images of one shard."""

    number: int
    """Counted over all shards."""
    shard: int
    start: int
    stop: int


class FeatureStore:
    """Features of all images of a shard set under one tower, float16 (P, C) each."""

    def __init__(self, folder: str | Path, key: str, shards: ShardSet) -> None:
        """Finds what is there; nothing is read yet.

        Args:
            folder: The cache; shards and towers of any number share it.
            key: Names the tower: architecture, hash of its weights and options. Another key, other features.
            shards: Whose images.
        """
        self.shards = shards
        self._folders = [
            Path(folder) / hashlib.sha256(f"{VERSION} {key} {shard.header.sha256}".encode()).hexdigest()[:32]
            for shard in shards.shards
        ]
        self._open: dict[Path, tuple[np.ndarray, dict[str, str]]] = {}
        self._lock = Lock()

    def parts(self) -> list[Part]:
        """Returns all parts, present or not, in a fixed order."""
        spans = [
            (shard, start, min(start + PART, s.header.images))
            for shard, s in enumerate(self.shards.shards)
            for start in range(0, s.header.images, PART)
        ]
        return [Part(number, *span) for number, span in enumerate(spans)]

    def missing(self) -> list[Part]:
        """Returns the parts that are not on disk."""
        return [part for part in self.parts() if not self._path(part.shard, part.start).is_file()]

    def get(self, shard_index: int, image_index: int) -> Tensor:
        """Returns one image's features, float16 (P, C).

        Args:
            shard_index: Number of the shard in the set.
            image_index: Number of the image in the shard (`Entry.first_image` and following).

        Raises:
            ValueError: The image could not be decoded when it was encoded, or its features are missing or damaged.
        """
        start = image_index - image_index % PART
        path = self._path(shard_index, start)
        opened = self._open.get(path)
        features_IPC, failures = opened if opened is not None else self._load(path, shard_index, start)
        reason = failures.get(str(image_index - start))
        if reason is not None:
            raise ValueError(reason)
        return torch.from_numpy(np.array(features_IPC[image_index - start]))

    def images(self, part: Part) -> Iterator[bytes]:
        """Yields a part's encoded images in order."""
        shard = self.shards.shards[part.shard]
        low, high = 0, shard.header.count - 1
        while low < high:  # last record whose first image is not beyond the part's
            middle = (low + high + 1) // 2
            low, high = (middle, high) if shard.entry(middle).first_image <= part.start else (low, middle - 1)
        number = shard.entry(low).first_image
        while number < part.stop:
            entry = shard.entry(low)
            for ending in entry.images:
                if part.start <= number < part.stop:
                    yield shard.read(entry, ending)
                number += 1
            low += 1

    def write(self, part: Part, batches: Iterator[tuple[Tensor, dict[int, str]]]) -> None:
        """Writes a part as its batches arrive; the part appears when it is whole.

        Args:
            part: Which one.
            batches: Features (I, P, C) of successive images, and the reasons of those that could not be decoded, by
                their place in the batch (their features are ignored).
        """
        path = self._path(part.shard, part.start)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        failures: dict[str, str] = {}
        target: np.ndarray | None = None
        done, count = 0, part.stop - part.start
        try:
            for features_IPC, reasons in batches:
                if target is None:
                    shape = (count, *features_IPC.shape[1:])
                    target = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
                half_IPC = features_IPC.float().clamp(-HALF_MAX, HALF_MAX).half().cpu()
                target[done : done + len(half_IPC)] = half_IPC.numpy()
                failures.update({str(done + place): reason for place, reason in reasons.items()})
                done += len(half_IPC)
            assert target is not None
            assert done == count, f"part {part} got {done} of {count} images"
            target.flush()  # type: ignore[attr-defined]  # open_memmap returns a memmap
            if failures:
                write_atomically(path.with_suffix(".bad.json"), json.dumps(failures).encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, shard: int, start: int) -> Path:
        return self._folders[shard] / f"{start:08d}.npy"

    def _load(self, path: Path, shard: int, start: int) -> tuple[np.ndarray, dict[str, str]]:
        with self._lock:
            if path not in self._open:
                expected = min(PART, self.shards.shards[shard].header.images - start)
                try:
                    features_IPC = np.load(path, mmap_mode="r", allow_pickle=False)
                except FileNotFoundError as error:
                    raise FileNotFoundError(f"features {path} were never written; encode the images first") from error
                except (OSError, ValueError, EOFError) as error:
                    raise OSError(f"features {path} are damaged ({error}); delete the file, it is made anew") from error
                if features_IPC.ndim != 3 or len(features_IPC) != expected:
                    raise OSError(
                        f"features {path} have shape {features_IPC.shape}, expected {expected} images; "
                        "delete the file, it is made anew"
                    )
                beside = path.with_suffix(".bad.json")
                failures = json.loads(beside.read_text()) if beside.is_file() else {}
                self._open[path] = (features_IPC, failures)
            return self._open[path]


def encode_missing(
    store: FeatureStore,
    encode: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    *,
    batch: int = 64,
    rank: int = 0,
    world: int = 1,
    on_images: Callable[[int], None] = lambda count: None,
) -> int:
    """Encodes this process's share of the missing images; a barrier belongs behind it. Returns how many it encoded.

    Args:
        store: Where the features go.
        encode: The frozen tower: pixels (I, C, H, W) to features (I, P, C); takes care of its device.
        transform: Turns encoded images into the tower's input.
        batch: Images at once.
        rank: This process; it takes every world-th part, so all processes agree without talking.
        world: Number of processes.
        on_images: Told the number of images after each batch, for a progress bar.
    """
    count = 0
    for part in store.missing():
        if part.number % world == rank:
            store.write(part, _encoded(store.images(part), encode, transform, batch, on_images))
            count += part.stop - part.start
    return count


def _encoded(
    images: Iterator[bytes],
    encode: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    batch: int,
    on_images: Callable[[int], None],
) -> Iterator[tuple[Tensor, dict[int, str]]]:
    pixels: list[Tensor] = []
    reasons: dict[int, str] = {}
    for data in images:
        try:
            pixels.append(transform(data))
        except ValueError as error:
            reasons[len(pixels)] = str(error)
            pixels.append(transform.grey())  # keeps the places; never handed out
        if len(pixels) == batch:
            yield encode(torch.stack(pixels)), reasons
            on_images(len(pixels))
            pixels, reasons = [], {}
    if pixels:
        yield encode(torch.stack(pixels)), reasons
        on_images(len(pixels))
