"""Weights of a released visual tokenizer under our names; those of its encoder are the tower's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmmoe.models.connectors import perceiver_names

WHOLE_MODEL = "visual_tokenizer."
"""Where a released model keeps its visual tokenizer."""
PERCEIVER = "perceiver_resampler."
OWN = {
    "pos_embed": "position_PC",
    "pos_proj.weight": "position_proj.weight",
    "pos_proj.bias": "position_proj.bias",
    "pos_ln.weight": "position_norm.weight",
    "pos_ln.bias": "position_norm.bias",
    "post_ln.weight": "norm.weight",
    "post_ln.bias": "norm.bias",
    "proj.weight": "perceiver.projector.weight",
    "proj.bias": "perceiver.projector.bias",
}


def own_name(released: str) -> str:
    """Returns our name of a parameter; `released` is its official one, from the visual tokenizer on."""
    if released.startswith(PERCEIVER):
        return f"perceiver.{perceiver_names.own_name(released.removeprefix(PERCEIVER))}"
    return OWN[released]


def from_released(state: Mapping[str, Tensor], queries: int) -> dict[str, Tensor]:
    """Returns a visual tokenizer's weights by our names, from its official state dict or that of the whole model.

    Args:
        state: tensors by their official names.
        queries: how many of the perceiver are wanted; another number is interpolated.

    Raises:
        ValueError: There is no visual tokenizer in it.
    """
    part = {name.removeprefix(WHOLE_MODEL): x for name, x in state.items() if name.startswith(WHOLE_MODEL)}
    part = part or dict(state)
    missing = sorted(OWN.keys() - part.keys())
    if missing:
        raise ValueError(f"no visual tokenizer among these weights: {', '.join(missing)} are not there")
    perceiver = perceiver_names.from_released(part, PERCEIVER, queries)
    return {own: part[name] for name, own in OWN.items()} | {f"perceiver.{name}": x for name, x in perceiver.items()}
