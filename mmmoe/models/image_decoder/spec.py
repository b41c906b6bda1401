"""How an image decoder is declared: its networks, its canvas, what it reads and how it draws."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec
from mmmoe.models.connectors.perceiver_spec import PerceiverSpec
from mmmoe.models.mmfs.spec import UNetSynchroniserSpec


class GlyphSpec(Spec):
    """The letters of a text to be written, each laid on its cell of the canvas.

    Ours, not TextHarmony's: a small network that is trained for minutes writes words only if each place of the canvas
    is told its letter. What is laid there is what the language model made of the letter.
    """

    pitch: int = Field(default=16, ge=1)
    """Pixels from one letter to the next; letters stand in one line in the middle of the canvas."""
    channels: int = Field(default=16, ge=1)
    """Channels of the map that joins the latents at the U-Net's input."""


class ImageDecoderSpec(Spec):
    """TextHarmony's image decoder: the context before an image, 77 queries that read it, a latent diffusion network."""

    kind: Literal["image_decoder"] = "image_decoder"
    path: str | None = None
    """Folder of a Stable Diffusion layout: unet/ and vae/ with config.json and safetensors weights, and scheduler/;
    null means fresh weights of the declared fields."""
    unet: dict[str, Any] | None = None
    """Fields of diffusers' UNet2DConditionModel; with a path its own, so that `mmmoe plan` needs no weights."""
    vae: dict[str, Any] | None = None
    """Fields of diffusers' AutoencoderKL, likewise; null without a path: pixels are latents. It never trains."""
    scheduler: dict[str, Any] | None = None
    """Fields of diffusers' schedulers by which training adds noise; null: the folder's, without one diffusers' own."""
    height: int = Field(default=512, ge=1)
    """Rows of the canvas."""
    width: int = Field(default=512, ge=1)
    """Columns of the canvas."""
    patch: int = Field(default=1, ge=1)
    """Without a VAE: so many rows and columns of pixels are folded into the channels of one latent."""
    perceiver: PerceiverSpec = PerceiverSpec(
        queries=77, layers=1, width=1024, heads=16, inner=3072, cross_attention_every=1, qk_norm=False
    )
    """Its queries read the context and take the place of Stable Diffusion's text tokens."""
    unconditional: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of training images drawn from the learned embedding of nothing, which guidance needs."""
    synchroniser: UNetSynchroniserSpec | None = UNetSynchroniserSpec()
    """Looks at the maps of the image before, beside the U-Net; null draws without."""
    embedded_context: bool = False
    """Add the input embeddings, normalised, to the hidden states that an image is drawn from: a small language model
    says the same letter in another way after each prompt. Ours; the release takes hidden states alone."""
    glyphs: GlyphSpec | None = None
    """Tell each place of the canvas its letter; null as in the paper."""
    sampler: str = "DDIMScheduler"
    """The scheduler of diffusers that draws."""
    steps: int = Field(default=30, ge=1)
    """Its steps; TextHarmony draws with 30."""
    guidance: float = Field(default=7.5, ge=0.0)
    """Classifier-free guidance; 1 is the conditional prediction alone."""

    @property
    def has_vae(self) -> bool:
        """Says whether latents are a VAE's."""
        return self.path is not None or self.vae is not None

    @model_validator(mode="after")
    def _is_complete(self) -> ImageDecoderSpec:
        if self.path is None and self.unet is None:
            raise ValueError("give a path to a Stable Diffusion layout, or the fields of a unet for fresh weights")
        if self.has_vae and self.patch != 1:
            raise ValueError(f"patch is {self.patch}, but a VAE makes the latents; leave it out")
        return self
