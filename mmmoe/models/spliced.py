"""What families share whose media become tokens among the text's: losses, logits and answers of a spliced batch.

A family says which kinds of media it takes, which tower encodes a kind and how features become tokens; adapters,
batches without a kind, routing and generation are the same for all and stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.config.ids import IMAGE_ID
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.adapters import adapt
from mmmoe.models.beams import beam_search
from mmmoe.models.generation import greedy
from mmmoe.models.lora.routing import Positions, Routed, holding, recording, with_routing
from mmmoe.models.lora.slide import SlideGate
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.output import ModelOutput, VisionStatistics
from mmmoe.models.recompute import recompute_layers
from mmmoe.models.splice import Items, Splice, splice
from mmmoe.models.targets import target_nll
from mmmoe.models.towers.tower import Tower

Media = Mapping[str, Tensor] | None
"""Tensors by kind, the items of a batch stacked in reading order."""


class SplicedModel(nn.Module):
    """A language model that reads the tokens of media in the places of their placeholders."""

    kinds: tuple[str, ...]
    """Kinds of media the model takes."""
    frames: int = 0
    """Frames of a video; 0 where the model takes none."""
    canvas: tuple[int, int] | None = None
    """Height and width of the images that the model draws; None where it draws none."""

    def __init__(self, language: nn.Module, max_positions: int) -> None:
        super().__init__()
        self.language: Any = language
        self.max_positions = max_positions
        self.adapters: list[AdapterSpec] = []
        self.routed: list[Routed] = []
        self.slide: SlideGate | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """Ways the model looks at media, each through one tower: a kind, or a further view of it (`image.sam`)."""
        return self.kinds

    @property
    def sizes(self) -> tuple[str, ...]:
        """What `positions` can be asked: the kinds, and ways to look at them that take other numbers of positions."""
        return self.kinds

    def tower_of(self, view: str) -> Tower:
        """Returns the encoder behind a view."""
        raise TypeError(f"{type(self).__name__} has no towers")

    def connect(self, kind: str, features: Tensor) -> Tensor:
        """Returns the tokens (I, M, D) of a kind's features."""
        raise TypeError(f"{type(self).__name__} has no connectors")

    def positions(self, kind: str) -> int:
        """Returns how many positions of the language model a placeholder of this kind takes (M)."""
        raise TypeError(f"{type(self).__name__} has no connectors")

    def begin(self, input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> None:
        """Is told each batch before its media are looked at."""

    def read(self, spliced: Splice, task_B: Tensor | None) -> None:
        """Is shown each batch as the language model will read it, and the task of each row (`config/ids.TASKS`).

        Tells the gate of a Slide-LoRA, which may read the prompt's words: an image's hundreds of positions would drown
        them in the mean.
        """
        if self.slide is not None:
            self.slide.turn(task_B, spliced.embeddings_BTD, spliced.prompt() & (spliced.kind_BT == 0))

    def finished(
        self,
        output: ModelOutput,
        spliced: Splice,
        hidden_BTD: Tensor,
        media: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
    ) -> ModelOutput:
        """Returns the output with what a family asks of the hidden states besides the next token."""
        return output

    def stops(self, eos_id: int | None) -> frozenset[int]:
        """Returns the ids that end an answer."""
        return frozenset() if eos_id is None else frozenset([eos_id])

    @property
    def start_id(self) -> int | None:
        """The id that begins an image, of a model that draws: what it should say where an answer has one."""
        return None

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From hidden states to logits."""
        head: Callable[[Tensor], Tensor] = self.language.get_output_embeddings()
        return head

    def looked(self, input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> VisionStatistics | None:
        """Returns what the vision experts did in the batch that was just spliced; None where there are none."""
        return None

    def tokens(self, kind: str, media: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Items | None:
        """Returns the tokens of a batch's items of a kind; None where it has no such items."""
        found = self.seen(kind, media, features)
        return None if found is None else self.connect(kind, found)

    def untouched(self, kind: str) -> Tensor:
        """Returns tokens of one item that is not there, through all that a real one would go through."""
        return self.connect(kind, self.blank(kind))

    def blank(self, view: str) -> Tensor:
        """Returns features of one item, for batches that have none; what is in them changes no result.

        A trained tower makes them, so that all processes call it equally often when parameters are sharded.
        """
        tower = self.tower_of(view)
        if tower.is_trained:
            return tower.encode(torch.zeros(1, *tower.input_shape, device=self.device))
        return torch.zeros(1, tower.num_tokens, tower.channels, device=self.device)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of positions, numbered as in `Splice.kind_BT`."""
        return ("text", *self.kinds)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.language.parameters()).device
        return device

    def add_adapters(self, specs: list[AdapterSpec], place: ExpertPlace = ALONE) -> None:
        """Puts adapters in; what is there already stays. `place` says which whole experts are held here."""
        for spec in specs:
            routed = adapt(self, spec, place)
            if routed is not None:
                self.routed.append(routed)
            self.adapters.append(spec)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each layer of what trains in the backward pass instead of keeping its activations."""
        recompute_layers(self.language, enabled)
        for module in self.modules():
            if isinstance(module, Tower):
                module.gradient_checkpointing(enabled and module.is_trained)

    def encode(self, view: str, media: Tensor) -> Tensor:
        """Returns the tower's features of a view's raw inputs, with a graph where a stage trains that tower."""
        return self.tower_of(view).encode(media)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        labels_BT: Tensor | None = None,
        media: Media = None,
        features: Media = None,
        task_B: Tensor | None = None,
    ) -> ModelOutput:
        """Returns per-sample losses. Ids hold placeholders; items come as raw inputs (media) or as their features.

        A batch without items of a kind or without samples runs through every trained part all the same, with weight
        zero, so that processes stay in step when parameters are sharded.
        """
        num_samples = input_ids_BT.shape[0]
        if num_samples == 0:
            input_ids_BT = input_ids_BT.new_zeros(1, 2)
            attention_mask_BT = torch.ones_like(input_ids_BT, dtype=torch.bool)
            labels_BT, task_B = None, input_ids_BT.new_zeros(1)
        spliced = self._splice(input_ids_BT, attention_mask_BT, labels_BT, media, features)
        self.read(spliced, task_B)
        with recording(self.routed, spliced.prompt(), spliced.mask_BT) as rows:
            hidden_BTD = self._decode(spliced)
        nll_B, num_targets_B = target_nll(hidden_BTD, spliced.labels_BT, self.head)
        output = ModelOutput(nll_B, num_targets_B, vision=self.looked(input_ids_BT, media or {}))
        if self.routed:
            positions = Positions(spliced.mask_BT, spliced.kind_BT, self.modalities)
            output = with_routing(output, self.routed, rows, positions)
        if self.slide is not None:
            output = self.slide.with_loss(output)
        return self.finished(output, spliced, hidden_BTD, media or {}, features or {}).cut(num_samples)

    @torch.no_grad()
    def logits(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        media: Media = None,
        features: Media = None,
        task_B: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits (B, T, V) of every spliced position."""
        spliced = self._splice(input_ids_BT, attention_mask_BT, None, media, features)
        self.read(spliced, task_B)
        with recording(self.routed, spliced.prompt(), spliced.mask_BT):
            return self.head(self._decode(spliced))

    @torch.no_grad()
    def generate(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        media: Media = None,
        features: Media = None,
        task_B: Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_id: int | None,
        pad_id: int = 0,
        beams: int = 1,
        repetition_penalty: float = 1.0,
    ) -> list[list[int]]:
        """Returns the greedy continuation of each row, or the best of several beams, without the end token."""
        was_training = self.training
        self.eval()
        try:
            spliced = self._prompt(input_ids_BT, attention_mask_BT, media, features)
            self.read(spliced, task_B)
            with holding(self.routed, spliced.prompt()):
                if beams == 1 and repetition_penalty == 1.0:
                    return greedy(self.language, self.head, spliced, max_new_tokens, self.stops(eos_id), pad_id)
                return beam_search(
                    self.language, self.head, spliced, beams, max_new_tokens, self.stops(eos_id), repetition_penalty
                )
        finally:
            self.train(was_training)

    def draw(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the image (B, 3, H, W), values 0 to 1, that each prompt asks for."""
        raise TypeError(f"{type(self).__name__} draws no images; a TextHarmony does (models/text_harmony)")

    def _prompt(
        self, input_ids_BT: Tensor, mask_BT: Tensor, media: Media, features: Media, positions: int = 0
    ) -> Splice:
        """Returns spliced prompts, padded on the left, after which `positions` have to find room."""
        spliced = self._splice(input_ids_BT, mask_BT, None, media, features, left=True)
        length = spliced.mask_BT.shape[1] + positions
        if length > self.max_positions:
            raise ValueError(
                f"a prompt of {length} positions is longer than the model's {self.max_positions}; shorten it or raise "
                "max_positions"
            )
        return spliced

    def _splice(
        self,
        input_ids_BT: Tensor,
        mask_BT: Tensor,
        labels_BT: Tensor | None,
        media: Media,
        features: Media,
        left: bool = False,
    ) -> Splice:
        mask_BT = mask_BT.bool()
        embed = self.language.get_input_embeddings()
        text_BTD = embed(input_ids_BT.masked_fill(~mask_BT | (input_ids_BT < 0), 0))
        self.begin(input_ids_BT, media or {})
        tokens: dict[str, Items] = {}
        for kind in self.kinds:
            found = self.tokens(kind, media or {}, features or {})
            if found is None:
                untouched_IMD = self.untouched(kind).to(text_BTD.dtype) * 0.0
                text_BTD, found = text_BTD + untouched_IMD.sum(), untouched_IMD[:0]
            tokens[kind] = found
        # A prompt must not lose its end, so generation (left) cuts nothing.
        limit = None if left else self.max_positions
        spliced = splice(text_BTD, input_ids_BT, mask_BT, tokens, labels_BT, max_positions=limit, left=left)
        if spliced.labels_BT is None or self.start_id is None:
            return spliced
        return replace(spliced, labels_BT=spliced.labels_BT.masked_fill(spliced.labels_BT == IMAGE_ID, self.start_id))

    def seen(self, view: str, media: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the features of a view's items, or None if there are none."""
        if view in features:
            return features[view] if len(features[view]) else None
        return self.encode(view, media[view]) if view in media and len(media[view]) else None

    def _decode(self, spliced: Splice) -> Tensor:
        result = self.language.get_decoder()(
            inputs_embeds=spliced.embeddings_BTD,
            attention_mask=spliced.mask_BT,
            position_ids=spliced.position_BT,
            use_cache=False,
        )
        hidden_BTD: Tensor = result.last_hidden_state
        return hidden_BTD
