"""Tower features of picture files, encoded once per distinct content and kept on disk in half precision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ENCODE_BATCH = 32
"""Pictures the tower sees at once; more does not go faster on a CPU."""


class ImageTransform(Protocol):
    """Encoded bytes to the tower's pixels."""

    def __call__(self, image: bytes, /) -> Tensor:
        """Returns float32 pixels (3, H, W)."""

    def grey(self) -> Tensor:
        """Returns the pixels of a grey picture, which tells nothing."""


class ImageEncoder(Protocol):
    """The part of a model that turns pixels into tower features."""

    tower: Any
    """Has `key`, a text that names architecture and weights."""

    def encode_images(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C)."""


class PictureFeatures:
    """Features by picture content; `None` stands for the grey picture of a blind run."""

    def __init__(
        self, model: ImageEncoder, transform: ImageTransform, device: torch.device, folder: Path | None
    ) -> None:
        self._model = model
        self._transform = transform
        self._device = device
        self._digests: dict[Path | None, str] = {}
        self._kept: dict[str, npt.NDArray[np.float16]] = {}
        self._folder: Path | None = None
        if folder is not None:
            # The grey picture goes through the whole transform, so its pixels tell apart sizes, means and deviations.
            grey = transform.grey().contiguous().numpy().tobytes()
            key = f"{model.tower.key}|{getattr(transform, 'fit', '')}|{hashlib.sha256(grey).hexdigest()}"
            self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare(self, pictures: Iterable[Path | None]) -> int:
        """Encodes the pictures whose features are not there yet; returns how many those were."""
        wanted: dict[str, Path | None] = {}
        for picture in pictures:
            digest = self._digest(picture)
            if digest not in wanted and not self._is_kept(digest):
                wanted[digest] = picture
        digests = list(wanted)
        for start in range(0, len(digests), ENCODE_BATCH):
            part = digests[start : start + ENCODE_BATCH]
            pixels_ICHW = torch.stack([self._pixels(wanted[digest]) for digest in part]).to(self._device)
            features_IPC = self._model.encode_images(pixels_ICHW).to(torch.float16).cpu().numpy()
            for digest, features_PC in zip(part, features_IPC, strict=True):
                self._keep(digest, features_PC)
        return len(digests)

    def features(self, pictures: Sequence[Path | None]) -> Tensor:
        """Returns (I, P, C) float32 on the device, in the order given, repeats repeated.

        They are rounded to half precision even when just encoded, so that a first and a second run score alike.
        """
        self.prepare(pictures)
        digests = [self._digest(picture) for picture in pictures]
        distinct = {digest: self._load(digest) for digest in digests}
        rows = {digest: row for row, digest in enumerate(distinct)}
        features = torch.from_numpy(np.stack(list(distinct.values()))).to(self._device).float()
        return features[torch.tensor([rows[digest] for digest in digests], device=self._device)]

    def _digest(self, picture: Path | None) -> str:
        if picture not in self._digests:
            self._digests[picture] = "grey" if picture is None else hashlib.sha256(picture.read_bytes()).hexdigest()
        return self._digests[picture]

    def _pixels(self, picture: Path | None) -> Tensor:
        if picture is None:
            return self._transform.grey()
        try:
            return self._transform(picture.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{picture} cannot be read as a picture ({error}); replace or remove it") from error

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

    def _keep(self, digest: str, features_PC: npt.NDArray[np.float16]) -> None:
        if self._folder is None:
            self._kept[digest] = features_PC
            return
        path = self._file(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may encode the same picture; the rename makes either's file whole.
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, features_PC)
        partial.replace(path)
