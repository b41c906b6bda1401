"""CLIP image encoders of open_clip: patch tokens of one hidden layer, as LLaVA-1.5 takes them."""

from __future__ import annotations

import difflib
import json
import math
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from torch import Tensor

from mmmoe.models.towers.clip_checkpoint import fitted, read_visual
from mmmoe.models.towers.spec import OpenCLIPTower
from mmmoe.models.towers.tower import ImageTower, file_digest
from mmmoe.paths import resolve

# The text half is not wanted; the smallest that open_clip builds.
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


class CLIPTower(ImageTower):
    """A vision transformer whose chosen layer's patch tokens come out, before the last normalisation unless asked for.

    LLaVA-1.5 takes layer -2, LLaVA-MoLE's released code -1; MoVA takes BiomedCLIP's -1, normalised. Where a stage
    trains the tower, layers above the chosen one and the projection get no gradient.
    """

    def __init__(self, spec: OpenCLIPTower, *, meta: bool = False) -> None:
        super().__init__()
        model, colours = _architecture(spec)
        self.visual = _visual(spec, model)
        blocks, self.grid, self.channels = _sizes(self.visual)
        if not -blocks <= spec.layer < blocks:
            raise ValueError(f"tower.layer is {spec.layer}, but {spec.name} has {blocks} layers")
        self.block, self.norm = spec.layer % blocks, spec.norm
        self.image_size = int(self.visual.image_size[0])
        self.num_tokens = math.prod(self.grid)
        self.mean, self.std = tuple(colours["mean"]), tuple(colours["std"])
        weights = "none"
        if spec.path is not None and not meta:
            path = resolve(spec.path)
            state = read_visual(path, spec.name, allow_pickle=spec.allow_pickle)
            self.visual.load_state_dict(fitted(state, self.visual, self.grid, path))
            weights = file_digest(path)
        size = f"-{self.image_size}px" if spec.image_size is not None else ""
        # A name that is not built in does not tell the colours.
        shown = f"-{self.colours}" if spec.config is not None else ""
        self.key = f"open_clip-{spec.name}-{weights}-layer{self.block}{'-norm' if spec.norm else ''}{size}{shown}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns patch features (I, P, C)."""
        taken = self.visual.forward_intermediates(
            pixels_ICHW.to(next(self.parameters()).dtype),
            indices=[self.block],
            stop_early=True,
            normalize_intermediates=self.norm,
            intermediates_only=True,
            output_fmt="NLC",
        )
        features_IPC: Tensor = taken["image_intermediates"][0]
        return features_IPC

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each block in the backward pass."""
        self.visual.set_grad_checkpointing(enabled)


def _architecture(spec: OpenCLIPTower) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of the model, and the mean and std of its colours."""
    stated: Any = spec.config
    if isinstance(stated, str):
        file = resolve(stated)
        if not file.is_file():
            raise ValueError(f"tower.config {stated} does not exist; put an open_clip_config.json there")
        stated = json.loads(file.read_text())
    elif stated is None:
        stated = open_clip.get_model_config(spec.name)
        if stated is None:
            near = difflib.get_close_matches(spec.name, open_clip.list_models(), n=3)
            raise ValueError(f"open_clip knows no architecture {spec.name!r}; the nearest are {near}")
    model = stated.get("model_cfg", stated)
    missing = [key for key in ("embed_dim", "vision_cfg") if key not in model]
    if missing:
        raise ValueError(f"tower.config lacks {', '.join(missing)}; it is no open_clip_config.json of a CLIP")
    return model, OPENAI | stated.get("preprocess_cfg", {})


def _visual(spec: OpenCLIPTower, model: dict[str, Any]) -> Any:
    """Returns the vision half with fresh weights, of the declared size."""
    vision = dict(model["vision_cfg"])
    trunk = vision.get("timm_model_name")
    if isinstance(vision.get("layers"), list):
        raise ValueError(f"{spec.name} is not one of open_clip's own vision transformers; choose a ViT of CLIP")
    if trunk is not None and ":" in trunk:
        raise ValueError(f"{spec.name} has the trunk {trunk!r}, which timm would download; name one that timm has")
    if trunk is not None:
        vision["timm_model_pretrained"] = False
    elif spec.image_size is not None:
        _check_size(spec, int(vision.get("patch_size", 16)))
        vision["image_size"] = spec.image_size
    visual = open_clip.CLIP(model["embed_dim"], vision, NO_TEXT, quick_gelu=model.get("quick_gelu", False)).visual
    if trunk is not None:
        if not all(hasattr(visual.trunk, part) for part in ("blocks", "patch_embed", "pos_embed", "set_input_size")):
            raise ValueError(f"{spec.name}'s trunk {trunk} is no vision transformer; choose a ViT of CLIP")
        if spec.image_size is not None:
            _check_size(spec, int(visual.trunk.patch_embed.patch_size[0]))
            visual.set_input_size((spec.image_size, spec.image_size))
    return visual


def _check_size(spec: OpenCLIPTower, patch: int) -> None:
    if spec.image_size is not None and spec.image_size % patch:
        raise ValueError(f"tower.image_size is {spec.image_size}, no multiple of {spec.name}'s patch of {patch} pixels")


def _sizes(visual: Any) -> tuple[int, tuple[int, int], int]:
    """Returns the number of layers, the grid and the width."""
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        blocks, grid, width = trunk.blocks, trunk.patch_embed.grid_size, trunk.embed_dim
    else:
        blocks, grid, width = visual.transformer.resblocks, visual.grid_size, visual.transformer.width
    return len(blocks), (int(grid[0]), int(grid[1])), int(width)
