"""LLaVA-MoLE (arXiv 2401.16160): LLaVA-1.5 whose feed-forward blocks carry routed LoRA experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.models.adapters import AdapterSpec, adapt
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.generation import greedy
from mmmoe.models.lora.routing import Positions, Routed, holding, recording, with_routing
from mmmoe.models.lora.spec import LoRASpec
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.output import ModelOutput
from mmmoe.models.splice import Splice, splice
from mmmoe.models.targets import target_nll
from mmmoe.models.towers.tower import Tower

MODALITIES = ("text", "image")


class LlavaMole(nn.Module):
    """Tower, connector, image bounds and language model; `add_adapters` makes it a LLaVA-MoLE."""

    kinds: tuple[str, ...] = ("image",)
    """The kinds of media it takes."""

    def __init__(
        self, tower: Tower, connector: nn.Module, bounds: ImageBounds | None, language: nn.Module, max_positions: int
    ) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.bounds = bounds
        self.language: Any = language
        self.max_positions = max_positions
        self.adapters: list[AdapterSpec] = []
        self.routed: list[Routed] = []

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.language.parameters()).device
        return device

    def add_adapters(self, specs: list[AdapterSpec], place: ExpertPlace = ALONE) -> None:
        """Puts adapters in; what is there already stays. `place` says which whole experts are held here."""
        for spec in specs:
            tape = adapt(self, spec, place)
            if tape is not None:
                assert not isinstance(spec, LoRASpec)
                self.routed.append(Routed(spec.balance, tape))
            self.adapters.append(spec)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each decoder layer in the backward pass instead of keeping its activations."""
        # transformers renamed these two in 5.2x and warns at the old names.
        prefix = "activation" if hasattr(self.language, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(self.language, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.language, f"{prefix}_checkpointing_disable")()

    def tower_of(self, kind: str) -> Tower:
        """Returns the frozen encoder of a kind of media."""
        assert kind in self.kinds, f"{kind} is none of {self.kinds}"
        return self.tower

    def positions(self, kind: str) -> int:
        """Returns the positions that a placeholder of a kind takes in the language model."""
        return self.tower_of(kind).num_tokens + (2 if self.bounds is not None else 0)

    @torch.no_grad()
    def encode(self, kind: str, media: Tensor) -> Tensor:
        """Returns the frozen tower's features (I, P, C) of pixels (I, C, H, W)."""
        features_IPC: Tensor = self.tower_of(kind)(media)
        return features_IPC

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        labels_BT: Tensor | None = None,
        media: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> ModelOutput:
        """Returns per-sample losses. Ids hold IMAGE_ID where an image goes; images come as `media["image"]`, pixels
        (I, C, H, W), or as `features["image"]`, the tower's (I, P, C).

        A batch without images or without samples runs through every trained part all the same, with weight zero, so
        that processes stay in step when parameters are sharded.
        """
        num_samples = input_ids_BT.shape[0]
        if num_samples == 0:
            input_ids_BT = input_ids_BT.new_zeros(1, 2)
            attention_mask_BT = torch.ones_like(input_ids_BT, dtype=torch.bool)
            labels_BT = None
        spliced = self._splice(input_ids_BT, attention_mask_BT, labels_BT, media, features)
        with recording(self.routed, spliced.prompt()) as rows:
            hidden_BTD = self._decode(spliced)
        nll_B, num_targets_B = target_nll(hidden_BTD, spliced.labels_BT, self.language.get_output_embeddings())
        output = ModelOutput(nll_B, num_targets_B)
        if self.routed:
            positions = Positions(spliced.mask_BT, spliced.is_image_BT.long(), MODALITIES)
            output = with_routing(output, self.routed, rows, positions)
        return output.cut(num_samples)

    @torch.no_grad()
    def logits(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        media: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns the logits (B, T, V) of every spliced position."""
        spliced = self._splice(input_ids_BT, attention_mask_BT, None, media, features)
        with recording(self.routed, spliced.prompt()):
            logits_BTV: Tensor = self.language.get_output_embeddings()(self._decode(spliced))
        return logits_BTV

    @torch.no_grad()
    def generate(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        media: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
        *,
        max_new_tokens: int,
        eos_id: int | None,
        pad_id: int = 0,
    ) -> list[list[int]]:
        """Returns the greedy continuation of each row, without the end token."""
        was_training = self.training
        self.eval()
        try:
            spliced = self._splice(input_ids_BT, attention_mask_BT, None, media, features, left=True)
            if spliced.mask_BT.shape[1] > self.max_positions:
                raise ValueError(
                    f"a prompt of {spliced.mask_BT.shape[1]} positions is longer than the model's "
                    f"{self.max_positions}; shorten it or raise max_positions"
                )
            with holding(self.routed, spliced.prompt()):
                return greedy(self.language, spliced, max_new_tokens, eos_id, pad_id)
        finally:
            self.train(was_training)

    def _splice(
        self,
        input_ids_BT: Tensor,
        mask_BT: Tensor,
        labels_BT: Tensor | None,
        media: Mapping[str, Tensor] | None,
        features: Mapping[str, Tensor] | None,
        left: bool = False,
    ) -> Splice:
        mask_BT = mask_BT.bool()
        embed = self.language.get_input_embeddings()
        text_BTD = embed(input_ids_BT.masked_fill(~mask_BT | (input_ids_BT < 0), 0))
        features_IPC, pixels_ICHW = (features or {}).get("image"), (media or {}).get("image")
        if features_IPC is None and pixels_ICHW is not None and pixels_ICHW.shape[0]:
            features_IPC = self.encode("image", pixels_ICHW)
        if features_IPC is not None and features_IPC.shape[0]:
            tokens_IPD = self._image_tokens(features_IPC)
        else:
            unseen = text_BTD.new_zeros(1, self.tower.num_tokens, self.tower.channels, dtype=torch.float32)
            untouched_1PD = self._image_tokens(unseen).to(text_BTD.dtype) * 0.0
            text_BTD = text_BTD + untouched_1PD.sum()
            tokens_IPD = untouched_1PD[:0]
        # A prompt must not lose its end, so generation (left) cuts nothing.
        limit = None if left else self.max_positions
        return splice(text_BTD, input_ids_BT, mask_BT, tokens_IPD, labels_BT, max_positions=limit, left=left)

    def _image_tokens(self, features_IPC: Tensor) -> Tensor:
        tokens_IPD: Tensor = self.connector(features_IPC)
        return tokens_IPD if self.bounds is None else self.bounds(tokens_IPD)

    def _decode(self, spliced: Splice) -> Tensor:
        result = self.language.get_decoder()(
            inputs_embeds=spliced.embeddings_BTD,
            attention_mask=spliced.mask_BT,
            position_ids=spliced.position_BT,
            use_cache=False,
        )
        hidden_BTD: Tensor = result.last_hidden_state
        return hidden_BTD
