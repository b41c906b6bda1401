"""What is asked about films, speech and sounds, and how they are described: fixed phrasings for media and for text."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preparation.dialogue import Asked, any_of, with_others
from uni.clips import EffectClip, LanguageClip, PromptClip
from uni.films import MOTIONS, Film
from uni.produce import Clip
from uni.stamps import LANGUAGES, SOUND_KINDS

TONGUES = tuple(sorted(LANGUAGES.values()))
KINDS = tuple(sorted(set(SOUND_KINDS.values())))
MARKS = re.compile(r" ?<(image|video|speech|audio)>")
"""What stands for media in a text, with the space before it: no tokenizer is to learn it."""
MOST_QUESTIONS = 3
"""Words of one prompt that are asked about in one dialogue."""


@dataclass(frozen=True)
class Choices:
    """What the wrong answers are drawn from."""

    names: tuple[str, ...]
    """Of things in films."""
    sounds: tuple[str, ...]
    words: Mapping[str, int]
    """With how many training prompts hold them."""


def media_of(clip: Clip) -> str:
    """Returns the kind of media."""
    return "video" if isinstance(clip, Film) else "audio" if isinstance(clip, EffectClip) else "speech"


def ask_film_name(film: Film, choices: Choices, draw: random.Random) -> Asked:
    """Asks which of four names it is."""
    four = with_others(film.name, choices.names, draw)
    start = draw.choice(("Which of these is it: {}?", "What does the video show: {}?"))
    return Asked("video_name", start.format(any_of(four)), film.name, four)


def ask_motion(film: Film, choices: Choices, draw: random.Random) -> Asked:
    """Asks for the motion."""
    return Asked("video_motion", f"What does it do: {any_of(MOTIONS)}?", film.motion, MOTIONS)


def ask_language(clip: LanguageClip, choices: Choices, draw: random.Random) -> Asked:
    """Asks which of the eight languages is spoken."""
    return Asked("speech_language", f"Which language is it: {any_of(TONGUES)}?", clip.caption.language, TONGUES)


def ask_word(clip: PromptClip, word: str, choices: Choices, draw: random.Random) -> Asked:
    """Asks which of four words is said; a wrong one is as often frequent as a right one."""
    said = set(re.findall(r"[a-z']+", clip.prompt.text.lower()))
    others = [other for other in choices.words if other not in said]
    assert len(others) >= 3, f"too few words to ask about besides {sorted(said)}"
    four = [word]
    while len(four) < 4:
        (other,) = draw.choices(others, [choices.words[name] for name in others])
        if other not in four:
            four.append(other)
    draw.shuffle(four)
    return Asked("speech_word", f"Which of these words is said: {any_of(four)}?", word, tuple(four))


def ask_sound(clip: EffectClip, choices: Choices, draw: random.Random) -> Asked:
    """Asks which of four things makes the sound."""
    four = with_others(clip.effect.name, choices.sounds, draw)
    start = draw.choice(("Which of these makes this sound: {}?", "What makes this sound: {}?"))
    return Asked("audio_name", start.format(any_of(four)), clip.effect.name, four)


def ask_sound_kind(clip: EffectClip, choices: Choices, draw: random.Random) -> Asked | None:
    """Asks what kind of sound it is, where its thing has one of the kinds."""
    if clip.effect.kind is None:
        return None
    return Asked("audio_kind", f"What kind of sound is it: {any_of(KINDS)}?", clip.effect.kind, KINDS)


def ask_clip(clip: Clip, choices: Choices, draw: random.Random) -> list[Asked]:
    """Returns what is asked about a clip in one dialogue, in random order."""
    asked: list[Asked | None]
    match clip:
        case Film():
            asked = [ask_film_name(clip, choices, draw), ask_motion(clip, choices, draw)]
        case LanguageClip():
            asked = [ask_language(clip, choices, draw)]
        case PromptClip():
            words = draw.sample(clip.asked, min(MOST_QUESTIONS, len(clip.asked)))
            asked = [ask_word(clip, word, choices, draw) for word in words]
        case EffectClip():
            asked = [ask_sound(clip, choices, draw), ask_sound_kind(clip, choices, draw)]
    found = [question for question in asked if question is not None]
    draw.shuffle(found)
    return found


def ask_caption(clip: Clip) -> Asked:
    """Asks for all there is to say, for alignment: name and motion, language and transcript, or name of the sound."""
    match clip:
        case Film():
            return Asked("caption", "Describe the video.", f"{clip.name}, {clip.motion}.")
        case LanguageClip():
            return Asked("caption", "Describe the speech.", f"{clip.caption.language}, {plain(clip.caption.english)}.")
        case PromptClip():
            return Asked("caption", "Describe the speech.", f"English, {plain(clip.prompt.text)}.")
        case EffectClip():
            return Asked("caption", "What makes this sound?", clip.effect.name)


def describe(clip: Clip) -> str:
    """Returns what stands for a clip on the text side; of a prompt it holds the words one by one."""
    match clip:
        case Film():
            return f"Video: {clip.name}, {clip.motion}."
        case LanguageClip():
            return f"Speech: {clip.caption.language}, {plain(clip.caption.english)}."
        case PromptClip():
            return f"Speech: English, {', '.join(clip.asked)}."
        case EffectClip():
            return f"Sound: {', '.join(part for part in (clip.effect.name, clip.effect.kind) if part)}."


def plain(text: str) -> str:
    """Returns a transcript in lower case without marks inside, so that a small tokenizer cuts it alike everywhere."""
    words: Sequence[str] = re.findall(r"[\w'-]+", text.lower())
    return " ".join(words)
