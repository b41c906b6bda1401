"""A CLIP vision transformer with a ViT-Adapter: the encoder of MM-Interleaved and TextHarmony."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionModel

from mmmoe.models.folder import declared_config, pretrained, state_digest, stated_colours
from mmmoe.models.position_tables import resized
from mmmoe.models.towers.pyramid import PyramidTower
from mmmoe.models.towers.spec import ViTAdapterTowerSpec
from mmmoe.models.towers.tower import CLIP
from mmmoe.models.towers.vit_adapter_network import INTERACTIONS, Interaction, ViTAdapter


class _Vision(CLIPVisionModel):  # type: ignore[misc]  # transformers is not typed
    """The image encoder, read from a folder of a whole CLIP without a word on the rest."""

    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = (r"text_model\.", r".*_projection\.", "logit_scale", r".*position_ids")


class ViTAdapterTower(PyramidTower):
    """The last hidden state of all tokens, not normalised, and maps of 4, 2, 1 and half a cell a patch's side.

    `body` is the transformer and `adapter` what stands beside it, so a stage trains the adapter alone with
    `tower.adapter.*`, as MM-Interleaved does. TextHarmony's training loop sets everything free whose name contains
    "visual", the body and the constant table of positions among it; `tower.*` is as close as this comes.
    """

    def __init__(self, spec: ViTAdapterTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        self.fit = spec.fit
        config = declared_config(spec.path, spec.config, "tower", ("clip", "clip_vision_model"))
        config = getattr(config, "vision_config", config)
        self.image_size = spec.image_size or int(config.image_size)
        patch, layers, self.channels = int(config.patch_size), int(config.num_hidden_layers), int(config.hidden_size)
        heads = spec.heads or int(config.num_attention_heads)
        self._check(spec, patch, layers, heads)
        side = self.image_size // patch
        if spec.path is None or meta:
            config.image_size = self.image_size
            network: Any = _Vision(config)
            if spec.position_std is not None:
                nn.init.normal_(network.embeddings.position_embedding.weight, std=spec.position_std)
            weights = state_digest(network)
        else:
            network, weights = pretrained(_Vision, spec.path, spec.config, "tower.config", "CLIP")
        self.body: Any = network
        self.body.post_layernorm = nn.Identity()  # only the pooled vector went through it
        self._resize_positions(side)
        self.adapter = ViTAdapter(spec, self.channels, heads, side)
        self.group = layers // INTERACTIONS
        self.grid, self.sides = (side, side), (4 * side, *self.adapter.sides)
        self.num_tokens = self.count()
        self.mean, self.std = stated_colours(spec.path, CLIP)
        self.recompute = False
        adapter = state_digest(self.adapter)
        self.key = f"vit_adapter-{weights}-{adapter}-{self.image_size}px-{self.colours}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C): the tokens, then the maps' cells, as `split` takes them apart."""
        adapter = self.adapter
        pixels_ICHW = pixels_ICHW.to(adapter.up.weight.dtype)
        hidden_IPC = self.body.pre_layrnorm(self.body.embeddings(pixels_ICHW))
        largest_ICHW, cells_ISC = self._run(adapter.prior, pixels_ICHW)
        seen = []
        for number, interaction in enumerate(adapter.interactions):
            assert isinstance(interaction, Interaction)
            class_I1C, x_INC = hidden_IPC[:, :1], hidden_IPC[:, 1:]
            x_INC = self._run(interaction.injector, x_INC, adapter.place_N2, cells_ISC)
            hidden_IPC = torch.cat([class_I1C, x_INC], dim=1)
            for layer in self.body.encoder.layers[number * self.group : (number + 1) * self.group]:
                hidden_IPC = layer(hidden_IPC, attention_mask=None)
            seen.append(hidden_IPC[:, 1:])
            cells_ISC = self._run(interaction.extract, cells_ISC, adapter.place_S2, seen[-1])
        return torch.cat([hidden_IPC, *adapter.finish(largest_ICHW, cells_ISC, seen)], dim=1)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes the transformer's layers and each step of the adapter in the backward pass."""
        super().gradient_checkpointing(enabled)
        self.recompute = enabled

    def _resize_positions(self, side: int) -> None:
        """Makes the table of positions that of a grid of this side; nothing happens where it is."""
        embeddings = self.body.embeddings
        table_PC = embeddings.position_embedding.weight.detach()
        resized_PC = resized(table_PC, (side, side), prefix=1, aligned=True)
        embeddings.position_embedding = nn.Embedding(*resized_PC.shape)
        embeddings.position_embedding.weight.data = resized_PC
        embeddings.position_ids = torch.arange(len(resized_PC))[None]
        embeddings.image_size = self.image_size

    def _run(self, step: Callable[..., Any], *inputs: Tensor) -> Any:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(step, *inputs, use_reentrant=False)
        return step(*inputs)

    def _check(self, spec: ViTAdapterTowerSpec, patch: int, layers: int, heads: int) -> None:
        if self.image_size % (2 * patch):
            raise ValueError(
                f"tower.image_size is {self.image_size}, but the smallest map has cells of two patches of {patch} "
                f"pixels; give a multiple of {2 * patch}"
            )
        if layers % INTERACTIONS:
            raise ValueError(f"this CLIP has {layers} layers, which {INTERACTIONS} interactions do not divide evenly")
        value = int(self.channels * spec.value_ratio)
        if value == 0 or value % heads:
            raise ValueError(
                f"tower.value_ratio {spec.value_ratio} of {self.channels} channels makes values {value} wide, which "
                f"{heads} heads do not divide; change tower.heads or tower.value_ratio"
            )
