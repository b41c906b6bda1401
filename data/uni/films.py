"""Films of real pictures in motion: a drawing or photo that stays, moves sideways or up and down, grows or turns.

A model that takes the mean over frames loses their order, so nothing is asked that only the order tells: no left or
right, no growing as against shrinking. Motions are large enough to smear over the mean.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.emoji import BACKGROUNDS, SIZE, Concept, rasterise
from PIL import Image
from preparation.chance import generator

FRAMES = 8
MOTIONS = ("stay", "move sideways", "move up and down", "grow", "turn")
SPRITE = 88
"""Pixels of the picture a frame is pasted from."""


@dataclass(frozen=True)
class Film:
    """One thing in one motion; drawn from an artist's emoji, or from a photo's file."""

    path: str
    name: str
    motion: str
    seed: str
    artist: str = ""
    code: str = ""
    photo: Path | None = None

    def frames(self) -> list[Image.Image]:
        """Returns the film's pictures."""
        draw = generator("film", self.seed)
        sprite = rasterise(self.artist, self.code, SPRITE) if self.photo is None else cut_out(self.photo)
        ground = draw.choice(BACKGROUNDS)
        return [frame(sprite, ground, *place) for place in places(self.motion, draw)]


def places(motion: str, draw: random.Random) -> list[tuple[float, float, float, float]]:
    """Returns (centre x, centre y, side, angle) of each frame, in pixels and degrees."""
    across = [step / (FRAMES - 1) for step in range(FRAMES)]
    if draw.random() < 0.5:
        across.reverse()
    middle, side = SIZE / 2, draw.uniform(0.34, 0.46) * SIZE
    reach = (SIZE - side) / 2
    if motion == "move sideways":
        y = middle + draw.uniform(-0.5, 0.5) * reach
        return [(middle + (2 * a - 1) * reach, y, side, 0.0) for a in across]
    if motion == "move up and down":
        x = middle + draw.uniform(-0.5, 0.5) * reach
        return [(x, middle + (2 * a - 1) * reach, side, 0.0) for a in across]
    side = draw.uniform(0.6, 0.95) * SIZE
    if motion == "grow":
        small = draw.uniform(0.12, 0.2) * SIZE
        return [(middle, middle, small + step / (FRAMES - 1) * (side - small), 0.0) for step in range(FRAMES)]
    if motion == "turn":
        sign = draw.choice((-1, 1))
        return [(middle, middle, 0.85 * side, sign * 360 * step / FRAMES) for step in range(FRAMES)]
    return [(middle, middle, side, 0.0)] * FRAMES


def frame(
    sprite: Image.Image, ground: tuple[int, int, int], x: float, y: float, side: float, angle: float
) -> Image.Image:
    """Returns one picture: the sprite at its place, size and angle."""
    pixels = max(8, round(side))
    placed = sprite.resize((pixels, pixels), Image.Resampling.BILINEAR)
    if angle:
        placed = placed.rotate(angle, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (SIZE, SIZE), ground)
    canvas.paste(placed, (round(x - pixels / 2), round(y - pixels / 2)), placed)
    return canvas


def cut_out(path: Path) -> Image.Image:
    """Returns a photo's subject as a square RGBA picture, its transparent margin cut away."""
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox() or (0, 0, *picture.size))
    scale = SPRITE / max(picture.size)
    size = tuple(max(1, math.floor(scale * length)) for length in picture.size)
    square = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    square.paste(picture.resize((size[0], size[1]), Image.Resampling.LANCZOS), tuple((SPRITE - s) // 2 for s in size))
    return square


def drawn_films(drawn: Sequence[tuple[Concept, str]], number: int, folder: str) -> list[Film]:
    """Returns films of drawings in hash order, the motions equally frequent."""
    order = sorted(drawn, key=lambda pair: generator("film-order", folder, pair[0].name, pair[1]).random())
    films = []
    for index in range(number):
        concept, artist = order[index % len(order)]
        path = f"{folder}/film-{index:04d}.mp4"
        motion = MOTIONS[index % len(MOTIONS)]
        films.append(Film(path, concept.name, motion, path, artist=artist, code=concept.code))
    return films


def photo_films(photos: Sequence[tuple[str, Path]], number: int, folder: str) -> list[Film]:
    """Returns films of photos, given as (name, file), the motions equally frequent."""
    films = []
    for index in range(number):
        name, photo = photos[index % len(photos)]
        path = f"{folder}/photo-{index:04d}.mp4"
        films.append(Film(path, name, MOTIONS[index % len(MOTIONS)], path, photo=photo))
    return films
