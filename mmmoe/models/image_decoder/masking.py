"""Which images count in the image loss."""

from __future__ import annotations

from torch import Tensor

LEAST_CONTEXT = 2
"""Positions of a context that says nothing: the beginning of the sequence and the start of the image."""


def image_loss(error_ICHW: Tensor, mask_IL: Tensor, weight_I: Tensor | None = None) -> Tensor:
    """Returns one loss an image, float32: the mean of its elements, 0 where the context says nothing.

    The mean of these is the authors' loss, whose denominator counts the images that are left out, too.

    Args:
        error_ICHW: squared error of every element.
        mask_IL: True at an image's context.
        weight_I: what else an image counts.
    """
    loss_I = error_ICHW.float().flatten(1).mean(1)
    has_context_I = mask_IL.sum(1) > LEAST_CONTEXT
    return loss_I * has_context_I if weight_I is None else loss_I * has_context_I * weight_I
