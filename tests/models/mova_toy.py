"""A MoVA of toy size: towers that are linear maps of cells, a BERT of width 16, the two-layer Llama of width 32."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from models_toy import CONFIG
from torch import Tensor, nn

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec
from mmmoe.models.families.mova import MoVA
from mmmoe.models.language import build_language
from mmmoe.models.spec import ScratchLanguage
from mmmoe.models.towers.bert import BertText
from mmmoe.models.towers.spec import BertTextSpec
from mmmoe.models.towers.tower import ImageTower

BERT = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"near": ((4, 4), 12, 8), "far": ((2, 3), 20, 12), "wide": ((8, 8), 6, 16)}
"""Grid, channels and side of the input of each expert."""
SIDES = {"image": 16} | {f"image.{name}": side for name, (_, _, side) in EXPERTS.items()}
GLANCE = (-1,) * len(EXPERTS)
"""Routing of an image in a routing pass."""
FULL, FEW = 16, 4
"""Positions of an image, and of one in a routing pass."""
WORDS = 8
"""Ids of a row of questions."""


class GridTower(ImageTower):
    """A linear map of the mean colours of cells."""

    def __init__(self, grid, channels, side, key):
        super().__init__()
        self.grid, self.num_tokens, self.channels = grid, grid[0] * grid[1], channels
        self.image_size, self.key, self.mean, self.std = side, key, (0.5,) * 3, (0.5,) * 3
        self.linear = nn.Linear(3, channels)
        self.freeze()

    def forward(self, pixels_ICHW):
        return self.linear(nn.functional.adaptive_avg_pool2d(pixels_ICHW, self.grid).flatten(2).transpose(1, 2))


def toy_mova(*, seed=0, layers=2, top_k=3, max_positions=128, gate="learned"):
    """Returns the toy, no weight of whose adapter is at the zero that it starts from."""
    torch.manual_seed(seed)
    tower = GridTower((8, 8), 64, 16, "base")
    experts = {name: GridTower(*declared, name) for name, declared in EXPERTS.items()}
    text = BertText(BertTextSpec(config=BERT, max_tokens=WORDS))
    language = build_language(ScratchLanguage(config=CONFIG | {"initializer_range": 0.2}, tokenizer="none"))
    channels, grids = {n: e.channels for n, e in experts.items()}, {n: e.grid for n, e in experts.items()}
    spec = MoVAdapterSpec(layers=layers, top_k=top_k, gate=gate)
    connector = MoVAdapter(spec, 64, tower.grid, channels, grids, text.channels, 32)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return MoVA(tower, experts, text, connector, language, max_positions, FEW)


@dataclass
class Row:
    """One sample: its ids, and of each view what its images show."""

    ids: Tensor
    labels: Tensor
    media: dict[str, list[Tensor]] = field(default_factory=dict)


def row(*routings, seed=0, length=8, targets=3):
    """Returns a sample with an image a routing after its first id; the last ids are targets."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (length + len(routings),), generator=rng)
    labels = torch.full_like(ids, IGNORE_ID)
    labels[len(ids) - targets :] = ids[len(ids) - targets :]
    ids[1 : 1 + len(routings)] = IMAGE_ID
    made = Row(ids, labels)
    words = torch.randint(1, 40, (WORDS,), generator=rng)
    words[int(torch.randint(3, WORDS + 1, (), generator=rng)) :] = 0
    for routing in routings:
        scene = torch.randn(3, 48, 48, generator=rng)
        for view, side in SIDES.items():
            name = view.partition(".")[2]
            if not name or routing[list(EXPERTS).index(name)] == 1:
                seen = nn.functional.adaptive_avg_pool2d(scene, side) * (3 + len(name))
                made.media.setdefault(view, []).append(seen)
        made.media.setdefault(ROUTING_VIEW, []).append(torch.tensor(routing, dtype=torch.int8))
        made.media.setdefault(QUESTION_VIEW, []).append(words)
    return made


def batch(*rows, left=False, labels=True):
    """Returns the forward's arguments; with left, generation's."""
    longest = max(len(one.ids) for one in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    wanted = torch.full((len(rows), longest), IGNORE_ID)
    for at, one in enumerate(rows):
        span = slice(longest - len(one.ids), longest) if left else slice(0, len(one.ids))
        ids[at, span], mask[at, span], wanted[at, span] = one.ids, True, one.labels
    views = dict.fromkeys(view for one in rows for view in one.media)
    media = {view: torch.stack([item for one in rows for item in one.media.get(view, ())]) for view in views}
    given = {"input_ids_BT": ids, "attention_mask_BT": mask, "media": media or None}
    return given | ({"labels_BT": wanted} if labels and not left else {})


MIXED = (
    row(GLANCE, seed=1),
    row((1, 0, 1), seed=2, length=11),
    row(seed=3, length=6),
    row((0, 0, 0), seed=4),
    row((0, 1, 0), (1, 1, 1), seed=5, length=9),
    row(GLANCE, seed=6, length=12),
    row(seed=7, length=14),
)
"""Routing passes, answers with none to three experts and two images, text alone."""
