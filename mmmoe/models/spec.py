"""What a model is made of: families, language model, connectors; towers and a stage's adapters have their own files."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from mmmoe.config.spec import Spec
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec
from mmmoe.models.image_decoder.spec import ImageDecoderSpec
from mmmoe.models.mmfs.spec import SynchroniserSpec
from mmmoe.models.towers.spec import (
    AudioTowerSpec,
    BertTextSpec,
    ImageTowerSpec,
    PyramidTowerSpec,
    SimplePyramidTowerSpec,
    TowerSpec,
    WhisperTowerSpec,
)

RESERVED = frozenset({"base", "lora", "router", "experts"})
"""Parts of parameters' names that mean something else."""
ROUTING_INSTRUCTION = (
    "Some vision models can look at this picture again before the question is answered. Which of them help most? "
    "Name at most three by their letters, separated by commas, or answer 'none'."
)


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


class ConnectorSpec(Spec):
    """A multi-layer perceptron from tower channels to the language model's width (LLaVA-1.5's mm_projector)."""

    kind: Literal["linear", "mlp2x_gelu", "mlp3x_gelu"] = "mlp2x_gelu"
    """Number of linear layers, with exact GELU between them."""
    position_std: float = Field(default=0.0, ge=0.0)
    """Standard deviation of learned position vectors added to the tokens; 0 adds none (as LLaVA-1.5)."""


class QueryConnectorSpec(Spec):
    """Transformer layers in which learned queries read a chunk's features, then a linear layer."""

    queries: int = Field(default=50, ge=1)
    """Tokens of a chunk in the language model."""
    layers: int = Field(default=12, ge=1)
    """Layers: Uni-MoE's code has 12 of both kinds; its paper describes a Q-former of 4."""
    width: int = Field(default=768, ge=1)
    """Width of the layers."""
    heads: int = Field(default=12, ge=1)
    """Attention heads of a layer."""
    inner: int | None = Field(default=None, ge=1)
    """Width of the feed-forward blocks; null means four times `width`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In training, also where the connector is frozen, as in the authors' code."""
    query_std: float = Field(default=0.0, ge=0.0)
    """Standard deviation of fresh queries; Uni-MoE's are zeros."""

    @model_validator(mode="after")
    def _heads_divide(self) -> QueryConnectorSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class AudioQFormerSpec(QueryConnectorSpec):
    """BLIP-2's Q-former with fresh weights."""

    kind: Literal["audio_qformer"] = "audio_qformer"
    cross_attention_every: int = Field(default=2, ge=1)
    """Of so many layers the first reads the features."""


class SpeechDecoderSpec(QueryConnectorSpec):
    """Blocks of a Whisper decoder."""

    kind: Literal["speech_decoder"] = "speech_decoder"
    path: str | None = None
    """Folder of a Whisper model whose decoder has the declared sizes; null means fresh weights."""

    def whisper_fields(self) -> dict[str, Any]:
        """Returns the sizes as Whisper's configuration calls them."""
        return {
            "model_type": "whisper",
            "d_model": self.width,
            "decoder_layers": self.layers,
            "decoder_attention_heads": self.heads,
            "decoder_ffn_dim": self.inner or 4 * self.width,
        }


ChunkConnectorSpec = Annotated[AudioQFormerSpec | SpeechDecoderSpec, Field(discriminator="kind")]
PartSpec = (
    TowerSpec
    | BertTextSpec
    | ConnectorSpec
    | AudioQFormerSpec
    | SpeechDecoderSpec
    | MoVAdapterSpec
    | VisualTokenizerSpec
    | ImageDecoderSpec
)
ExpertName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class FamilySpec(Spec):
    """What every family declares. Adapters are added by the stage that trains them."""

    language: LanguageSpec
    max_positions: int | None = Field(default=None, ge=1)
    """Longest sequence after media are spliced in; longer ones are cut on the right."""

    @model_validator(mode="after")
    def _scratch_needs_type(self) -> FamilySpec:
        config = self.language.config
        if config is not None and "model_type" not in config:
            raise ValueError("language.config needs model_type (for example llama)")
        return self


class LlavaMoleSpec(FamilySpec):
    """LLaVA-MoLE: one tower of images."""

    family: Literal["llava_mole"]
    tower: ImageTowerSpec
    connector: ConnectorSpec = ConnectorSpec()
    image_bounds: bool = True
    """Learned start and end vectors around each image, as in LLaVA-MoLE's release; LLaVA-1.5 has none."""

    def parts(self) -> dict[str, PartSpec]:
        """Returns every tower and connector by its key path."""
        return {"tower": self.tower, "connector": self.connector}


class ImagePart(Spec):
    """How images, and the frames of videos, reach the language model."""

    tower: ImageTowerSpec
    connector: ConnectorSpec = ConnectorSpec()


class SpeechPart(Spec):
    """How speech reaches the language model."""

    tower: WhisperTowerSpec
    connector: ChunkConnectorSpec = SpeechDecoderSpec()


class AudioPart(Spec):
    """How other sound reaches the language model."""

    tower: AudioTowerSpec
    connector: ChunkConnectorSpec = AudioQFormerSpec(dropout=0.1)


class UniMoESpec(FamilySpec):
    """Uni-MoE: a tower and a connector for images, and others for speech and sound."""

    family: Literal["uni_moe"]
    image: ImagePart
    frames: int | None = Field(default=8, ge=1)
    """Frames of a video, which go through the image's tower and connector; null: the model takes no video."""
    speech: SpeechPart | None = None
    audio: AudioPart | None = None

    def parts(self) -> dict[str, PartSpec]:
        """Returns every tower and connector by its key path."""
        declared: dict[str, ImagePart | SpeechPart | AudioPart | None] = {
            "image": self.image, "speech": self.speech, "audio": self.audio
        }  # fmt: skip
        found: dict[str, PartSpec] = {}
        for kind, part in declared.items():
            if part is not None:
                found |= {f"{kind}.tower": part.tower, f"{kind}.connector": part.connector}
        return found


class VisionExpertSpec(Spec):
    """A frozen tower that looks at some images besides the base tower."""

    tower: ImageTowerSpec
    descriptions: list[str] = Field(min_length=1)
    """What it is good at, in a sentence for the routing prompt; all but the first are paraphrases for training."""


class MoVASpec(FamilySpec):
    """MoVA: a base tower, frozen vision experts that are chosen image by image, and the adapter that joins them."""

    family: Literal["mova"]
    tower: ImageTowerSpec
    experts: dict[ExpertName, VisionExpertSpec] = Field(min_length=1, max_length=26)
    """By name; their order is that of letters in the routing prompt and of `routing_weights` in the data."""
    text: BertTextSpec
    """Encodes the questions for the adapter's gate."""
    connector: MoVAdapterSpec = MoVAdapterSpec()
    routing_tokens: int = Field(default=144, ge=1)
    """Tokens of an image while the language model chooses; the side of their square grid is its root."""
    instruction: str = ROUTING_INSTRUCTION
    """First line of the routing prompt. Ours is not the release's: released weights want theirs here."""
    routing_rule: Literal["strict", "released"] = "strict"
    """How the answer is read: letters that stand alone, or as released any capital in the first three parts."""

    @model_validator(mode="after")
    def _names_are_free(self) -> MoVASpec:
        taken = sorted(name for name in self.experts if name in RESERVED or hasattr(dict, name))
        if taken:
            raise ValueError(f"experts cannot be called {', '.join(taken)}; choose other names")
        return self

    @model_validator(mode="after")
    def _glance_is_square(self) -> MoVASpec:
        if math.isqrt(self.routing_tokens) ** 2 != self.routing_tokens:
            raise ValueError(f"routing_tokens is {self.routing_tokens}; make it a square (144 = 12 x 12)")
        return self

    def parts(self) -> dict[str, PartSpec]:
        """Returns every tower and connector by its key path."""
        experts = {f"experts.{name}.tower": expert.tower for name, expert in self.experts.items()}
        return {"tower": self.tower, **experts, "text": self.text, "connector": self.connector}


class TextHarmonySpec(FamilySpec):
    """TextHarmony: a language model that reads images, and an image decoder that draws what it says."""

    family: Literal["text_harmony"]
    tower: PyramidTowerSpec
    connector: VisualTokenizerSpec = VisualTokenizerSpec()
    synchroniser: SynchroniserSpec | None = SynchroniserSpec()
    """Lets the language model look at the maps of earlier images again; null: it sees their tokens alone."""
    levels: list[Annotated[int, Field(ge=0, le=3)]] = Field(default=[1, 2, 3], min_length=1)
    """Which of the tower's four maps the synchroniser looks at, the largest being 0."""
    decoder: ImageDecoderSpec
    image_weight: float = Field(default=10.0, ge=0.0)
    """Of the images' loss (mean over their elements, then over all samples) beside the text's."""

    def parts(self) -> dict[str, PartSpec]:
        """Returns every tower and connector by its key path."""
        within = {"tower.tower": self.tower.tower} if isinstance(self.tower, SimplePyramidTowerSpec) else {}
        return {"tower": self.tower, **within, "connector": self.connector, "decoder": self.decoder}


ModelSpec = Annotated[LlavaMoleSpec | UniMoESpec | MoVASpec | TextHarmonySpec, Field(discriminator="family")]
"""The declaration of a model, whatever its family."""

MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def model_spec(declared: Any) -> ModelSpec:
    """Returns the declaration that a plain mapping holds, for example one from a checkpoint.

    Raises:
        ValueError: The family is unknown, or keys are.
    """
    return MODEL.validate_python(declared)
