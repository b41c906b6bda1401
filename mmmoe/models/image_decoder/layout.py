"""Where an image decoder's networks come from: a local Stable Diffusion layout or declared fields, no download."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers  # its classes and those of transformers are loaded at their first use: most runs draw nothing
import torch
import transformers
from torch import Tensor, nn

from mmmoe.models.image_decoder.sampling import scheduler_knows
from mmmoe.models.image_decoder.spec import ImageDecoderSpec
from mmmoe.paths import resolve

CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
WEIGHTS = "diffusion_pytorch_model"
"""How the weights of a network are called in its folder; variants (fp16, non_ema) have further parts in their names."""
MORE_INPUTS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
"""Fields of U-Nets that want more than a context and a step."""


def layout_problems(spec: ImageDecoderSpec) -> Iterator[str]:
    """Yields what a declared folder lacks or has otherwise than declared, each sentence with the key it belongs to."""
    if spec.path is None:
        return
    folder = resolve(spec.path)
    if not folder.is_dir():
        yield f"path: no folder {spec.path}; put a Stable Diffusion layout there (unet/, vae/, scheduler/)"
        return
    for part in used_networks(spec):
        yield from _network_problems(folder / part, part, getattr(spec, part))
    if spec.scheduler is None and not (folder / "scheduler" / "scheduler_config.json").is_file():
        yield f"path: {spec.path} has no scheduler/scheduler_config.json; add it, or declare `scheduler`"


def used_networks(spec: ImageDecoderSpec) -> tuple[str, ...]:
    """Returns the networks that come from the folder, or from fields where there is no folder."""
    return ("unet", "vae") if spec.has_vae else ("unet",)


def layout_files(spec: ImageDecoderSpec) -> list[Path]:
    """Returns the files that hold the weights, as far as they are there."""
    if spec.path is None:
        return []
    return [file for part in used_networks(spec) for file in _weight_files(resolve(spec.path) / part)]


def scheduler_fields(spec: ImageDecoderSpec) -> dict[str, Any]:
    """Returns the configuration of the schedule of noise: as declared, the folder's, or diffusers' own.

    Latents of a VAE have no bounds, so drawing clips them only where that is asked for; diffusers clips otherwise.

    Raises:
        ValueError: The folder has none, or declared fields are unknown to every scheduler.
    """
    if spec.scheduler is None and spec.path is not None:
        fields = _read(resolve(spec.path) / "scheduler" / "scheduler_config.json")
    else:
        fields = spec.scheduler or {}
        unknown = sorted(set(fields) - scheduler_knows())
        if unknown:
            raise ValueError(f"image_decoder.scheduler has fields that no scheduler of diffusers knows: {unknown}")
    return {"clip_sample": not spec.has_vae, **fields}


def build_unet(spec: ImageDecoderSpec, latent_channels: int, extra: int = 0, *, meta: bool = False) -> Any:
    """Returns the U-Net in float32.

    Args:
        spec: the declaration.
        latent_channels: channels that come in and go out.
        extra: further channels that come in; their weights are zero where the others are pretrained.
        meta: shapes alone; no weights are read.

    Raises:
        ValueError: Its folder lacks something, is not what was declared, or the U-Net does not fit.
    """
    fields = _fields(spec, "unet")
    wanted = sorted(field for field in MORE_INPUTS if fields.get(field) is not None)
    if wanted:
        raise ValueError(f"image_decoder.unet wants more than a context and a step ({', '.join(wanted)})")
    channels = [fields.get(name, 4) for name in ("in_channels", "out_channels")]
    if channels != [latent_channels, latent_channels]:
        raise ValueError(
            f"image_decoder.unet has in_channels {channels[0]} and out_channels {channels[1]}, but latents of this "
            f"canvas have {latent_channels} channels; set both to it"
        )
    is_fresh = spec.path is None or meta
    unet = _network(spec, "unet", {**fields, "in_channels": latent_channels + extra} if is_fresh else fields, meta)
    if extra and not is_fresh:
        unet.conv_in = widened(unet.conv_in, extra)
    width = unet.config.cross_attention_dim
    if not any(getattr(block, "has_cross_attention", False) for block in (*unet.down_blocks, *unet.up_blocks)):
        raise ValueError("image_decoder.unet has no block with cross-attention, so it would never read the context")
    if width != spec.perceiver.width:
        raise ValueError(
            f"image_decoder.perceiver.width is {spec.perceiver.width}, but the U-Net reads cross_attention_dim {width}"
        )
    return unet


def build_vae(spec: ImageDecoderSpec, *, meta: bool = False) -> Any | None:
    """Returns the VAE in float32; None where pixels are the latents.

    Raises:
        ValueError: Its folder lacks something, or is not what was declared.
    """
    return _network(spec, "vae", _fields(spec, "vae"), meta) if spec.has_vae else None


def empty_prompt(spec: ImageDecoderSpec) -> Tensor | None:
    """Returns what a layout's text encoder makes of the empty prompt (1, Q, C); None where it has no text encoder."""
    if spec.path is None:
        return None
    folder = resolve(spec.path)
    if not (folder / "tokenizer").is_dir() or not any((folder / "text_encoder").glob("*.safetensors")):
        return None
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder: Any = transformers.CLIPTextModel.from_pretrained(
        folder / "text_encoder", local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        states_1QC: Tensor = encoder(ids).last_hidden_state
    return states_1QC


def widened(convolution: nn.Conv2d, extra: int) -> nn.Conv2d:
    """Returns a convolution with further input channels whose weights are zero, so that it gives what it gave."""
    wider = nn.Conv2d(
        convolution.in_channels + extra,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # torch declares tuples of any length
        padding=convolution.padding,  # type: ignore[arg-type]
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : convolution.in_channels] = convolution.weight
        if wider.bias is not None and convolution.bias is not None:
            wider.bias.copy_(convolution.bias)
    return wider


def _fields(spec: ImageDecoderSpec, part: str) -> dict[str, Any]:
    """Returns the configuration of the U-Net or the VAE: as declared, or as its folder has it."""
    declared: dict[str, Any] | None = getattr(spec, part)
    known = inspect.signature(_class(part)).parameters
    if declared is None:
        found = _read(resolve(spec.path or "") / part / "config.json")
        return {name: value for name, value in found.items() if name in known}
    unknown = sorted(set(declared) - set(known))
    if unknown:
        raise ValueError(f"image_decoder.{part} has fields that {CLASSES[part]} does not know: {unknown}")
    return declared


def _class(part: str) -> Any:
    return getattr(diffusers, CLASSES[part])


def _network(spec: ImageDecoderSpec, part: str, fields: dict[str, Any], meta: bool) -> Any:
    model_class = _class(part)
    if spec.path is None or meta:
        try:
            return model_class(**fields)
        except (ValueError, TypeError) as error:
            raise ValueError(f"image_decoder.{part}: {error}") from error
    folder = resolve(spec.path) / part
    problems = list(_network_problems(folder, part, getattr(spec, part)))
    if problems:
        raise ValueError(f"image_decoder.{'; '.join(problems)}")
    model, report = model_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
    )
    lost = sorted(report["missing_keys"])
    if lost:
        raise ValueError(f"the weights in {folder} lack {len(lost)} tensors, the first are {lost[:5]}")
    return model


def _network_problems(folder: Path, part: str, declared: dict[str, Any] | None) -> Iterator[str]:
    """Yields what is wrong with a network's folder, each sentence with the key it belongs to."""
    if not (folder / "config.json").is_file():
        yield f"path: {folder} holds no network (no config.json); put one there (nothing is downloaded)"
        return
    if not _weight_files(folder):
        pickled = " Its *.bin is a pickle, which would run code: save it as safetensors." * any(folder.glob("*.bin"))
        yield f"path: {folder} has no {WEIGHTS}.safetensors.{pickled}"
    found = {**_defaults(part), **_read(folder / "config.json")}
    differing = [
        f"{name}: declared {_plain(value)!r}, found {_plain(found.get(name))!r}"
        for name, value in (declared or {}).items()
        if _plain(value) != _plain(found.get(name))
    ]
    if differing:
        yield f"{part}: {folder / 'config.json'} differs ({'; '.join(differing)}); correct one, or write null"


def _weight_files(folder: Path) -> list[Path]:
    """Returns a network's weights: one file, or the parts that an index names."""
    single, index = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.safetensors.index.json"
    if single.is_file():
        return [single]
    return sorted(folder.glob(f"{WEIGHTS}-*-of-*.safetensors")) if index.is_file() else []


def _defaults(part: str) -> dict[str, Any]:
    return {name: field.default for name, field in inspect.signature(_class(part)).parameters.items()}


def _plain(value: Any) -> Any:
    """Returns tuples as the lists that JSON makes of them."""
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _read(file: Path) -> dict[str, Any]:
    """Returns the fields of a configuration of diffusers, without what it notes of itself.

    Raises:
        ValueError: There is no such file.
    """
    if not file.is_file():
        raise ValueError(f"image_decoder.path: there is no {file}; put a Stable Diffusion layout there")
    return {name: value for name, value in json.loads(file.read_text()).items() if not name.startswith("_")}
