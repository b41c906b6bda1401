"""An OCR judge: the recogniser of a PP-OCR network in an ONNX file reads one line of text in each picture."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmmoe.paths import resolve

RUNTIME = "onnxruntime"
HEIGHT, WIDTH, STEP = 48, 320, 32
"""Rows of the network's input, its fewest columns, and by how many columns a longer line's grows."""
BLANK = 0
"""Class of the CTC output that stands for no letter."""


class OcrJudge:
    """Reads crops: a picture should hold little more than its line of text, or much of it is not read.

    Every picture becomes the same input whatever else is read with it, so it reads alike alone and in a batch; the
    original code pads to the widest of a batch.
    """

    def __init__(self, path: str | Path, batch: int = 16) -> None:
        """Loads the network.

        Args:
            path: the ONNX file; it carries its letters. The package rapidocr ships one (PP-OCRv6_rec_small.onnx).
            batch: pictures of one width that are read at once.

        Raises:
            ValueError: onnxruntime or the file is missing, or it is another network.
        """
        self.path = resolve(path)
        if importlib.util.find_spec(RUNTIME) is None:
            raise ValueError("the OCR judge needs the package onnxruntime: pip install 'mmmoe[onnx]'")
        if not self.path.is_file():
            raise ValueError(
                f"no OCR judge at {self.path}; put rapidocr/models/PP-OCRv6_rec_small.onnx out of the wheel of the "
                "package rapidocr there"
            )
        runtime: Any = importlib.import_module(RUNTIME)
        options = runtime.SessionOptions()
        # By itself it would start a thread for every core in each process.
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"onnxruntime cannot load {self.path}: {error}") from error
        letters = self._session.get_modelmeta().custom_metadata_map.get("character")
        if letters is None:
            raise ValueError(f"{self.path} carries no letters (metadata `character`); it is no recogniser of rapidocr")
        # After the listed letters comes the space, before them the blank.
        self._letters = ["", *letters.splitlines(), " "]
        self._entry = self._session.get_inputs()[0].name
        self._batch = batch

    def read(self, pictures: Tensor | Sequence[Image.Image]) -> list[str]:
        """Returns what is written in each picture; an empty text where nothing was found.

        Args:
            pictures: pixels (I, 3, H, W) in 0..1, or pictures of any sizes.
        """
        fitted = [_fitted(picture) for picture in pictures]
        texts = [""] * len(fitted)
        for width in sorted({one.shape[-1] for one in fitted}):
            places = [place for place, one in enumerate(fitted) if one.shape[-1] == width]
            for start in range(0, len(places), self._batch):
                part = places[start : start + self._batch]
                pixels_I3HW = torch.stack([fitted[place] for place in part])
                for place, text in zip(part, self._read(pixels_I3HW), strict=True):
                    texts[place] = text
        return texts

    def _read(self, pixels_I3HW: Tensor) -> list[str]:
        score_ITV = self._session.run(None, {self._entry: pixels_I3HW.numpy()})[0]
        if score_ITV.shape[-1] != len(self._letters):
            raise ValueError(
                f"{self.path} has {score_ITV.shape[-1]} classes and {len(self._letters)} letters (blank and space "
                "counted); its list of letters is another network's"
            )
        return [decoded(class_T.tolist(), self._letters) for class_T in score_ITV.argmax(axis=-1)]


def decoded(classes: Sequence[int], letters: Sequence[str]) -> str:
    """Returns the text of a CTC output's best path: runs of a class become one, then blanks go (CTC, section 3.1)."""
    return "".join(letters[one] for one, _ in groupby(classes) if one != BLANK)


def _fitted(picture: Tensor | Image.Image) -> Tensor:
    """Returns a picture as the network takes it: 48 rows, blue before green, -1 to 1, with 0 right of it."""
    if isinstance(picture, Image.Image):
        picture = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
    rows, columns = picture.shape[-2:]
    width = max(1, math.ceil(HEIGHT * columns / rows))
    pixels_13HW = picture.detach().cpu().float()[None].clamp(0, 1)
    pixels_13HW = F.interpolate(pixels_13HW, (HEIGHT, width), mode="bilinear", align_corners=False)
    room = max(WIDTH, math.ceil(width / STEP) * STEP)
    fitted_3HW: Tensor = F.pad(pixels_13HW[0].flip(0) * 2 - 1, (0, room - width))
    return fitted_3HW
