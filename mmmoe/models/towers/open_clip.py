"""CLIP image encoders of open_clip: patch tokens of one hidden layer, as LLaVA-1.5 takes them."""

from __future__ import annotations

import difflib
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmmoe.models.towers.spec import OpenCLIPTower
from mmmoe.models.towers.tower import ImageTower, file_digest
from mmmoe.paths import resolve

# The text half is not wanted; the smallest that open_clip builds.
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class CLIPTower(ImageTower):
    """A vision transformer whose chosen layer's patch tokens come out before the last normalisation.

    LLaVA-1.5 takes layer -2, LLaVA-MoLE's released code -1.
    """

    def __init__(self, spec: OpenCLIPTower, *, meta: bool = False) -> None:
        super().__init__()
        self.visual = _visual(spec.name)
        blocks = len(self.visual.transformer.resblocks)
        if not -blocks <= spec.layer < blocks:
            raise ValueError(f"tower.layer is {spec.layer}, but {spec.name} has {blocks} layers")
        self.block = spec.layer % blocks
        self.image_size = int(self.visual.image_size[0])
        rows, columns = self.visual.grid_size
        self.num_tokens = int(rows) * int(columns)
        self.channels = int(self.visual.transformer.width)
        self.mean, self.std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        weights = "none"
        if spec.path is not None and not meta:
            path = resolve(spec.path)
            self.visual.load_state_dict(_read(path, spec.name))
            weights = file_digest(path)
        self.key = f"open_clip-{spec.name}-{weights}-layer{self.block}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns patch features (I, P, C)."""
        pixels_ICHW = pixels_ICHW.to(next(self.parameters()).dtype)
        taken = self.visual.forward_intermediates(
            pixels_ICHW, indices=[self.block], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        features_IPC: Tensor = taken["image_intermediates"][0]
        return features_IPC


def _visual(name: str) -> Any:
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise ValueError(f"open_clip knows no architecture {name!r}; the nearest are {near}")
    if "timm_model_name" in config["vision_cfg"] or isinstance(config["vision_cfg"].get("layers"), list):
        raise ValueError(f"{name} is not one of open_clip's own vision transformers; choose a ViT of CLIP")
    quick_gelu = config.get("quick_gelu", False)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], NO_TEXT, quick_gelu=quick_gelu).visual


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """Returns the vision half of a CLIP checkpoint: safetensors, or a plain state dict of torch."""
    if not path.is_file():
        raise ValueError(
            f"tower.path {path} does not exist; put an open_clip checkpoint of {name} there (nothing is downloaded)"
        )
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        if zipfile.is_zipfile(path) and any("/code/" in entry for entry in zipfile.ZipFile(path).namelist()):
            raise ValueError(
                f"{path} is a TorchScript archive, which would run code; save its state_dict() as .safetensors first"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    visual = {key.removeprefix("visual."): tensor.float() for key, tensor in state.items() if key.startswith("visual.")}
    if not visual:
        raise ValueError(f"{path} has no tensor named visual.*; is it an open_clip checkpoint of {name}?")
    return visual
