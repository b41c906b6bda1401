"""TextHarmony (arXiv 2407.16364): one language model that reads images and says what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.config.ids import CANVAS_VIEW, IMAGE_ID, LETTERS_VIEW
from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
from mmmoe.models.drawing import Placed, first_columns, letter_places, maps_before, number_images, placed
from mmmoe.models.image_decoder.context import PreviousMaps, reversed_context
from mmmoe.models.image_decoder.decoder import ImageDecoder
from mmmoe.models.mmfs.language import ImageMemory
from mmmoe.models.output import ModelOutput
from mmmoe.models.splice import Splice
from mmmoe.models.spliced import Media, SplicedModel
from mmmoe.models.text_head import TextHead
from mmmoe.models.towers.pyramid import PyramidTower
from mmmoe.models.towers.tower import Tower

IMAGE = 1
"""Number of images among the kinds of positions (`Splice.kind_BT`)."""
START_STD = 0.02


class TextHarmony(SplicedModel):
    """Tower, visual tokenizer, language model with a synchroniser, text head with one more token, image decoder.

    An image takes one position that begins it and those of its tokens. Images in answers are targets: the language
    model learns to begin them, the decoder to draw them from the hidden states up to there.
    """

    kinds = ("image",)

    def __init__(
        self,
        tower: PyramidTower,
        connector: VisualTokenizer,
        language: nn.Module,
        memory: ImageMemory | None,
        levels: Sequence[int],
        decoder: ImageDecoder,
        max_positions: int,
        image_weight: float,
    ) -> None:
        """Puts the parts together.

        Args:
            tower: gives tokens and a pyramid of maps.
            connector: makes image tokens of them.
            language: the language model, its synchroniser in it.
            memory: what the synchroniser reads; None where there is none.
            levels: which maps of the pyramid the language model sees, by their place.
            decoder: draws images.
            max_positions: longest sequence.
            image_weight: of the images' loss beside the text's.
        """
        super().__init__(language, max_positions)
        self.tower = tower
        self.connector = connector
        self.start_D = nn.Parameter(torch.randn(self.language.config.hidden_size) * START_STD)
        self.text_head = TextHead(self.language.get_output_embeddings(), 1)
        self.decoder = decoder
        self.memory = memory
        self.levels = tuple(levels)
        self.image_weight = image_weight
        self.canvas = decoder.canvas.size
        self._maps: list[Tensor] = []

    @property
    def views(self) -> tuple[str, ...]:
        """Images as the tower sees them, and those to be drawn as the decoder's VAE does, if it has one."""
        return ("image",) if self.decoder.canvas.vae is None else ("image", CANVAS_VIEW)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From hidden states to logits, the last of them that of the position that begins an image."""
        return self.text_head

    def tower_of(self, view: str) -> Tower:
        """Returns the tower, or what encodes images that are to be drawn."""
        return self.decoder.canvas if view == CANVAS_VIEW else self.tower

    def positions(self, kind: str) -> int:
        """Returns the positions of an image: the one that begins it, and its tokens."""
        return 1 + self.connector.num_tokens

    def connect(self, kind: str, features: Tensor) -> Tensor:
        """Returns an image's positions (I, 1 + Q, D) and remembers its maps for those who look at them again."""
        tokens_IQD, self._maps = self.connector(*self.tower.split(features))
        return torch.cat([self.start_D.to(tokens_IQD.dtype).expand(len(tokens_IQD), 1, -1), tokens_IQD], dim=1)

    @property
    def start_id(self) -> int:
        """The id that begins an image: behind those of the language model."""
        vocabulary: int = self.language.get_output_embeddings().out_features
        return vocabulary

    def stops(self, eos_id: int | None) -> frozenset[int]:
        """Returns the ids that end a text: the tokenizer's, and the one that begins an image."""
        return super().stops(eos_id) | {self.start_id}

    def begin(self, input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> None:
        """Numbers the batch's images and forgets those of the last one."""
        self._number_BT = number_images(input_ids_BT, IMAGE_ID)
        self._maps = []

    def read(self, spliced: Splice, task_B: Tensor | None) -> None:
        """Sets the gate of Slide-LoRA and shows the language model the images' maps."""
        super().read(spliced, task_B)
        if self.memory is None:
            return
        images = self._placed(spliced)
        if not len(images.row_I):
            self.memory.forget()
            return
        seen_ISC = torch.cat([self._maps[level] for level in self.levels], dim=1)
        maps_BNSC, column_BN = images.by_row(seen_ISC, len(spliced.mask_BT))
        # Seen from the first of its tokens on: the position that begins an image is what it is drawn from.
        first_BN = spliced.position_BT.gather(1, column_BN.clamp(min=0)) + 1
        sides = [self.tower.sides[level] for level in self.levels]
        self.memory.show(maps_BNSC, sides, first_BN.masked_fill(column_BN < 0, -1))

    def finished(
        self,
        output: ModelOutput,
        spliced: Splice,
        hidden_BTD: Tensor,
        media: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
    ) -> ModelOutput:
        """Returns the output with the loss of the images that each row is to draw, the mean over their elements."""
        images = self._placed(spliced)
        labels_BT = spliced.labels_BT
        is_drawn_I = torch.zeros_like(images.row_I, dtype=torch.bool)
        if labels_BT is not None:
            is_drawn_I = labels_BT[images.row_I, images.column_I] == self.start_id
        drawn, canvas = images.chosen(is_drawn_I), features.get(CANVAS_VIEW, media.get(CANVAS_VIEW))
        given = 0 if canvas is None else len(canvas)
        if len(drawn.row_I) != given:
            raise ValueError(
                f"answers of the batch begin {len(drawn.row_I)} images, but {given} are given to be drawn "
                f"({CANVAS_VIEW}); the data of a model that draws brings each of them"
            )
        previous = maps_before(self._maps, images.before()[is_drawn_I])
        # A batch without such images draws nothing, by which every parameter of the decoder still takes part.
        loss_I = self._drawing(drawn, spliced, hidden_BTD, previous, media, canvas)
        loss_B = torch.zeros(len(hidden_BTD), dtype=torch.float32, device=hidden_BTD.device)
        loss_B = loss_B.index_add(0, drawn.row_I, loss_I)
        return replace(
            output,
            auxiliary=output.auxiliary | {"image": loss_B},
            auxiliary_layers=output.auxiliary_layers | {"image": loss_B.detach()[:, None]},
            weights=output.weights | {"image": self.image_weight},
        )

    @torch.no_grad()
    def draw(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        media: Media = None,
        features: Media = None,
        task_B: Tensor | None = None,
        *,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
    ) -> Tensor:
        """Returns the image (B, 3, H, W), values 0 to 1, that each prompt asks for; row b is a function of seeds[b].

        Raises:
            ValueError: A prompt is longer than the model's sequences, or there are not as many seeds as prompts.
        """
        was_training = self.training
        self.eval()
        try:
            prompt = self._prompt(input_ids_BT, attention_mask_BT, media, features, positions=1)
            # A learned gate reads the prompt's words, as in training, and not the position that begins the image.
            self.read(prompt, task_B)
            spliced = self._begun(prompt)
            hidden_BTD = self._decode(spliced)
            row_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
            last_B = torch.full_like(row_B, hidden_BTD.shape[1] - 1)
            said_BTD = self._said(hidden_BTD, spliced)
            context_ILD, mask_IL = reversed_context(said_BTD, row_B, first_columns(spliced, row_B), last_B)
            letters_IL = (media or {}).get(LETTERS_VIEW)
            glyph_IL = None if letters_IL is None else letter_places(letters_IL, spliced, row_B, last_B)
            number_B = self._placed(spliced).last(len(hidden_BTD))
            previous = maps_before(self._maps, number_B) if (number_B >= 0).any() else None
            return self.decoder.draw(
                context_ILD, mask_IL, previous, glyph_IL, steps=steps, guidance=guidance, seeds=seeds
            )
        finally:
            self.train(was_training)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes layers in the backward pass, the decoder's too."""
        super().gradient_checkpointing(enabled)
        self.decoder.gradient_checkpointing(enabled)
        if self.connector.perceiver is not None:
            self.connector.perceiver.gradient_checkpointing(enabled)

    def _said(self, hidden_BTD: Tensor, spliced: Splice) -> Tensor:
        """Returns what images are drawn from: hidden states, and what the sequence itself holds where that is asked."""
        if not self.decoder.spec.embedded_context:
            return hidden_BTD
        return hidden_BTD + F.layer_norm(spliced.embeddings_BTD, hidden_BTD.shape[-1:]).to(hidden_BTD.dtype)

    def _placed(self, spliced: Splice) -> Placed:
        return placed(spliced, self._number_BT, IMAGE)

    def _drawing(
        self,
        drawn: Placed,
        spliced: Splice,
        hidden_BTD: Tensor,
        previous: PreviousMaps,
        media: Mapping[str, Tensor],
        canvas: Tensor | None,
    ) -> Tensor:
        """Returns the loss of each image that is to be drawn (I,)."""
        first_I = first_columns(spliced, drawn.row_I)
        said_BTD = self._said(hidden_BTD, spliced)
        context_ILD, mask_IL = reversed_context(said_BTD, drawn.row_I, first_I, drawn.column_I)
        letters_IL = media.get(LETTERS_VIEW)
        glyph_IL = None
        if letters_IL is not None and len(letters_IL):
            glyph_IL = letter_places(letters_IL, spliced, drawn.row_I, drawn.column_I)
        if canvas is None:
            canvas = hidden_BTD.new_zeros(0, *self.decoder.canvas.input_shape)
        return self.decoder.loss(context_ILD, mask_IL, canvas, previous, glyph_IL)

    def _begun(self, prompt: Splice) -> Splice:
        """Returns left-padded prompts with the position that begins an image behind them."""
        batch = len(prompt.mask_BT)
        start_B1D = self.start_D.to(prompt.embeddings_BTD.dtype).expand(batch, 1, -1)
        return Splice(
            torch.cat([prompt.embeddings_BTD, start_B1D], dim=1),
            F.pad(prompt.mask_BT, (0, 1), value=True),
            torch.cat([prompt.position_BT, prompt.mask_BT.sum(1, keepdim=True)], dim=1),
            None,
            F.pad(prompt.kind_BT, (0, 1)),
            F.pad(prompt.origin_BT, (0, 1), value=-1),
            F.pad(prompt.is_first_BT, (0, 1)),
        )
