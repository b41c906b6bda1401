"""A small image decoder, what it reads, and Stable Diffusion layouts of its size."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from mmmoe.models.connectors.perceiver_spec import PerceiverSpec
from mmmoe.models.image_decoder.context import PreviousMaps
from mmmoe.models.image_decoder.decoder import ImageDecoder
from mmmoe.models.image_decoder.spec import GlyphSpec, ImageDecoderSpec
from mmmoe.models.mmfs.spec import UNetSynchroniserSpec

WIDTH, CHANNELS, SIDES = 12, 6, (4, 2)
HEIGHT, COLUMNS = 8, 24
PERCEIVER = PerceiverSpec(
    queries=5, layers=1, width=16, heads=2, inner=20, cross_attention_every=1, qk_norm=False, query_std=1.0
)
SYNCHRONISER = UNetSynchroniserSpec(heads=2, points=2, value_width=8)
GLYPHS = GlyphSpec(pitch=4, channels=3)
SCHEDULER = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}
VAE = {
    "block_out_channels": [4, 8], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 2, "norm_num_groups": 2, "scaling_factor": 0.5,
}  # fmt: skip


def unet_fields(latent_channels=12):
    return {
        "in_channels": latent_channels, "out_channels": latent_channels, "block_out_channels": [8, 16],
        "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip


def spec_of(**changed):
    """Returns the declaration of a decoder whose latents are cells of 2 x 2 pixels."""
    declared = {
        "unet": unet_fields(), "height": HEIGHT, "width": COLUMNS, "patch": 2, "perceiver": PERCEIVER,
        "scheduler": SCHEDULER, "glyphs": GLYPHS, "synchroniser": SYNCHRONISER, "steps": 3, "guidance": 2.0,
    }  # fmt: skip
    return ImageDecoderSpec(**{**declared, **changed})


def vae_spec(**changed):
    """Returns the declaration of a decoder whose latents are a VAE's."""
    return spec_of(**{"unet": unet_fields(2), "vae": VAE, "patch": 1, **changed})


def decoder_of(spec, *, stir=True):
    """Returns a decoder; `stir` moves every weight, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    decoder = ImageDecoder(spec, WIDTH, CHANNELS, SIDES)
    with torch.no_grad():
        for parameter in decoder.parameters() if stir else []:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return decoder


def inputs_of(images=3, seed=1):
    """Returns contexts, their mask, pixels, maps of the image before (the last has none) and letters."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(images, 6, WIDTH, generator=draw)
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[torch.arange(images) % 3][:, None]
    pixels = torch.rand(images, 3, HEIGHT, COLUMNS, generator=draw) * 2 - 1
    maps = [torch.randn(images, side * side, CHANNELS, generator=draw) for side in SIDES]
    has_previous = torch.arange(images) < images - 1
    glyph = torch.tensor([[3, 2, 1], [2, 1, -1], [-1, -1, -1]])[torch.arange(images) % 3]
    return hidden * mask[..., None], mask, pixels, PreviousMaps(maps, has_previous), glyph


def save_layout(folder, seed=3):
    """Writes a Stable Diffusion layout as diffusers does, and returns its networks."""
    torch.manual_seed(seed)
    unet, vae = UNet2DConditionModel(**unet_fields(2)), AutoencoderKL(**VAE)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(prediction_type="v_prediction", num_train_timesteps=40).save_pretrained(folder / "scheduler")
    return unet, vae


def layout_spec(folder, **changed):
    return vae_spec(**{"path": str(folder), "unet": None, "vae": None, "scheduler": None, **changed})
