"""The planned sound clips: captions in eight languages, telephone prompts, and excerpts of sound effects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from preparation.chance import bucket, digest, generator
from uni import sound
from uni.prompts import Prompt
from uni.stamps import LANGUAGES, SoundEffect, SpokenCaption

LONGEST = 6.0
"""Seconds of the longest speech clip: one chunk of the tower that hears it."""
EXCERPT = 2.5
"""Seconds of an excerpt of a sound."""
TRAIN_CHANGES = {"pitch": (0.96, 1.04), "noise": (28.0, 45.0), "level": (0.0, 9.0)}
"""How training excerpts are changed: pitch factor, noise below the sound, softer by, both in decibels."""
TEST_CHANGES = {"pitch": (1.05, 1.09), "noise": (18.0, 26.0), "level": (10.0, 15.0)}
"""How test excerpts are changed: every range lies outside training's. Half of the pitches are lowered instead."""


@dataclass(frozen=True)
class LanguageClip:
    """One spoken caption."""

    path: str
    caption: SpokenCaption

    def write(self, target: Path) -> None:
        """Writes the clip."""
        write_speech(self.caption.file, target)


@dataclass(frozen=True)
class PromptClip:
    """One telephone prompt."""

    path: str
    prompt: Prompt
    asked: tuple[str, ...]
    """The words of it that are asked about."""

    def write(self, target: Path) -> None:
        """Writes the clip."""
        write_speech(self.prompt.file, target)


@dataclass(frozen=True)
class EffectClip:
    """One excerpt of a sound effect, changed in pitch, level and noise."""

    path: str
    effect: SoundEffect
    is_test: bool

    def write(self, target: Path) -> None:
        """Writes the excerpt."""
        draw = generator("effect", self.path)
        changes = TEST_CHANGES if self.is_test else TRAIN_CHANGES
        pitch, noise, level = (draw.uniform(*changes[name]) for name in ("pitch", "noise", "level"))
        heard = sound.cut_silence(sound.read_sound(self.effect.file), 60)
        if self.is_test and draw.random() < 0.5:
            pitch = 1 / pitch
        heard = sound.pitched(heard, pitch)
        spare = max(0, len(heard) - round(EXCERPT * sound.RATE))
        start = draw.randint(0, spare)
        # Not all of a recording is loud: the part that is heard best of three is taken.
        starts = [start, draw.randint(0, spare), draw.randint(0, spare)]
        length = len(heard) - spare
        best = max(starts, key=lambda place: float((heard[place : place + length] ** 2).sum()))
        excerpt = sound.levelled(heard[best : best + length])
        random = np.random.default_rng(digest("noise", self.path) % 2**63)
        sound.write_sound(target, sound.softer(sound.noisy(excerpt, noise, random), level))


def write_speech(source: Path, target: Path) -> None:
    """Writes a recording without the silence around it."""
    sound.write_sound(target, sound.cut_silence(sound.read_sound(source), LONGEST))


def seconds(file: Path) -> float:
    """Returns a recording's length as its header tells it."""
    import soundfile

    return float(soundfile.info(file).duration)


def is_test_caption(caption: SpokenCaption) -> bool:
    """Tells the captions that are never trained on, in any language: 1 English text in 6."""
    return bucket("caption", caption.english.lower(), 6) == 0


def language_clips(
    captions: Sequence[SpokenCaption], each: Mapping[str, int]
) -> tuple[list[LanguageClip], list[LanguageClip]]:
    """Returns training and test clips, so many of each language; no text of the test is said in training."""
    by_language: dict[str, list[SpokenCaption]] = defaultdict(list)
    for caption in sorted(captions, key=lambda c: digest("caption-order", c.language, c.file.stem)):
        by_language[caption.language].append(caption)
    train: list[SpokenCaption] = []
    test: list[SpokenCaption] = []
    for language in LANGUAGES.values():
        fit = (c for c in by_language[language] if seconds(c.file) <= LONGEST)
        own = [c for c in fit if len(c.english) > 2]
        trained = [c for c in own if not is_test_caption(c)][: each["train"]]
        # Two English captions may have one translation, so the language's own text decides as well.
        said = {c.said.lower() for c in trained}
        train += trained
        test += [c for c in own if is_test_caption(c) and c.said.lower() not in said][: each["test"]]
    return (
        [LanguageClip(f"train/language-{i:04d}.flac", c) for i, c in enumerate(train)],
        [LanguageClip(f"test/language-{i:04d}.flac", c) for i, c in enumerate(test)],
    )


def prompt_clips(
    prompts: Sequence[Prompt], counts: Mapping[str, int], number: int, most: int
) -> tuple[list[PromptClip], list[PromptClip]]:
    """Returns training and test clips of prompts that hold a word that is asked about.

    Args:
        prompts: All of them.
        counts: The words that are asked about, with how many training prompts hold them.
        number: How many questions the test has.
        most: How often one word may be the answer in the test, so that knowing the frequent words helps little.
    """
    short = [prompt for prompt in prompts if seconds(prompt.file) <= LONGEST]
    train = [p for p in short if not p.is_test and any(word in counts for word in p.words)]
    used: dict[str, int] = defaultdict(int)
    test: list[tuple[Prompt, tuple[str, ...]]] = []
    for prompt in sorted((p for p in short if p.is_test), key=lambda p: digest("prompt-order", p.name)):
        words = sorted((word for word in prompt.words if word in counts), key=lambda word: (used[word], counts[word]))
        left = number - sum(len(asked) for _, asked in test)
        asked = tuple(word for word in words if used[word] < most)[: min(3, left)]
        for word in asked:
            used[word] += 1
        if asked:
            test.append((prompt, asked))
    return (
        [
            PromptClip(f"train/prompt-{i:04d}.flac", p, tuple(w for w in p.words if w in counts))
            for i, p in enumerate(train)
        ],
        [PromptClip(f"test/prompt-{i:04d}.flac", p, asked) for i, (p, asked) in enumerate(test)],
    )


def effect_clips(effects: Sequence[SoundEffect], each: int, number: int) -> tuple[list[EffectClip], list[EffectClip]]:
    """Returns `each` training excerpts of every effect, and `number` test excerpts over all of them in turn."""
    order = sorted(effects, key=lambda effect: digest("effect-order", effect.name))
    train = [EffectClip(f"train/sound-{i:04d}.flac", order[i % len(order)], False) for i in range(each * len(order))]
    return train, [EffectClip(f"test/sound-{i:04d}.flac", order[i % len(order)], True) for i in range(number)]
