"""The benchmarks of films, speech and sounds: which held-out clips are asked what, and what guessing would score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from preparation.chance import digest, generator
from preparation.dialogue import Asked
from uni.clips import EffectClip, LanguageClip, PromptClip
from uni.films import Film
from uni.questions import Choices, ask_film_name, ask_language, ask_motion, ask_sound, ask_word, media_of

Line = dict[str, Any]
NAMES = ("video_name", "video_motion", "speech_language", "speech_word", "audio_name")


def benchmark_lines(
    films: Sequence[Film],
    languages: Sequence[LanguageClip],
    prompts: Sequence[PromptClip],
    sounds: Sequence[EffectClip],
    choices: Choices,
) -> dict[str, list[Line]]:
    """Returns the lines of every benchmark's file, all multiple choice; clip paths are relative to that file."""
    found: dict[str, list[tuple[Any, Asked]]] = {name: [] for name in NAMES}
    for film in films:
        draw = generator("benchmark", film.path)
        found["video_name"].append((film, ask_film_name(film, choices, draw)))
        found["video_motion"].append((film, ask_motion(film, choices, draw)))
    for clip in languages:
        found["speech_language"].append((clip, ask_language(clip, choices, generator("benchmark", clip.path))))
    for prompt in prompts:
        for word in prompt.asked:
            draw = generator("benchmark", prompt.path, word)
            found["speech_word"].append((prompt, ask_word(prompt, word, choices, draw)))
    for sound in sounds:
        found["audio_name"].append((sound, ask_sound(sound, choices, generator("benchmark", sound.path))))
    # In hash order, so that the first hundred questions of a limited run are a sample of all.
    ordered = {name: sorted(pairs, key=lambda pair: digest("order", *key_of(pair))) for name, pairs in found.items()}
    return {name: [line_of(name, i, *pair) for i, pair in enumerate(pairs)] for name, pairs in ordered.items()}


def key_of(pair: tuple[Any, Asked]) -> tuple[str, str]:
    """Returns what sets a question apart within its benchmark."""
    return pair[0].path, pair[1].answer


def line_of(name: str, index: int, clip: Any, asked: Asked) -> Line:
    """Returns one line."""
    kind = media_of(clip)
    line = {"id": f"{name}-{index:04d}", kind: f"media/{clip.path.split('/')[-1]}", "question": asked.question}
    return {**line, "answer": asked.answer, "choices": list(asked.choices), "domain": kind}


def guesses(lines: Sequence[Line], frequency: Mapping[str, float]) -> dict[str, float]:
    """Returns what guessing scores: at random, always the most frequent answer, the choice that training said most.

    Args:
        lines: A benchmark.
        frequency: How often each answer is right in training.
    """
    answers = Counter(line["answer"] for line in lines)
    most = sum(max(line["choices"], key=lambda c: frequency.get(c, 0)) == line["answer"] for line in lines)
    return {
        "questions": len(lines),
        "chance": round(sum(1 / len(line["choices"]) for line in lines) / len(lines), 3),
        "majority": round(answers.most_common(1)[0][1] / len(lines), 3),
        "frequent": round(most / len(lines), 3),
    }
