"""A TextHarmony of toy size: a pyramid that maps cells linearly, the two-layer Llama of width 32, a small U-Net."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from image_decoder_toy import COLUMNS, HEIGHT, PERCEIVER, spec_of
from models_toy import CONFIG
from torch import Tensor, nn

from mmmoe.config.ids import CANVAS_VIEW, IGNORE_ID, IMAGE_ID, LETTERS_VIEW
from mmmoe.models.connectors.perceiver_spec import PerceiverSpec
from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec
from mmmoe.models.families.text_harmony import TextHarmony
from mmmoe.models.image_decoder.decoder import ImageDecoder
from mmmoe.models.language import build_language
from mmmoe.models.lora.spec import SlideLoRASpec
from mmmoe.models.mmfs.language import add_synchroniser
from mmmoe.models.mmfs.spec import SynchroniserSpec
from mmmoe.models.spec import ScratchLanguage
from mmmoe.models.towers.pyramid import PyramidTower
from mmmoe.models.towers.tower import ImageTower

CHANNELS, SIDES, SIDE = 8, (4, 2), 8
SLOTS = 3
"""Tokens of an image; with the one that begins it an image has one position more."""
TRIGGER, LETTERS = 7, 6
"""Ids before an image that is to be drawn, and how many letters at most it shows."""


class ToyPyramid(PyramidTower):
    """Mean colours of cells, linearly mapped; each map has a linear layer of its own."""

    mean = std = (0.5, 0.5, 0.5)
    key, channels, image_size, grid, sides = "pyramid", CHANNELS, SIDE, (2, 2), SIDES

    def __init__(self):
        super().__init__()
        self.num_tokens = self.count()
        self.levels = nn.ModuleList(nn.Linear(3, CHANNELS) for _ in (1, 2, *SIDES))
        self.freeze()

    def forward(self, pixels_ICHW):
        cells = [nn.functional.adaptive_avg_pool2d(pixels_ICHW, side) for side in (1, 2, *SIDES)]
        found = [layer(c.flatten(2).transpose(1, 2)) for layer, c in zip(self.levels, cells, strict=True)]
        return torch.cat(found, dim=1)


class ToyCells(ImageTower):
    """Mean colours of four cells, linearly mapped: a map to make a pyramid of."""

    mean = std = (0.5, 0.5, 0.5)
    key, channels, image_size, grid, num_tokens = "cells", CHANNELS, SIDE, (2, 2), 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, CHANNELS)
        self.freeze()

    def forward(self, pixels_ICHW):
        return self.layer(nn.functional.adaptive_avg_pool2d(pixels_ICHW, 2).flatten(2).transpose(1, 2))


def toy_harmony(*, seed=0, max_positions=128, synchroniser=True, stir=True, slide=None, tower=None, **decoder):
    """Returns the toy; `stir` moves every weight, so that nothing hides behind a zero."""
    torch.manual_seed(seed)
    tower = tower or ToyPyramid()
    sides = tower.sides
    language = build_language(ScratchLanguage(config=CONFIG | {"initializer_range": 0.2}, tokenizer="none"))
    perceiver = PerceiverSpec(
        queries=SLOTS, layers=1, width=8, heads=2, inner=12, cross_attention_every=1, query_std=1.0
    )
    spec = VisualTokenizerSpec(perceiver=perceiver, position_grid=4, projector_std=0.5)
    connector = VisualTokenizer(spec, CHANNELS, tower.grid, sides, 32)
    memory = None
    if synchroniser:
        small = SynchroniserSpec(every=1, heads=2, points=2, base_side=2)
        memory = add_synchroniser(language, small, CHANNELS, sides)
    image = ImageDecoder(spec_of(**{"perceiver": PERCEIVER, **decoder}), 32, CHANNELS, sides)
    model = TextHarmony(tower, connector, language, memory, range(len(sides)), image, max_positions, 10.0)
    if slide is not None:
        sites = ["language.*.self_attn.[qkvo]_proj"]
        model.add_adapters([SlideLoRASpec(**({"sites": sites, "rank": 2, "alpha": 2} | slide))])
    with torch.no_grad():
        for name, parameter in model.named_parameters() if stir else []:
            parameter.add_(torch.randn_like(parameter) * (0.3 if "gate" in name else 0.05))
    return model


@dataclass
class Row:
    """One sample: its ids, its images as the tower takes them, and those to be drawn with their letters."""

    ids: list[int]
    labels: list[int]
    images: list[Tensor] = field(default_factory=list)
    canvas: list[Tensor] = field(default_factory=list)
    letters: list[Tensor] = field(default_factory=list)
    task: int = 1


def row(*parts, seed=0):
    """Returns a sample of `text` (5 ids), `image` (read), `say` (3 targets) and `draw` (an image to be drawn)."""
    rng = torch.Generator().manual_seed(seed)
    made = Row([1], [IGNORE_ID])
    for part in parts:
        if part in ("text", "say"):
            ids = torch.randint(3, 50, (5 if part == "text" else 3,), generator=rng).tolist()
            made.ids += ids
            made.labels += ids if part == "say" else [IGNORE_ID] * len(ids)
            continue
        is_drawn = part == "draw"
        if is_drawn:
            made.task = 0
            made.letters.append(torch.tensor([1, 2, 3, -1, -1, -1] if len(made.ids) > 3 else [-1] * LETTERS))
            made.canvas.append(torch.rand(3, HEIGHT, COLUMNS, generator=rng) * 2 - 1)
        made.ids.append(IMAGE_ID)
        made.labels.append(IMAGE_ID if is_drawn else IGNORE_ID)
        made.images.append(torch.randn(3, SIDE, SIDE, generator=rng))
    return made


def batch(*rows, left=False, tasks=False):
    """Returns the forward's arguments; with left, those of a prompt to be answered or drawn (no labels, no canvas)."""
    longest = max(len(one.ids) for one in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, wanted = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORE_ID)
    for at, one in enumerate(rows):
        span = slice(longest - len(one.ids), longest) if left else slice(0, len(one.ids))
        ids[at, span], mask[at, span], wanted[at, span] = torch.tensor(one.ids), True, torch.tensor(one.labels)
    views = {"image": "images"} if left else {"image": "images", CANVAS_VIEW: "canvas", LETTERS_VIEW: "letters"}
    found = {view: [item for one in rows for item in getattr(one, name)] for view, name in views.items()}
    media = {view: torch.stack(items) for view, items in found.items() if items}
    given = {"input_ids_BT": ids, "attention_mask_BT": mask, "media": media or None}
    if tasks:
        given["task_B"] = torch.tensor([one.task for one in rows])
    return given if left else given | {"labels_BT": wanted}


def prompt(*parts, seed=0, letters=True):
    """Returns a prompt to be drawn, and where its letters stand (L,)."""
    made = row(*parts, seed=seed)
    place = len(made.ids) - 3
    return made, torch.tensor([place, place + 1, place + 2, -1, -1, -1] if letters else [-1] * LETTERS)


MIXED = (
    row("text", "draw", seed=1),
    row("image", "text", "say", seed=2),
    row("text", "say", seed=3),
    row("image", "text", "draw", seed=4),
    row("text", "draw", "text", "draw", "text", "say", seed=5),
    row("draw", seed=6),
)
"""Text to image; reading; text alone; editing; two drawings in one dialogue; an image that nothing is said of."""
