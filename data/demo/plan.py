"""Which pictures the demo consists of: how many of each, from which artists, concepts, words, fonts and tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.charts import plan_bars, plan_lines, plan_pies
from demo.documents import Press
from demo.emoji import BACKGROUNDS, KINDS, Concept, EmojiPicture, album, load_concepts
from demo.scenes import plan_counts, plan_pairs
from demo.splits import TEST_ARTIST, TRAIN_ARTISTS, VALIDATION_ARTIST, Split, concept_split, word_split
from demo.tables import load_tables
from preparation.chance import digest, generator

DOMAINS = ("general", "document", "chart")
SHORTEST, LONGEST = 3, 5
"""Letters of a printed word: five fill the picture's width at a size that stays legible."""
UNFIT = frozenset(
    {"ass", "sex", "sexy", "damn", "hell", "poop", "poo", "kill", "drug", "drugs", "drunk", "porn"}
    | {"boob", "boobs", "pee", "crap", "dead", "death", "die"}
)
"""Keywords that a demo need not print."""


@dataclass(frozen=True)
class Amount:
    """How many pictures of each planned kind."""

    counts: int
    pairs: int
    words: int
    numbers: int
    pages: int
    tables: int
    bars: int
    lines: int
    pies: int


TRAIN = Amount(counts=700, pairs=500, words=1100, numbers=350, pages=300, tables=300, bars=650, lines=400, pies=350)
TEST = Amount(counts=300, pairs=200, words=300, numbers=200, pages=200, tables=200, bars=200, lines=150, pies=50)
VALIDATION = Amount(counts=60, pairs=40, words=60, numbers=40, pages=40, tables=40, bars=60, lines=45, pies=15)
TEXT = Amount(counts=2500, pairs=1500, words=2500, numbers=800, pages=500, tables=800, bars=1500, lines=800, pies=700)
"""The text side: described, never drawn."""


@dataclass(frozen=True)
class World:
    """What the pictures are made of, by split."""

    packages: Path
    concepts: dict[Split, list[Concept]]
    words: dict[Split, list[str]]

    def kinds(self, split: Split) -> list[Concept]:
        """Returns the concepts of the four groups that are asked about."""
        return [concept for concept in self.concepts[split] if concept.group in KINDS]

    def drawn(self, concepts: Sequence[Concept], artists: Sequence[str]) -> list[tuple[Concept, str]]:
        """Returns every concept with every one of these artists who drew it."""
        book = album(self.packages)
        return [(concept, artist) for concept in concepts for artist in artists if book.body(artist, concept.code)]


def load_world(packages: Path) -> World:
    """Returns the concepts and words of every split."""
    concepts: dict[Split, list[Concept]] = {"train": [], "validation": [], "test": []}
    words: dict[Split, list[str]] = {"train": [], "validation": [], "test": []}
    found = load_concepts(packages)
    for concept in found:
        concepts[concept_split(concept.name)].append(concept)
    texts = " ".join(text for concept in found for text in (concept.name, *concept.tags))
    for word in sorted(set(re.findall(r"[a-z]+", texts)) - UNFIT):
        if SHORTEST <= len(word) <= LONGEST:
            words[word_split(word)].append(word)
    return World(packages, concepts, words)


def emoji_pictures(drawn: Sequence[tuple[Concept, str]], folder: str) -> list[EmojiPicture]:
    """Returns one picture for each drawing."""
    return [
        EmojiPicture(
            path=f"{folder}/{artist}-{concept.code}.png",
            concept=concept.name,
            group=concept.group,
            artist=artist,
            code=concept.code,
            background=generator("background", artist, concept.code).choice(BACKGROUNDS),
            keywords=concept.keywords,
        )
        for concept, artist in drawn
    ]


def one_each(drawn: Sequence[tuple[Concept, str]]) -> list[tuple[Concept, str]]:
    """Returns one drawing of each concept, by an artist whom the hash chooses."""
    ordered = sorted(drawn, key=lambda pair: digest("artist", pair[0].name, pair[1]))
    return list({concept.name: (concept, artist) for concept, artist in ordered}.values())


def balanced(drawn: Sequence[tuple[Concept, str]], number: int) -> list[tuple[Concept, str]]:
    """Returns up to `number` drawings in hash order, group by group in turn, no group above three tenths of it."""
    ordered = sorted(drawn, key=lambda pair: digest("balanced", pair[0].name, pair[1]))
    most = 3 * number // 10
    shelves = [[pair for pair in ordered if pair[0].group == kind][:most] for kind in KINDS]
    turns = itertools.zip_longest(*shelves)
    return [pair for turn in turns for pair in turn if pair is not None][:number]


def train_emoji(world: World) -> list[EmojiPicture]:
    """Returns the four groups by every training artist, and every other concept once."""
    others = [concept for concept in world.concepts["train"] if concept.group not in KINDS]
    drawn = world.drawn(world.kinds("train"), TRAIN_ARTISTS) + one_each(world.drawn(others, TRAIN_ARTISTS))
    return emoji_pictures(drawn, "emoji")


@dataclass(frozen=True)
class HeldOutEmoji:
    """The emoji pictures of a split that is not trained on."""

    seen: list[EmojiPicture]
    """Concepts of training as an unseen artist drew them."""
    unseen: list[EmojiPicture]
    """Unseen concepts of the four groups."""
    coloured: list[EmojiPicture]
    """Unseen concepts of all groups, from which colour questions are chosen."""


def held_out_emoji(world: World, split: Split) -> HeldOutEmoji:
    """Returns the pictures of unseen artists and of unseen concepts."""
    if split == "test":
        artist, every, number = TEST_ARTIST, (*TRAIN_ARTISTS, VALIDATION_ARTIST, TEST_ARTIST), 500
    else:
        artist, every, number = VALIDATION_ARTIST, (*TRAIN_ARTISTS, VALIDATION_ARTIST), 100
    seen = balanced(world.drawn(world.kinds("train"), (artist,)), number)
    unseen = balanced(world.drawn(world.kinds(split), every), number)
    others = [concept for concept in world.concepts[split] if concept.group not in KINDS]
    extra = one_each(world.drawn(others, every))
    return HeldOutEmoji(
        emoji_pictures(seen, "images"), emoji_pictures(unseen, "images"), emoji_pictures([*unseen, *extra], "images")
    )


def planned(world: World, split: Split, amount: Amount, folder: str) -> dict[str, list[object]]:
    """Returns every picture but the emoji ones, by kind. Test and validation draw with their own artist."""
    artists = {"train": TRAIN_ARTISTS, "validation": (VALIDATION_ARTIST,), "test": (TEST_ARTIST,)}[split]
    drawn = world.drawn(world.kinds("train"), artists)
    tables = load_tables(split)
    press = Press(world.packages, world.words[split], split, f"{folder}/{split}")
    prefix = press.prefix
    return {
        "counts": [*plan_counts(drawn, amount.counts, prefix)],
        "pairs": [*plan_pairs(drawn, amount.pairs, prefix)],
        "words": [*press.word_cards(amount.words)],
        "numbers": [*press.number_cards(amount.numbers)],
        "pages": [*press.pages(amount.pages)],
        "tables": [*press.tables(amount.tables)],
        "bars": [*plan_bars(tables, amount.bars, prefix)],
        "lines": [*plan_lines(tables, amount.lines, prefix)],
        "pies": [*plan_pies(tables, amount.pies, prefix)],
    }


PLANNED_DOMAIN = {
    "counts": "general",
    "pairs": "general",
    "words": "document",
    "numbers": "document",
    "pages": "document",
    "tables": "document",
    "bars": "chart",
    "lines": "chart",
    "pies": "chart",
}
