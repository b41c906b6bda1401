"""The image encoder of Segment Anything (arXiv 2304.02643), and Vary's (2312.06109), which is one with strides."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import SamVisionModel

from mmmoe.models.folder import declared_config, pretrained, state_digest, stated_colours, tensors_in
from mmmoe.models.towers.spec import SamTowerSpec
from mmmoe.models.towers.tower import IMAGENET, ImageTower
from mmmoe.paths import resolve


class _Vision(SamVisionModel):  # type: ignore[misc]  # transformers is not typed
    """The image encoder, read from a folder of a whole model without a word on the rest."""

    _keys_to_ignore_on_load_unexpected = ("prompt_encoder", "mask_decoder", "shared_image_embedding", "strides")


class SamTower(ImageTower):
    """The neck's map, 256 x 64 x 64 at 1024 pixels, or what further convolutions of stride 2 make of it.

    Vary's encoder is SAM-B with two of these, 256 to 512 to 1024 channels; MoVA leaves the second out: 512 x 32 x 32.
    In a folder of Vary the trunk has transformers' names and the convolutions are `strides.0.weight` (Vary's
    `net_2.weight`), `strides.1.weight` (`net_3.weight`).
    """

    def __init__(self, spec: SamTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "tower", ("sam", "sam_vision_model"))
        config = getattr(config, "vision_config", config)
        self.image_size, patch = int(config.image_size), int(config.patch_size)
        if self.image_size % patch:
            raise ValueError(f"tower.config has image_size {self.image_size}, no multiple of patch_size {patch}")
        if spec.path is None or meta:
            network = _Vision(config)
            weights = state_digest(network)
        else:
            network, weights = pretrained(_Vision, spec.path, spec.config, "tower.config", "Segment Anything")
        self.encoder: Any = network.vision_encoder
        self.channels, side = int(config.output_channels), self.image_size // patch
        self.strides = nn.ModuleList()
        for wider in spec.strides:
            self.strides.append(nn.Conv2d(self.channels, wider, 3, stride=2, padding=1, bias=False))
            self.channels, side = wider, (side + 1) // 2
        if spec.strides and spec.path is not None and not meta:
            self._read_strides(spec.path)
        self.grid, self.num_tokens = (side, side), side * side
        self.mean, self.std = stated_colours(spec.path, IMAGENET)
        self.key = f"sam-{weights}-{'-'.join(['neck', *map(str, spec.strides)])}-{self.image_size}px-{self.colours}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns the features (I, P, C) of the map's cells."""
        map_ICHW: Tensor = self.encoder(pixels_ICHW.to(self.encoder.dtype)).last_hidden_state
        for convolution in self.strides:
            map_ICHW = convolution(map_ICHW)
        return map_ICHW.flatten(2).transpose(1, 2)

    def _read_strides(self, path: str) -> None:
        found = tensors_in(resolve(path), [f"strides.{name}" for name in self.strides.state_dict()])
        for name, weight_OIHW in self.strides.state_dict().items():
            stored_OIHW = found[f"strides.{name}"]
            if stored_OIHW.shape != weight_OIHW.shape:
                raise ValueError(
                    f"strides.{name} in {path} has shape {tuple(stored_OIHW.shape)}, but tower.strides asks for "
                    f"{tuple(weight_OIHW.shape)}; correct tower.strides"
                )
            weight_OIHW.copy_(stored_OIHW)
