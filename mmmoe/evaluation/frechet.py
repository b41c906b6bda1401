"""How far a set of drawn images is from a set of real ones: the Frechet distance of two Gaussians (FID)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.float64]
Extractor = Callable[[Tensor], Tensor]
"""From pixels (I, 3, H, W) in 0..1 to features (I, C): FID's own is an Inception network (`inception`); scores of other
extractors compare with themselves alone."""


@dataclass(frozen=True)
class Spread:
    """Mean and covariance of a set's features."""

    mean_C: Rows
    covariance_CC: Rows


def spread(features_IC: Rows) -> Spread:
    """Returns mean and covariance (over I - 1, as the official code's).

    Raises:
        ValueError: There are fewer than two rows, or numbers that are none.
    """
    rows_IC = np.asarray(features_IC, dtype=np.float64)
    if rows_IC.ndim != 2 or len(rows_IC) < 2:
        raise ValueError(f"features of shape {rows_IC.shape}: a spread needs a row for each of two images or more")
    if not np.isfinite(rows_IC).all():
        raise ValueError("features hold numbers that are not finite; look at the extractor and the images")
    return Spread(rows_IC.mean(axis=0), np.atleast_2d(np.cov(rows_IC, rowvar=False)))


def frechet_distance(a: Spread, b: Spread) -> float:
    """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (arXiv 1706.08500, equation 6).

    The trace of that root is the sum of the singular values of C_a^(1/2) C_b^(1/2). It needs no root of a product that
    is not symmetric, whose imaginary parts and failures on singular covariances the official code patches up.
    """
    shift_C = a.mean_C - b.mean_C
    overlap = np.linalg.svd(_root(a.covariance_CC) @ _root(b.covariance_CC), compute_uv=False).sum()
    distance = shift_C @ shift_C + np.trace(a.covariance_CC) + np.trace(b.covariance_CC) - 2.0 * overlap
    return max(0.0, float(distance))


def distance_of_sets(drawn_I3HW: Tensor, real_I3HW: Tensor, extractor: Extractor, batch: int = 64) -> float:
    """Returns the distance of two sets of images by an extractor's features."""
    return frechet_distance(*(_seen(images_I3HW, extractor, batch) for images_I3HW in (drawn_I3HW, real_I3HW)))


@torch.inference_mode()
def _seen(images_I3HW: Tensor, extractor: Extractor, batch: int) -> Spread:
    features_IC = torch.cat([extractor(part).double().cpu() for part in torch.split(images_I3HW, batch)])
    return spread(features_IC.numpy())


def _root(covariance_CC: Rows) -> Rows:
    """Returns the symmetric root; what rounding made negative counts as 0."""
    value_C, vector_CC = np.linalg.eigh(covariance_CC)
    root_CC: Rows = (vector_CC * np.sqrt(np.clip(value_C, 0.0, None))) @ vector_CC.T
    return root_CC
