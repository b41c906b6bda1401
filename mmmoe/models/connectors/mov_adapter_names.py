"""Weights of a released MoV-Adapter under our names.

TempleX98/MoVA numbers its experts: DINOv2, Vary, Co-DETR, Pix2Struct, Deplot, BiomedCLIP, SAM. The paper lists them in
another order, so a model that takes released weights declares its experts in this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

WHOLE_MODEL = "model.mm_projector."
"""Where a released model keeps its adapter."""
TEXT_ENCODER = "text_encoder."
"""The adapter's BERT, which is a part of its own here."""
ANGLES = ".rope."
"""Rotary tables, stored with each attention though they are constants."""
OF_AN_EXPERT = {"cross_attn": "attention", "norm1": "token_norm", "norm2": "map_norm"}
OF_A_BLOCK = {"self_attn": "attention", "norm3": "attention_norm", "norm4": "mlp_norm", "mlp": "mlp"}
INSIDE = {
    "inner_attn_ln": "norm", "proj": "out_proj", "w1": "gate_proj", "w2": "up_proj", "ffn_ln": "norm", "w3": "down_proj"
}  # fmt: skip


def own_name(released: str, experts: Sequence[str]) -> str:
    """Returns our name of an adapter's parameter.

    Args:
        released: its official name, from the adapter on.
        experts: our names of the experts, in the order of the released numbers.

    Raises:
        ValueError: The name is of an expert beyond the given ones.
    """
    if released == "pos_embed":
        return "position_1PC"
    if released.startswith("mlp."):
        return f"projector.layers.{released.removeprefix('mlp.')}"
    if not released.startswith("blocks."):
        return released
    _, number, part, *rest = released.split(".")
    block = f"blocks.{number}"
    if part == "gate":
        return ".".join([block, "gate.layers", *rest])
    if part in OF_AN_EXPERT:
        expert, *rest = rest
        if int(expert) >= len(experts):
            raise ValueError(f"{released} is of expert number {expert}, but the declared experts are {list(experts)}")
        block, part = f"{block}.readers.{experts[int(expert)]}", OF_AN_EXPERT[part]
    return ".".join([block, OF_A_BLOCK.get(part, part), *(INSIDE.get(inner, inner) for inner in rest)])


def from_released(state: Mapping[str, Tensor], experts: Sequence[str]) -> dict[str, Tensor]:
    """Returns an adapter's weights by our names, from its official state dict or that of the whole model.

    Raises:
        ValueError: There is no adapter in it, or one with more experts.
    """
    adapter = {name.removeprefix(WHOLE_MODEL): x for name, x in state.items() if name.startswith(WHOLE_MODEL)}
    adapter = adapter or dict(state)
    if "pos_embed" not in adapter:
        raise ValueError(f"no MoV-Adapter among these weights: neither pos_embed nor {WHOLE_MODEL}pos_embed is there")
    return {
        own_name(name, experts): tensor
        for name, tensor in adapter.items()
        if ANGLES not in name and not name.startswith(TEXT_ENCODER)
    }
