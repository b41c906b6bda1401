"""Emoji as seven artists drew them: one concept, several drawings, with name, keywords and group from the CLDR."""

from __future__ import annotations

import functools
import io
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from demo.packages import ARTISTS
from demo.splits import concept_split
from PIL import Image

SIZE = 96
GROUPS = {
    "smileys-emotion": "emotion",
    "people-body": "people",
    "animals-nature": "nature",
    "food-drink": "food",
    "travel-places": "travel",
    "activities": "activity",
    "objects": "object",
    "symbols": "symbol",
}
KINDS = ("nature", "food", "object", "travel")
"""The four groups that are asked about; the others appear in captions and colour questions."""
KEYWORDS, SHARED = 3, 4
"""Most tags among a concept's keywords, and of how many emoji a tag must be one to count."""
BACKGROUNDS = ((255, 255, 255), (255, 255, 255), (246, 246, 240), (240, 246, 250), (250, 243, 246))


@dataclass(frozen=True)
class Concept:
    """What an emoji stands for."""

    code: str
    name: str
    group: str
    tags: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    """Its subgroup ("animal mammal") and the tags it shares with others: what a small model can learn to relate."""


@dataclass(frozen=True)
class EmojiPicture:
    """One concept drawn by one artist, filling the picture; `colour` is known once it has been drawn."""

    path: str
    concept: str
    group: str
    artist: str
    code: str
    background: tuple[int, int, int]
    keywords: tuple[str, ...] = ()
    colour: str | None = None

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas = Image.new("RGB", (SIZE, SIZE), self.background)
        glyph = rasterise(self.artist, self.code, SIZE - 8)
        canvas.paste(glyph, (4, 4), glyph)
        return canvas


def plain(label: str) -> str:
    """Returns a label as lower-case ASCII words, so that a small tokenizer spells it cheaply."""
    ascii_only = unicodedata.normalize("NFKD", label.replace("’", "'")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9' -]+", "", ascii_only.lower()).strip()


def load_concepts(packages: Path) -> list[Concept]:
    """Returns the concepts without flags, components and skin tones, in code point order of the CLDR list."""
    meta = json.loads((packages / "emojibase-data/meta/groups.json").read_text())
    rows = json.loads((packages / "emojibase-data/en/data.json").read_text())
    held_out = {name for name in (plain(row["label"]) for row in rows) if concept_split(name) != "train"}
    shared = Counter(tag for row in rows for tag in tags_of(row) if tag not in held_out)
    concepts, seen = [], set()
    for row in rows:
        group = GROUPS.get(meta["groups"].get(str(row.get("group")), ""))
        name, tags = plain(row["label"]), tags_of(row)
        if group is None or not name or name in seen:
            continue
        seen.add(name)
        subgroup = plain(meta["subgroups"][str(row["subgroup"])]).replace("-", " ")
        tags = tuple(tag for tag in tags if tag not in held_out)  # else training would name what is held out
        common = sorted((tag for tag in tags if tag != name and shared[tag] >= SHARED), key=lambda tag: -shared[tag])
        keywords = dict.fromkeys(word for word in (subgroup, *common[:KEYWORDS]) if word not in held_out)
        concepts.append(Concept(normal_code(row["hexcode"]), name, group, tags, tuple(keywords) or (group,)))
    return concepts


def tags_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the keywords that the CLDR gives a concept, in alphabetical order."""
    return tuple(sorted({plain(tag) for tag in row.get("tags", [])} - {""}))


def normal_code(code: str) -> str:
    """Returns a code point sequence without variation selectors, in lower case."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


class Album:
    """The drawings of every artist, found by code point where the set lists them and by icon name where it does not."""

    def __init__(self, packages: Path) -> None:
        sets = {package.short: packages / package.short for package in ARTISTS}
        self.icons: dict[str, dict[str, Any]] = {
            artist: json.loads((folder / "icons.json").read_text()) for artist, folder in sets.items()
        }
        listed = {artist: json.loads((folder / "chars.json").read_text()) for artist, folder in sets.items()}
        self.by_code = {a: {normal_code(code): name for code, name in rows.items()} for a, rows in listed.items()}

    def body(self, artist: str, code: str) -> tuple[str, int, int] | None:
        """Returns the SVG body and its width and height, or None when the artist did not draw it."""
        book = self.icons[artist]
        for name in self.names(artist, code):
            name = book.get("aliases", {}).get(name, {}).get("parent", name)
            icon = book["icons"].get(name)
            if icon is not None:
                width = icon.get("width", book.get("width", 16))
                return icon["body"], width, icon.get("height", book.get("height", 16))
        return None

    def names(self, artist: str, code: str) -> list[str]:
        """Returns the icon names under which this artist may have drawn a code point."""
        if self.by_code[artist]:
            return [self.by_code[artist][code]] if code in self.by_code[artist] else []
        slugs = [self.by_code[other][code] for other in ("noto", "twemoji", "openmoji") if code in self.by_code[other]]
        return [slug.replace("-", "") for slug in slugs] if artist == "fxemoji" else slugs


@functools.cache
def album(packages: Path) -> Album:
    """Returns the drawings, read once in each process."""
    return Album(packages)


_where: list[Path] = []


def open_album(packages: Path) -> None:
    """Tells this process where the packages lie; every drawing process starts with it."""
    _where[:] = [packages]
    album(packages)


@functools.lru_cache(maxsize=2048)
def rasterise(artist: str, code: str, size: int) -> Image.Image:
    """Returns a drawing as a square RGBA picture."""
    found = album(_where[0]).body(artist, code)
    assert found is not None, f"{artist} did not draw {code}"
    body, width, height = found
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{size}" height="{size}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(png)).convert("RGBA").resize((size, size))
