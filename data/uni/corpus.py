"""Dialogues in LLaVA's form: captions of clips, questions about them, and the text side, where words stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preparation.chance import digest, generator
from preparation.dialogue import turns
from uni.clips import EffectClip, LanguageClip, PromptClip
from uni.films import MOTIONS, Film
from uni.prompts import Prompt
from uni.questions import Choices, ask_caption, ask_clip, describe, media_of
from uni.stamps import SoundEffect, SpokenCaption

Row = dict[str, Any]
Clip = Film | LanguageClip | PromptClip | EffectClip
TEXT_FILMS, TEXT_WORDS, TEXT_SOUNDS, TEXT_CAPTIONS, TEXT_PROMPTS = 2400, 2400, 12, 1200, 2
"""The text side: films and lists of words described, times each sound, spoken captions, times each prompt."""


def media_row(clip: Clip, source: str, said: list[dict[str, str]]) -> Row:
    """Returns a dialogue about one clip; its key has no dots and slashes, which a tar sample's name could not carry."""
    kind = media_of(clip)
    return {"id": f"{source}-{Path(clip.path).stem}", kind: clip.path, "domain": kind, "conversations": said}


def caption_rows(clips: Sequence[Clip], number: int) -> list[Row]:
    """Returns captions of `number` clips, whichever the hash chooses."""
    chosen = sorted(clips, key=lambda clip: digest("caption", clip.path))[:number]
    return [media_row(c, "caption", turns(f"<{media_of(c)}>", [ask_caption(c)])) for c in chosen]


def question_rows(clips: Sequence[Clip], choices: Choices) -> list[Row]:
    """Returns one dialogue for each clip."""
    rows = []
    for clip in clips:
        asked = ask_clip(clip, choices, generator("dialogue", clip.path))
        rows.append(media_row(clip, media_of(clip), turns(f"<{media_of(clip)}>", asked)))
    return rows


def text_rows(
    captions: Sequence[SpokenCaption], prompts: Sequence[Prompt], effects: Sequence[SoundEffect], choices: Choices
) -> list[Row]:
    """Returns dialogues about described clips: what the training side holds, and lists of words that nobody said."""
    described: list[Clip] = []
    for index in range(TEXT_FILMS):
        draw = generator("text-film", index)
        described.append(Film("", draw.choice(choices.names), draw.choice(MOTIONS), ""))
    order = sorted(captions, key=lambda caption: digest("text-caption", caption.language, caption.file.stem))
    described += [LanguageClip("", caption) for caption in order[:TEXT_CAPTIONS]]
    for prompt in [*prompts] * TEXT_PROMPTS:
        described.append(PromptClip("", prompt, tuple(word for word in prompt.words if word in choices.words)))
    vocabulary = list(choices.words)
    for index in range(TEXT_WORDS):
        draw = generator("text-words", index)
        words = tuple(draw.sample(vocabulary, draw.randint(2, 6)))
        described.append(PromptClip("", Prompt(Path(), "", " ".join(words)), words))
    described += [EffectClip("", effect, False) for effect in effects] * TEXT_SOUNDS
    rows = []
    for index, clip in enumerate(described):
        draw = generator("text", index)
        asked = ask_clip(clip, choices, draw)
        if not isinstance(clip, PromptClip) and draw.random() < 0.3:
            asked.insert(draw.randrange(len(asked) + 1), ask_caption(clip))
        if asked:
            rows.append({"domain": "text", "conversations": turns(describe(clip), asked)})
    generator("text-order").shuffle(rows)
    return [{"id": f"text-{index:06d}", **row} for index, row in enumerate(rows)]
