"""Weights of a released CLIP with ViT-Adapter under our names: MM-Interleaved's and TextHarmony's encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmmoe.models.position_tables import resized

WHOLE_MODEL = (
    "visual_tokenizer.encoder.vision_model.",
    "visual_tokenizer.encoder.base_model.model.vision_model.",
)
"""Where a released model keeps its encoder; the second, where peft has wrapped it."""
POSITIONS = "embeddings.position_embedding.weight"
ABSENT = ("embeddings.position_ids", "post_layernorm.")
"""What the release stores and never reads."""
OF_THE_ADAPTER = {"adapter_level_embed": "prior.level_3C", "adapter_spm": "prior", "adapter_up": "up"}
OF_AN_ATTENTION = {
    "attention_weights": "weight_proj",
    "output_proj": "out_proj",
    "sampling_offsets": "offset_proj",
    "value_proj": "value_proj",
}
OF_AN_MLP = {"fc1": "up_proj", "dwconv": "depthwise", "fc2": "down_proj"}
NORMS = {
    "injector": {"query_norm": "patch_norm", "feat_norm": "map_norm"},
    "extractors": {"query_norm": "map_norm", "feat_norm": "patch_norm", "ffn_norm": "mlp_norm"},
}


def own_name(released: str) -> str:
    """Returns our name of a parameter; `released` is its official one, from the vision model on."""
    first, *rest = released.split(".")
    if first in OF_THE_ADAPTER:
        return ".".join(["adapter", OF_THE_ADAPTER[first], *rest])
    if first != "adapter_interactions":
        return f"body.{released}"
    number, step, *rest = rest
    place = [step]
    if step == "extractor":
        place = ["extractors", "0"]
    elif step == "extra_extractors":
        place, rest = ["extractors", str(int(rest[0]) + 1)], rest[1:]
    return ".".join(["adapter.interactions", number, *place, *_inside(place[0], rest)])


def from_released(state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Returns a tower's weights by our names, from its official state dict or that of the whole model.

    Args:
        state: tensors by their official names.
        grid: rows and columns of the tower's patches; a table of positions of another size is interpolated
            bicubically, corners not aligned, as TextHarmony's loading does (a fresh CLIP's corners are aligned).

    Raises:
        ValueError: There is no such encoder in it, or one whose LoRA has not been merged.
    """
    part = {
        name.removeprefix(prefix): x for prefix in WHOLE_MODEL for name, x in state.items() if name.startswith(prefix)
    }
    part = part or dict(state)
    if "adapter_level_embed" not in part:
        raise ValueError(
            f"no ViT-Adapter among these weights: neither adapter_level_embed nor {WHOLE_MODEL[0]}adapter_level_embed "
            "is there"
        )
    if any("lora_" in name for name in part):
        raise ValueError("the encoder's LoRA stands beside its weights; merge it into them first")
    own = {own_name(name): tensor for name, tensor in part.items() if not name.startswith(ABSENT)}
    own[f"body.{POSITIONS}"] = resized(part[POSITIONS], grid, prefix=1)
    return own


def _inside(step: str, rest: list[str]) -> list[str]:
    part, *rest = rest
    if part == "attn":
        return ["attention", OF_AN_ATTENTION[rest[0]], *rest[1:]]
    if part == "ffn":
        # The release's convolution is one module deeper: ffn.dwconv.dwconv.weight.
        return ["mlp", OF_AN_MLP[rest[0]], rest[-1]]
    return ["scale_C"] if part == "gamma" else [NORMS[step][part], *rest]
