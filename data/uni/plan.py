"""Which clips there are: how many of each kind, what is trained on and what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.plan import World, balanced
from demo.splits import TEST_ARTIST, TRAIN_ARTISTS
from preparation.chance import bucket
from uni.clips import EffectClip, LanguageClip, PromptClip, effect_clips, is_test_caption, language_clips, prompt_clips
from uni.films import Film, drawn_films, photo_films
from uni.packages import PROMPTS, STAMPS, TRANSCRIPTS
from uni.prompts import Prompt, load_prompts, word_counts
from uni.questions import Choices
from uni.stamps import Stamps, load_stamps


@dataclass(frozen=True)
class Amount:
    """How many clips of each kind."""

    films: int = 640
    photo_films: int = 120
    test_films: int = 110
    test_photo_films: int = 40
    language: int = 70
    """Training clips of each language."""
    test_language: int = 19
    effect: int = 6
    """Training excerpts of each sound."""
    test_effects: int = 150
    test_words: int = 150
    most_of_a_word: int = 5
    """How often one word may be the answer in the test."""
    captions: int = 160
    """Clips of each kind that alignment sees."""


@dataclass(frozen=True)
class Clips:
    """The clips of one split."""

    films: list[Film]
    languages: list[LanguageClip]
    prompts: list[PromptClip]
    effects: list[EffectClip]

    def of(self, kind: str) -> list[Any]:
        """Returns the clips of one kind of media."""
        return {"video": self.films, "speech": [*self.languages, *self.prompts], "audio": self.effects}[kind]

    @property
    def all(self) -> list[Any]:
        """Every clip."""
        return [clip for kind in ("video", "speech", "audio") for clip in self.of(kind)]


@dataclass(frozen=True)
class Plan:
    """All that is made."""

    train: Clips
    test: Clips
    choices: Choices
    stamps: Stamps
    prompts: list[Prompt]


def plan_clips(packages: Path, world: World, amount: Amount) -> Plan:
    """Reads the packages and returns the plan."""
    stamps = load_stamps(packages / STAMPS.name)
    prompts = load_prompts(packages / PROMPTS.name, packages / TRANSCRIPTS.name)
    counts = word_counts(prompts)
    names = tuple(concept.name for concept in world.kinds("train"))
    films, test_films = plan_films(world, stamps.photos, set(names), amount)
    each = {"train": amount.language, "test": amount.test_language}
    languages, test_languages = language_clips(stamps.captions, each)
    spoken, test_spoken = prompt_clips(prompts, counts, amount.test_words, amount.most_of_a_word)
    effects, test_effects = effect_clips(stamps.sounds, amount.effect, amount.test_effects)
    return Plan(
        Clips(films, languages, spoken, effects),
        Clips(test_films, test_languages, test_spoken, test_effects),
        Choices(names, tuple(effect.name for effect in stamps.sounds), counts),
        stamps,
        prompts,
    )


def plan_films(
    world: World, photos: Sequence[tuple[str, Path]], names: set[str], amount: Amount
) -> tuple[list[Film], list[Film]]:
    """Returns training and test films; the test's drawings are by an artist whom training never shows.

    Photos are taken of things that training also shows as drawings; 1 photo in 3 is held out.
    """
    kinds = world.kinds("train")
    known = [(name, file) for name, file in photos if name in names]
    held_out = [pair for pair in known if bucket("photo", pair[1].name, 3) == 0]
    trained = [pair for pair in known if bucket("photo", pair[1].name, 3) != 0]
    train = drawn_films(world.drawn(kinds, TRAIN_ARTISTS), amount.films, "train")
    test = drawn_films(balanced(world.drawn(kinds, (TEST_ARTIST,)), 400), amount.test_films, "test")
    return (
        [*train, *photo_films(trained, amount.photo_films, "train")],
        [*test, *photo_films(held_out, amount.test_photo_films, "test")],
    )


def training_captions(plan: Plan) -> list[Any]:
    """Returns the spoken captions that may be described on the text side."""
    return [caption for caption in plan.stamps.captions if not is_test_caption(caption)]


def answers_of(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    """Returns how often each answer is given in dialogues."""
    return Counter(turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "gpt")
