"""Tower features of media files, encoded once per distinct content and kept on disk in half precision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmmoe.data.media import KINDS, Item, kind_of
from mmmoe.data.transform import Transform, placeholders, stack_items

ENCODE_BATCH = {"image": 32, "video": 4, "speech": 8, "audio": 8}
"""Items the tower sees at once; more does not go faster on a CPU."""

Files = Path | tuple[Path, ...]
"""One file, or the frame pictures of a video."""


class MediaEncoder(Protocol):
    """The part of a model that turns media into tower features."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media it takes."""

    def tower_of(self, view: str) -> Any:
        """Returns the encoder of a view; its `key` is a text that names architecture and weights."""

    def encode(self, view: str, media: Tensor) -> Tensor:
        """Returns features, a row a row of media."""


class MediaFeatures:
    """Features of one view by content; `None` stands for the grey picture or silence of a blind run."""

    def __init__(
        self,
        model: MediaEncoder,
        view: str,
        transform: Transform,
        device: torch.device,
        folder: Path | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model = model
        self._dtype = dtype
        self._view = view
        self._kind = kind_of(view)
        self._transform = transform
        self._device = device
        self._digests: dict[Files | None, str] = {}
        self._kept: dict[str, npt.NDArray[np.float16]] = {}
        # The blank item goes through the whole transform, so its values tell apart sizes, means and deviations.
        blank = hashlib.sha256(transform.blank().contiguous().numpy().tobytes()).hexdigest()
        key = f"{model.tower_of(view).key}|{self._kind} {transform.key}|{blank}"
        self._key = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._folder: Path | None = None if folder is None else folder / self._key

    def prepare(self, items: Iterable[Files | None]) -> int:
        """Encodes the items whose features are not there yet; returns how many those were."""
        wanted: dict[str, Files | None] = {}
        for item in items:
            digest = self._digest(item)
            if digest not in wanted and not self._is_kept(digest):
                wanted[digest] = item
        digests = list(wanted)
        size = ENCODE_BATCH[self._kind]
        for start in range(0, len(digests), size):
            part = digests[start : start + size]
            made = [self._decoded(wanted[digest]) for digest in part]
            rows = stack_items(self._kind, made)
            # One long file may have more chunks than the tower should see at once.
            encoded = torch.cat([self._encode(few) for few in torch.split(rows, size)])
            counts = [placeholders(self._kind, item) for item in made]
            for digest, features in zip(part, torch.split(encoded, counts), strict=True):
                self._keep(digest, features.numpy() if KINDS[self._kind].is_chunked else features[0].numpy())
        return len(digests)

    def name(self, item: Files | None) -> str:
        """Returns a text that is the same for the same content seen by the same encoder."""
        return f"{self._key}/{self._digest(item)}"

    def count(self, item: Files | None) -> int:
        """Returns how many placeholders an item has: one, or one a chunk."""
        if not KINDS[self._kind].is_chunked:
            return 1
        self.prepare([item])
        return len(self._load(self._digest(item)))

    def features(self, items: Sequence[Files | None]) -> Tensor:
        """Returns float32 features on the device, a row a placeholder, in the order given, repeats repeated.

        They are rounded to half precision even when just encoded, so that a first and a second run score alike.
        """
        self.prepare(items)
        digests = [self._digest(item) for item in items]
        loaded = {digest: torch.from_numpy(self._load(digest)) for digest in digests}
        places: dict[str, range] = {}
        for digest, rows in loaded.items():
            start = next(reversed(places.values())).stop if places else 0
            places[digest] = range(start, start + placeholders(self._kind, rows))
        distinct = stack_items(self._kind, list(loaded.values())).to(self._device).float()
        return distinct[torch.tensor([at for digest in digests for at in places[digest]], device=self._device)]

    def _encode(self, rows: Tensor) -> Tensor:
        return self._model.encode(self._view, rows.to(self._device, self._dtype)).to(torch.float16).cpu()

    def _digest(self, item: Files | None) -> str:
        if item not in self._digests:
            self._digests[item] = "grey" if item is None else _content_digest(item)
        return self._digests[item]

    def _decoded(self, item: Files | None) -> Tensor:
        if item is None:
            return self._transform.blank()
        try:
            return self._transform(_read(item))
        except (OSError, ValueError) as error:
            shown = item if isinstance(item, Path) else f"{item[0]} and the frames beside it"
            raise ValueError(
                f"{shown} cannot be read as {'an image' if self._kind == 'image' else self._kind} ({error}); "
                "replace or remove it"
            ) from error

    def _file(self, digest: str) -> Path:
        assert self._folder is not None
        return self._folder / digest[:2] / f"{digest}.npy"

    def _is_kept(self, digest: str) -> bool:
        return self._file(digest).is_file() if self._folder is not None else digest in self._kept

    def _load(self, digest: str) -> npt.NDArray[np.float16]:
        if self._folder is None:
            return self._kept[digest]
        features: npt.NDArray[np.float16] = np.load(self._file(digest), allow_pickle=False)
        return features

    def _keep(self, digest: str, features: npt.NDArray[np.float16]) -> None:
        if self._folder is None:
            self._kept[digest] = features
            return
        path = self._file(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may encode the same file; the rename makes either's features whole.
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, features)
        partial.replace(path)


def features_by_view(
    model: MediaEncoder,
    transforms: Mapping[str, Transform],
    device: torch.device,
    folder: Path | None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, MediaFeatures]:
    """Returns a cache for each way the model looks at media."""
    return {
        view: MediaFeatures(model, view, transform, device, folder, dtype) for view, transform in transforms.items()
    }


def _read(item: Files) -> Item:
    return item.read_bytes() if isinstance(item, Path) else tuple(frame.read_bytes() for frame in item)


def _content_digest(item: Files) -> str:
    if isinstance(item, Path):
        return hashlib.sha256(item.read_bytes()).hexdigest()
    return hashlib.sha256("".join(_content_digest(frame) for frame in item).encode()).hexdigest()
