"""Weights of a released perceiver under our names: MM-Interleaved's and TextHarmony's `PerceiverResampler`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

QFORMER = "blip2qformer."
OF_A_LAYER = {
    "attention": "attention",
    "crossattention": "cross_attention",
    "intermediate_query.dense": "up_proj",
    "output_query.dense": "down_proj",
    "output_query.LayerNorm": "norm",
}
OF_AN_ATTENTION = {
    "attention.query": "q_proj",
    "attention.key": "k_proj",
    "attention.value": "v_proj",
    "attention.q_norm": "q_norm",
    "attention.k_norm": "k_norm",
    "output.dense": "out_proj",
    "output.LayerNorm": "norm",
}


def own_name(released: str) -> str:
    """Returns our name of a perceiver's parameter; `released` is its official one, from the perceiver on."""
    if released == "queries":
        return "queries_1QC"
    name = released.removeprefix(QFORMER)
    if not name.startswith("encoder.layer."):
        return name.replace("layernorm.", "norm.")
    _, _, number, part, *rest, kind = name.split(".")
    if part in ("attention", "crossattention"):
        return f"layers.{number}.{OF_A_LAYER[part]}.{OF_AN_ATTENTION['.'.join(rest)]}.{kind}"
    return f"layers.{number}.{OF_A_LAYER['.'.join([part, *rest])]}.{kind}"


def from_released(state: Mapping[str, Tensor], prefix: str, queries: int) -> dict[str, Tensor]:
    """Returns a perceiver's weights by our names, without the linear layer after it, which the release keeps outside.

    Args:
        state: tensors by their official names.
        prefix: where the perceiver stands among them.
        queries: how many are wanted; another number is interpolated linearly, as TextHarmony's loading does.

    Raises:
        ValueError: There is no perceiver.
    """
    if f"{prefix}queries" not in state:
        raise ValueError(f"no perceiver among these weights: {prefix}queries is not there")
    own = {
        own_name(name.removeprefix(prefix)): tensor
        for name, tensor in state.items()
        if name.startswith((f"{prefix}queries", prefix + QFORMER))
    }
    stored_1QC = own["queries_1QC"]
    if stored_1QC.shape[1] != queries:
        stored_1QC = F.interpolate(stored_1QC.float().transpose(1, 2), size=queries, mode="linear").transpose(1, 2)
        own["queries_1QC"] = stored_1QC.contiguous()
    return own
