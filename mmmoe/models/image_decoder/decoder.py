"""TextHarmony's image decoder (arXiv 2407.16364): a diffusion network that draws what the language model has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmoe.models.connectors.perceiver import PerceiverResampler
from mmmoe.models.image_decoder.canvas import Canvas
from mmmoe.models.image_decoder.context import ContextProjection, EmptyContext, PreviousMaps
from mmmoe.models.image_decoder.glyphs import GlyphCells
from mmmoe.models.image_decoder.layout import build_unet, build_vae, empty_prompt, scheduler_fields
from mmmoe.models.image_decoder.masking import image_loss
from mmmoe.models.image_decoder.sampling import check_sampler, noise_schedule, sample, sampler_of
from mmmoe.models.image_decoder.spec import ImageDecoderSpec
from mmmoe.models.mmfs.unet import UNetSynchroniser


class ImageDecoder(nn.Module):
    """The context before an image, a perceiver that reads it, and a latent diffusion network that reads its tokens.

    Every trained weight takes part in every loss, also of no image. Departures from the authors: the loss of an image
    is its own (their one mean counts images that are input, too), and an image's noise does not depend on others.
    """

    def __init__(
        self, spec: ImageDecoderSpec, width: int, channels: int, sides: Sequence[int], *, meta: bool = False
    ) -> None:
        """Loads what the declaration names and draws the rest.

        Args:
            spec: the declaration.
            width: D, of the language model.
            channels: of the maps of an image.
            sides: of these maps.
            meta: shapes alone; no weights are read.

        Raises:
            ValueError: The layout lacks something, or the parts do not fit together.
        """
        super().__init__()
        self.spec, self.fields = spec, scheduler_fields(spec)
        self.schedule = noise_schedule(self.fields, "image_decoder.scheduler")
        check_sampler(spec.sampler, self.fields)
        self.canvas = Canvas(build_vae(spec, meta=meta), (spec.height, spec.width), spec.patch)
        extra = spec.glyphs.channels if spec.glyphs is not None else 0
        self.unet: Any = build_unet(spec, self.canvas.latent_channels, extra, meta=meta)
        self.synchroniser = None
        if spec.synchroniser is not None:
            around = (self.unet.config, channels, sides, self.canvas.grid)
            self.synchroniser = UNetSynchroniser(spec.synchroniser, *around)
        self.context = ContextProjection(width)
        self.perceiver = PerceiverResampler(spec.perceiver, width)
        self.empty = EmptyContext(spec.perceiver.queries, spec.perceiver.width)
        prompt_1QC = None if meta else empty_prompt(spec)
        if prompt_1QC is not None and prompt_1QC.shape == self.empty.tokens_1QC.shape:
            self.empty.tokens_1QC.data.copy_(prompt_1QC)
        size, grid = self.canvas.size, self.canvas.grid
        self.glyphs = None if spec.glyphs is None else GlyphCells(spec.glyphs, width, size, grid)

    def loss(
        self,
        hidden_ILD: Tensor,
        mask_IL: Tensor,
        canvas: Tensor,
        previous: PreviousMaps | None = None,
        glyph_IN: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss (I,) of each image, 0 where the context says nothing.

        Args:
            hidden_ILD: contexts, the latest position first (`reversed_context`).
            mask_IL: True at a context's positions.
            canvas: the images: pixels (I, 3, H, W) in -1..1, or what `canvas.encode` makes of them (I, P, C).
            previous: maps of the image before each.
            glyph_IN: places in the context of the letters to be written, in reading order; -1 fills up.
        """
        images = len(hidden_ILD)
        if images == 0:
            hidden_ILD = hidden_ILD.new_zeros(1, 1, self.context.projection.in_features)
            mask_IL = torch.ones(1, 1, dtype=torch.bool, device=hidden_ILD.device)
            canvas, previous, glyph_IN = hidden_ILD.new_zeros(1, *self.canvas.input_shape), None, None
        with torch.no_grad():
            clean_ICHW = self.canvas.latents(canvas)
            noise_ICHW = torch.randn_like(clean_ICHW)
            step_I = torch.randint(self.schedule.config.num_train_timesteps, (len(clean_ICHW),), device=canvas.device)
            noisy_ICHW = self.schedule.add_noise(clean_ICHW, noise_ICHW, step_I)
            is_blind_I = torch.rand(len(clean_ICHW), device=canvas.device) < self.spec.unconditional
        context_IQC, letters_ICHW = self._condition(hidden_ILD, mask_IL, glyph_IN, is_blind_I)
        predicted_ICHW = self._predict(noisy_ICHW, step_I, context_IQC, letters_ICHW, previous)
        wanted_ICHW = self._wanted(clean_ICHW, noise_ICHW, step_I)
        return image_loss((predicted_ICHW - wanted_ICHW) ** 2, mask_IL)[:images]

    @torch.no_grad()
    def draw(
        self,
        hidden_ILD: Tensor,
        mask_IL: Tensor,
        previous: PreviousMaps | None = None,
        glyph_IN: Tensor | None = None,
        *,
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Returns pictures (I, 3, H, W) in 0..1.

        Args:
            hidden_ILD: contexts, as in `loss`.
            mask_IL: True at a context's positions.
            previous: maps of the image before each.
            glyph_IN: places of letters, as in `loss`.
            seeds: one an image; the same seed and context draw the same picture, whatever else is drawn beside it.
            steps: of the sampler; None: as declared.
            guidance: how far to go from nothing towards the context; None: as declared; 1: the context alone.

        Raises:
            ValueError: There are not as many seeds as images.
        """
        images, guidance = len(hidden_ILD), self.spec.guidance if guidance is None else guidance
        if len(seeds) != images:
            raise ValueError(f"{images} images are to be drawn with {len(seeds)} seeds; give one an image")
        if images == 0:
            return hidden_ILD.new_zeros(0, *self.canvas.input_shape).float()
        was_training = self.training
        self.eval()
        try:
            is_blind_I = torch.zeros(images, dtype=torch.bool, device=hidden_ILD.device)
            if guidance != 1.0:
                hidden_ILD, mask_IL = hidden_ILD.repeat(2, 1, 1), mask_IL.repeat(2, 1)
                glyph_IN = None if glyph_IN is None else glyph_IN.repeat(2, 1)
                previous = None if previous is None else previous.repeat(2)
                is_blind_I = torch.cat([is_blind_I, ~is_blind_I])
            context_IQC, letters_ICHW = self._condition(hidden_ILD, mask_IL, glyph_IN, is_blind_I)

            def predict(noisy_ICHW: Tensor, step: Tensor) -> Tensor:
                if guidance == 1.0:
                    return self._predict(noisy_ICHW, step, context_IQC, letters_ICHW, previous)
                both_ICHW = self._predict(noisy_ICHW.repeat(2, 1, 1, 1), step, context_IQC, letters_ICHW, previous)
                told_ICHW, blind_ICHW = both_ICHW.chunk(2)
                return blind_ICHW + guidance * (told_ICHW - blind_ICHW)

            shape = (self.canvas.latent_channels, *self.canvas.grid)
            scheduler = sampler_of(self.spec.sampler, self.fields)
            device = hidden_ILD.device
            return self.canvas.pixels(sample(predict, scheduler, shape, steps or self.spec.steps, seeds, device))
        finally:
            self.train(was_training)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes the blocks of the U-Net and the perceiver's layers in the backward pass."""
        self.perceiver.gradient_checkpointing(enabled)
        if self.synchroniser is not None:
            self.synchroniser.gradient_checkpointing = enabled
        if enabled:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def _condition(
        self, hidden_ILD: Tensor, mask_IL: Tensor, glyph_IN: Tensor | None, is_blind_I: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens that the U-Net reads, and the map of letters; blind images are told nothing by either."""
        told_IQC: Tensor = self.perceiver(self.context(hidden_ILD), mask_IL)
        context_IQC: Tensor = self.empty(told_IQC, is_blind_I)
        if self.glyphs is None:
            return context_IQC, None
        if glyph_IN is None:
            glyph_IN = torch.full((len(hidden_ILD), 1), -1, device=hidden_ILD.device)
        letters_ICHW: Tensor = self.glyphs(hidden_ILD, glyph_IN)
        return context_IQC, letters_ICHW.masked_fill(is_blind_I[:, None, None, None], 0.0)

    def _predict(
        self,
        noisy_ICHW: Tensor,
        step_I: Tensor,
        context_IQC: Tensor,
        letters_ICHW: Tensor | None,
        previous: PreviousMaps | None,
    ) -> Tensor:
        """Returns what the U-Net makes of noisy latents, float32."""
        input_ICHW = noisy_ICHW.to(context_IQC.dtype)
        if letters_ICHW is not None:
            input_ICHW = torch.cat([input_ICHW, letters_ICHW], dim=1)
        predicted_ICHW: Tensor
        if self.synchroniser is None:
            predicted_ICHW = self.unet(input_ICHW, step_I, context_IQC, return_dict=False)[0]
        else:
            maps, mask_I = (None, None) if previous is None else (previous.maps, previous.mask_I)
            predicted_ICHW = self.synchroniser(self.unet, input_ICHW, step_I, context_IQC, maps, mask_I)
        return predicted_ICHW.float()

    def _wanted(self, clean_ICHW: Tensor, noise_ICHW: Tensor, step_I: Tensor) -> Tensor:
        """Returns what the U-Net should have predicted."""
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            velocity_ICHW: Tensor = self.schedule.get_velocity(clean_ICHW, noise_ICHW, step_I)
            return velocity_ICHW
        return noise_ICHW if kind == "epsilon" else clean_ICHW
