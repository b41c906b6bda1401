"""MoVA (arXiv 2404.13046): a base tower looks at each image, and so do the vision experts that its question needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.config.ids import GLANCE_VIEW, IMAGE_ID, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_downsample import glance
from mmmoe.models.lora.switch import RowSwitch
from mmmoe.models.output import VisionStatistics
from mmmoe.models.splice import Items
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.bert import BertText
from mmmoe.models.towers.tower import ImageTower


class MoVA(SplicedModel):
    """Base tower, vision experts, text encoder of the gate, MoV-Adapter and language model.

    With the media come the routing (I, E) of each image, 1 where an expert looks at it, and the ids (I, L) of its
    questions. Features of an expert are those of the images routed to it alone, in their order. A row of -1 is a
    routing pass: the adapter without experts, pooled to `routing_tokens` positions.
    """

    kinds = ("image",)

    def __init__(
        self,
        tower: ImageTower,
        experts: Mapping[str, ImageTower],
        text: BertText,
        connector: MoVAdapter,
        language: nn.Module,
        max_positions: int,
        routing_tokens: int,
    ) -> None:
        super().__init__(language, max_positions)
        self.tower = tower
        self.vision_experts = nn.ModuleDict(experts)
        self.text = text
        self.connector = connector
        self.routing_tokens = routing_tokens
        self.experts = tuple(experts)
        self.switch = RowSwitch()
        self.gates: list[Tensor] = []
        """Of each block of the adapter, the experts' weights (I, E) in the last batch."""

    @property
    def views(self) -> tuple[str, ...]:
        """The base tower's view of an image, and one an expert."""
        return ("image", *(f"image.{name}" for name in self.experts))

    @property
    def sizes(self) -> tuple[str, ...]:
        """An image, and an image in a routing pass."""
        return ("image", GLANCE_VIEW)

    def tower_of(self, view: str) -> ImageTower:
        """Returns the base tower or an expert."""
        name = view.partition(".")[2]
        # By attribute: an engine that shards parameters takes towers out of the tree and leaves them as attributes.
        tower: ImageTower = getattr(self.vision_experts, name) if name else self.tower
        return tower

    def positions(self, kind: str) -> int:
        """Returns the positions of an image, or of one in a routing pass."""
        return self.routing_tokens if kind == GLANCE_VIEW else self.connector.num_tokens

    def tokens(self, kind: str, media: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Items | None:
        """Returns the tokens of the images, fewer of those in a routing pass."""
        base_IPC = self.seen(kind, media, features)
        if base_IPC is None:
            return None
        routing_IE = media.get(ROUTING_VIEW)
        if routing_IE is None or QUESTION_VIEW not in media:
            raise ValueError(
                f"images of a MoVA come with {ROUTING_VIEW} and {QUESTION_VIEW}; see data/routed_images.py"
            )
        maps = {name: self.seen(f"{kind}.{name}", media, features) for name in self.experts}
        tokens_IMD: Tensor = self.connector(
            base_IPC,
            {name: map_IPC for name, map_IPC in maps.items() if map_IPC is not None},
            (routing_IE == 1).to(base_IPC.dtype),
            self.text(media[QUESTION_VIEW]),
            # By name: ZeRO 3's hooks hand on copies of lists that come by place.
            gates=self.gates,
        )
        is_glance_I = (routing_IE < 0).all(dim=1)
        if not is_glance_I.any():
            return tokens_IMD
        few_IMD = glance(tokens_IMD, self.connector.token_grid, self.routing_tokens)
        return [few_IMD[i] if is_glance else tokens_IMD[i] for i, is_glance in enumerate(is_glance_I.tolist())]

    def untouched(self, kind: str) -> Tensor:
        """Returns tokens of one image that is not there, seen by no expert."""
        nothing_1E = torch.zeros(1, len(self.experts), device=self.device)
        word_1L = torch.full((1, 1), int(self.text.pad_id == 0), device=self.device)
        tokens_1MD: Tensor = self.connector(self.blank(kind), {}, nothing_1E, self.text(word_1L))
        return tokens_1MD

    def begin(self, input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> None:
        """Tells the adapters for routing passes which rows are such, and forgets the last batch's gates."""
        self.switch.turn(_routing_rows(input_ids_BT, media))
        self.gates.clear()

    @torch.no_grad()
    def looked(self, input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> VisionStatistics:
        """Returns how often each expert was routed and its weights; zeros for a batch without images."""
        samples, blocks = len(input_ids_BT), len(self.connector.blocks)
        routing_IE = media.get(ROUTING_VIEW)
        if routing_IE is None or not self.gates:
            routing_IE = torch.zeros(0, len(self.experts), dtype=torch.int8)
            weight_ILE = torch.zeros(0, blocks, len(self.experts), device=self.device)
        else:
            # Gradient checkpointing may run blocks again later; what they add then is not read.
            weight_ILE = torch.stack(self.gates[:blocks], dim=1).float()
        routing_IE = routing_IE.to(weight_ILE.device)
        images_B = (input_ids_BT == IMAGE_ID).sum(1).to(weight_ILE.device)
        sample_I = torch.arange(samples, device=weight_ILE.device).repeat_interleave(
            images_B, output_size=len(routing_IE)
        )

        def by_sample(values: Tensor) -> Tensor:
            return values.new_zeros(samples, *values.shape[1:]).index_add_(0, sample_I, values)

        routed_IE = (routing_IE == 1).long()
        counted_I = (routing_IE >= 0).all(dim=1).long()
        enriched_I = routed_IE.amax(dim=1)
        counts = (by_sample(counted_I), by_sample(enriched_I), by_sample(routed_IE))
        return VisionStatistics(self.experts, *counts, by_sample(weight_ILE))


def _routing_rows(input_ids_BT: Tensor, media: Mapping[str, Tensor]) -> Tensor:
    """Returns (B,) whether a row is a routing pass."""
    if ROUTING_VIEW not in media:
        return torch.zeros(len(input_ids_BT), dtype=torch.bool, device=input_ids_BT.device)
    is_image_BT = input_ids_BT == IMAGE_ID
    # One more that is none, for placeholders without an image, of which splice tells.
    is_glance_I = F.pad((media[ROUTING_VIEW] < 0).all(dim=1), (0, 1))
    number_BT = (is_image_BT.reshape(-1).cumsum(0).view_as(input_ids_BT) - 1).clamp(0, len(is_glance_I) - 1)
    return (is_image_BT & is_glance_I[number_BT]).any(dim=1)
