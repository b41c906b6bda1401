"""FID's eyes: an Inception network in an ONNX file, whose last pooled features stand for a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.evaluation.frechet import Extractor
from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import OnnxTowerSpec


def inception(spec: OnnxTowerSpec) -> Extractor:
    """Returns the extractor of a network; a map of several cells is averaged.

    Pictures are resized as FID's reference code in torch does it: bilinear, without smoothing.

    Raises:
        ValueError: The file is missing or another network than declared.
    """
    try:
        tower = build_tower(spec)
    except ValueError as error:
        raise ValueError(f"evaluation.drawing.fid: {str(error).removeprefix('tower.')}") from error
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))

    def features(pixels_I3HW: Tensor) -> Tensor:
        side = (spec.image_size, spec.image_size)
        fitted_I3HW = F.interpolate(pixels_I3HW.float(), side, mode="bilinear", align_corners=False)
        features_IPC: Tensor = tower((fitted_I3HW - mean) / std)
        return features_IPC.mean(1)

    return features
