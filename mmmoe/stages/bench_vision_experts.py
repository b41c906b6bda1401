"""What vision experts cost: pictures become tokens with each number of routed experts, beside all of them.

mmmoe bench vision_experts [config=configs/mova_tiny.yaml images=4 rounds=5 key=value ...]

From pixels to the tokens that the language model reads, nothing remembered: base tower, towers of the routed experts,
text encoder on questions it has not seen, MoV-Adapter. Once picture by picture and once in a batch of `images`, each of
which has other experts. Experts take turns: with r of E routed, E pictures have each expert r times, so all count alike
whatever they cost. Decoding of files and the language model take no part; weights are as the configuration declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmmoe import dist
from mmmoe.config.ids import QUESTION_VIEW, ROUTING_VIEW
from mmmoe.config.load import load
from mmmoe.kernels.bench import parse_sizes
from mmmoe.kernels.measure import Point, Result, Run, compare, difference, one_thread, take_turns_in_parts
from mmmoe.models.build import build_model
from mmmoe.models.families.mova import MoVA
from mmmoe.report.theme import LIGHT, styled
from mmmoe.report.vision_cost import VisionCost, cost_figure
from mmmoe.stages.bench_mov_adapter import in_turn
from mmmoe.stages.spec import RunSpec

CONFIG = "configs/mova_tiny.yaml"
DEFAULTS = {"images": 4, "rounds": 5}
BASE, TOWERS, TEXT, ADAPTER = "base tower", "experts' towers", "questions", "adapter"
ALL = "all experts"
AXIS = "experts routed"
QUESTION_TOKENS = 24
"""Of a picture's questions: one or two short ones."""
WASTE = 1.1
"""Towers of experts may take this much more than the share of the experts that are routed."""
IDLE = 0.01
"""With none routed, what they may take of the time of all."""
Times = Mapping[int, Sequence[float]]
"""Seconds an image in each round, by the number of routed experts."""


@dataclass
class Look:
    """Pictures on their way to tokens, part by part, through the very calls that an answer makes."""

    model: MoVA
    media: dict[str, Tensor]
    """Pixels of those that each view's tower looks at, their routing and their questions."""
    features: dict[str, Tensor] = field(default_factory=dict)
    tokens_IMD: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def at(cls, model: MoVA, pixels: Mapping[str, Tensor], routing_IE: Tensor) -> Look:
        """Returns a look at pictures, of which each expert sees those that are routed to it."""
        seen = {"image": pixels["image"]}
        for e, name in enumerate(model.experts):
            chosen_I = routing_IE[:, e] == 1
            if chosen_I.any():
                seen[f"image.{name}"] = pixels[f"image.{name}"][chosen_I]
        return cls(model, seen | {ROUTING_VIEW: routing_IE, QUESTION_VIEW: questions(model, len(routing_IE))})

    def parts(self) -> list[Run]:
        """Returns what is done one after the other: the base tower, each expert's, the questions, the adapter."""
        return [*(partial(self._see, view) for view in self.model.views), self._ask, self._join]

    def _see(self, view: str) -> None:
        if view in self.media:
            self.features[view] = self.model.encode(view, self.media[view])

    def _ask(self) -> None:
        # The text encoder remembers what it has read, so each time it is given something else.
        self.media[QUESTION_VIEW] = questions(self.model, len(self.media[QUESTION_VIEW]))
        self.model.text(self.media[QUESTION_VIEW])

    @torch.no_grad()
    def _join(self) -> None:
        self.model.gates.clear()
        tokens = self.model.tokens("image", self.media, self.features)
        assert isinstance(tokens, Tensor)
        self.tokens_IMD = tokens


@dataclass(frozen=True)
class Level:
    """How pictures come: one by one, or several at once."""

    name: str
    looks: Mapping[int, Sequence[Look]]
    """By the number of routed experts."""
    images: int
    """In the looks of a number together."""

    def way(self, number: int) -> list[Run]:
        """Returns a part after the other, each of all looks."""
        return [partial(_each, part) for part in zip(*(look.parts() for look in self.looks[number]), strict=True)]


def _each(runs: Sequence[Run]) -> None:
    for run in runs:
        run()


def questions(model: MoVA, images: int) -> Tensor:
    """Returns random ids (I, L)."""
    config, pad_id = model.text.encoder.config, model.text.pad_id
    length = min(QUESTION_TOKENS, config.max_position_embeddings)
    ids_IL = torch.randint(config.vocab_size, (images, length), device=model.device)
    return ids_IL.masked_fill(ids_IL == pad_id, int(pad_id == 0))


def bench_vision_experts(given: Sequence[str]) -> list[Result]:
    """Returns times of the model that a configuration declares.

    Args:
        given: `config=FILE`, sizes of DEFAULTS, and overrides of the configuration.

    Raises:
        ValueError: The configuration is wrong, or its model has no vision experts.
    """
    files = [one.partition("=")[2] for one in given if one.startswith("config=")]
    sizes = [one for one in given if one.partition("=")[0] in DEFAULTS]
    rest = [one for one in given if one not in sizes and not one.startswith("config=")]
    spec = load(Path(files[-1] if files else CONFIG), RunSpec, rest)
    model = build_model(spec.model, spec.seed)
    if not isinstance(model, MoVA):
        raise ValueError(f"{spec.name}: its model ({spec.model.family}) has no vision experts; name one of family mova")
    with torch.no_grad():
        for parameter in model.connector.parameters():
            # A fresh adapter reads nothing in the experts' maps, so that tokens could not tell who looked.
            parameter.normal_(std=model.tower.channels**-0.5)
    size = DEFAULTS | parse_sizes(sizes)
    return measure(model.to(dist.device()).eval(), size["images"], size["rounds"])


def measure(model: MoVA, images: int, rounds: int) -> list[Result]:
    """Returns what each number of routed experts costs over all of them, and what each tower does."""
    device = model.device
    torch.manual_seed(0)
    with one_thread(device):
        alone = level_alone(model)
        results = costs(alone, split(alone, rounds, device), model)
        if images > 1:
            batch = level_batch(model, images)
            results += costs(batch, split(batch, rounds, device), None)
    return results


def level_alone(model: MoVA) -> Level:
    """Returns as many pictures as there are experts, one by one."""
    count = len(model.experts)
    pictures = [pixels(model, 1) for _ in range(count)]
    looks = {
        r: [Look.at(model, one, row_E[None]) for one, row_E in zip(pictures, in_turn(count, count, r), strict=True)]
        for r in range(count + 1)
    }
    return Level("one image", looks, count)


def level_batch(model: MoVA, images: int) -> Level:
    """Returns pictures that go through each part together."""
    count, drawn = len(model.experts), pixels(model, images)
    looks = {r: [Look.at(model, drawn, in_turn(images, count, r))] for r in range(count + 1)}
    return Level(f"batch of {images}", looks, images)


def pixels(model: MoVA, images: int) -> dict[str, Tensor]:
    """Returns random pixels (I, 3, H, W) by view."""
    sides = {view: model.tower_of(view).image_size for view in model.views}
    return {view: torch.randn(images, 3, side, side, device=model.device) for view, side in sides.items()}


def split(level: Level, rounds: int, device: torch.device) -> list[Times]:
    """Returns the times of each part; all numbers of experts take turns."""
    ways = {f"{level.name}, {number} routed": level.way(number) for number in level.looks}
    ends = take_turns_in_parts(ways, rounds, device)
    starts = [{name: [0.0] * len(times) for name, times in ends[0].items()}, *ends[:-1]]
    return [
        {
            number: [(b - a) / level.images for a, b in zip(start[name], end[name], strict=True)]
            for number, name in zip(level.looks, ways, strict=True)
        }
        for start, end in zip(starts, ends, strict=True)
    ]


def costs(level: Level, parts: Sequence[Times], towers: MoVA | None) -> list[Result]:
    """Returns the rows of a level; with the model those of its towers, and bounds: one picture costs a tower the same
    whoever looks besides, pictures of a batch cost less the more there are.
    """
    base, *experts, text, adapter = parts
    whole, together = added(parts), added(experts)
    most = max(level.looks)
    rows = []
    for number in level.looks:
        against = partial(compare, versus=ALL, other=list(whole[most]))
        name = f"{level.name}, {number} routed"
        row = against(name, list(whole[number]), error=error(level, number))
        rows.append(replace(row, sizes={"images": level.images, "routed": number}))
        for curve, times in ((BASE, base), (TOWERS, together), (TEXT, text), (ADAPTER, adapter)):
            part = against(f"{name}: {curve}", list(times[number]))
            rows.append(replace(part, point=Point(level.name, AXIS, number, curve)))
    if towers is None:
        return rows
    for number in range(most):
        bound = max(IDLE, WASTE * number / most)
        mine, all_of_them = list(together[number]), list(together[most])
        rows.append(compare(f"{TOWERS}, {number} routed", mine, f"{TOWERS}, all", all_of_them, bound=bound))
    for view, times in zip(towers.views, (base, *experts), strict=True):
        row = compare(view.partition(".")[2] or BASE, list(times[most]), ALL, list(whole[most]))
        rows.append(replace(row, sizes={"pixels": towers.tower_of(view).image_size}))
    return rows


def added(parts: Sequence[Times]) -> Times:
    """Returns the sum of some parts, round by round."""
    return {number: [sum(each) for each in zip(*(part[number] for part in parts), strict=True)] for number in parts[0]}


def error(level: Level, number: int) -> float:
    """Returns how far tokens are from those of each picture by itself, from its pixels in one call."""
    return max(difference(look.tokens_IMD, _by_itself(look)) for look in level.looks[number])


@torch.no_grad()
def _by_itself(look: Look) -> Tensor:
    model, routing_IE = look.model, look.media[ROUTING_VIEW]
    tokens = []
    for i in range(len(routing_IE)):
        media = {"image": look.media["image"][i : i + 1]}
        for e, name in enumerate(model.experts):
            if routing_IE[i, e] == 1:
                place = int((routing_IE[:i, e] == 1).sum())
                media[f"image.{name}"] = look.media[f"image.{name}"][place : place + 1]
        beside = {kind: look.media[kind][i : i + 1] for kind in (ROUTING_VIEW, QUESTION_VIEW)}
        model.gates.clear()
        tokens.append(model.tokens("image", media | beside, {}))
    return torch.cat([one for one in tokens if isinstance(one, Tensor)])


def picture(content: Mapping[str, Any]) -> Figure:
    """Returns the plot of a file's content: each tower, and the parts of a picture's time by routed experts."""
    with styled(LIGHT):
        figure = cost_figure(VisionCost.read(dict(content)), LIGHT)
        figure.suptitle(f"{content['name']}, {content['machine']}, {content['clock']}", fontsize=9, x=0.01, ha="left")
    return figure
