"""The synchroniser in a language model: in some layers, text looks at the maps of the images before it.

Letters as in attention.py: N images of a row, S cells of an image's maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mmmoe.models.mmfs.attention import Grid, MultiImageAttention
from mmmoe.models.mmfs.spec import SynchroniserSpec

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers known to be h + attention(norm(h)), then h + mlp(norm(h)), and nothing else."""


def visibility(first_BN: Tensor, position_BT: Tensor, begin_BT: Tensor | None = None) -> Tensor:
    """Returns which images a position sees (B, T, N): those that began after its dialogue did, and not after it.

    Args:
        first_BN: position of the first token of an image; -1 where there is no image.
        position_BT: positions of the text, or (1, T) if all rows have the same.
        begin_BT: where the dialogue of a position begins, in rows that hold several; None: each row is one.
    """
    first_B1N, position_BT1 = first_BN[:, None], position_BT[..., None]
    visible_BTN = (first_B1N >= 0) & (first_B1N <= position_BT1)
    return visible_BTN if begin_BT is None else visible_BTN & (first_B1N > begin_BT[..., None])


@dataclass(frozen=True)
class Shown:
    """The images of a batch, as the layers look at them."""

    maps_BNSC: Tensor
    sides: tuple[Grid, ...]
    first_BN: Tensor
    values: dict[int, Tensor] = field(default_factory=dict)
    """Of each layer, what it reads of the maps, kept while an answer is written token by token."""


class ImageMemory:
    """Shared by a family, which knows the images of its batch, and the layers that look at them."""

    def __init__(self) -> None:
        self.shown: Shown | None = None

    def show(self, maps_BNSC: Tensor, sides: Sequence[int], first_BN: Tensor) -> None:
        """Says what the next forward sees, and all that follow until told otherwise.

        Args:
            maps_BNSC: of each image its square maps, flattened one after the other; rows with fewer images are filled
                up with anything finite.
            sides: of the maps.
            first_BN: position from which on an image is seen, -1 for those that fill up.

        Raises:
            ValueError: The shapes do not fit.
        """
        cells = sum(side * side for side in sides)
        if maps_BNSC.shape[:2] != first_BN.shape or maps_BNSC.shape[2] != cells:
            raise ValueError(
                f"maps {tuple(maps_BNSC.shape)} do not fit first {tuple(first_BN.shape)} and {cells} cells of maps "
                f"with the sides {', '.join(map(str, sides))}"
            )
        self.shown = Shown(maps_BNSC, tuple((side, side) for side in sides), first_BN) if first_BN.numel() else None

    def forget(self) -> None:
        """Says that there are no images."""
        self.shown = None


class SynchronisedLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is not typed
    """h + attention(norm(h)), then h + tanh(g) MMFS(norm(h), norm(maps)), then h + mlp(norm(h)); g is 0 at first.

    A position that sees no image gets what MMFS gives for none, also when the whole batch has none: its answer does not
    depend on who else is in the batch. (The authors skip MMFS in a batch without images.)
    """

    def __init__(
        self, base: nn.Module, attention: MultiImageAttention, memory: ImageMemory, channels: int, config: Any
    ) -> None:
        super().__init__()
        self.base: Any = base
        self.memory = memory
        self.norm1 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm2 = nn.RMSNorm(channels, eps=config.rms_norm_eps)
        self.attn = attention
        self.gate = nn.Parameter(torch.zeros(1))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer on the images shown now.

        They are an argument, for gradient checkpointing runs `forward` again later, when others may be shown.
        """
        return super().__call__(*args, shown=self.memory.shown, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        shown: Shown | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = False,
        **kwargs: Any,
    ) -> Tensor:
        """Returns the next hidden states; arguments are those of transformers' layers, and the images."""
        base, hidden_BTD = self.base, hidden_states
        attended_BTD, _ = base.self_attn(
            hidden_states=base.input_layernorm(hidden_BTD), position_ids=position_ids, use_cache=use_cache, **kwargs
        )
        hidden_BTD = hidden_BTD + attended_BTD
        is_decoding = bool(use_cache) and not torch.is_grad_enabled()
        hidden_BTD = hidden_BTD + self._looked(hidden_BTD, shown, position_ids, is_decoding).to(hidden_BTD.dtype)
        next_BTD: Tensor = hidden_BTD + base.mlp(base.post_attention_layernorm(hidden_BTD))
        return next_BTD

    def _looked(self, hidden_BTD: Tensor, shown: Shown | None, position_BT: Tensor | None, is_decoding: bool) -> Tensor:
        gate = self.gate.tanh()
        # A frozen language model may be in a shorter format than what trains.
        query_BTD = self.norm1(hidden_BTD.to(gate.dtype))
        if shown is None:
            # The norms take part too, so that no weight is without a gradient.
            none: Tensor = query_BTD[:1, :1] + self.norm2(gate.new_zeros(1, self.norm2.normalized_shape[0])).sum()
            return gate * (self.attn.blind() + 0.0 * none)
        assert position_BT is not None, "transformers' models give their layers positions"
        # In a beam search each row stands there several times, one after the other: more queries of the same images.
        rows = len(shown.first_BN)
        if len(query_BTD) % rows:
            raise RuntimeError(
                f"a layer sees {len(query_BTD)} rows, but was shown the images of {rows}; show those of each batch, or "
                "forget them"
            )
        visible_BTN = visibility(shown.first_BN, position_BT.expand(query_BTD.shape[:2]).reshape(rows, -1))
        together_BTD = query_BTD.reshape(rows, -1, query_BTD.shape[-1])
        found_BTD = self.attn.read(together_BTD, self._values(shown, is_decoding), shown.sides, visible_BTN)
        return gate * found_BTD.view_as(query_BTD)

    def _values(self, shown: Shown, is_decoding: bool) -> Tensor:
        """Returns what can be read of the maps; kept while decoding, where it would be most of a token's work."""
        if is_decoding and id(self) in shown.values:
            return shown.values[id(self)]
        value_BSHW = self.attn.values(self.norm2(shown.maps_BNSC.to(self.gate.dtype)))
        if is_decoding:
            shown.values[id(self)] = value_BSHW
        return value_BSHW


def add_synchroniser(language: Any, spec: SynchroniserSpec, channels: int, sides: Sequence[int]) -> ImageMemory:
    """Puts a synchroniser into every n-th layer of a language model, in place; returns what shows it images.

    Args:
        language: a causal language model of transformers.
        spec: the declaration.
        channels: of the maps.
        sides: of the maps that it looks at.

    Raises:
        ValueError: The model's layers are of another kind.
    """
    config, memory = language.config, ImageMemory()
    layers = language.get_decoder().layers
    for number in range(0, len(layers), spec.every):
        layer = layers[number]
        if type(layer).__name__ not in LAYERS:
            raise ValueError(
                f"a synchroniser goes into {', '.join(LAYERS)}, this language model has {type(layer).__name__}; "
                "choose a model of these"
            )
        attention = MultiImageAttention(
            config.hidden_size,
            channels,
            spec.value_width or channels,
            [(side, side) for side in sides],
            (spec.base_side, spec.base_side),
            heads=spec.heads,
            points=spec.points,
            offset_range=spec.offset_range,
            max_images=spec.max_images,
        )
        layers[number] = SynchronisedLayer(layer, attention, memory, channels, config)
    return memory
