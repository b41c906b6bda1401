"""The words of a question as a model is asked it: a benchmark's wording filled with what its file says."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from string import Formatter

PLACES = ("question", "choices", "letters", "hint", "context")
"""What a wording may hold in braces."""


def letter(place: int) -> str:
    """Returns the letter of a choice: A is the first, AA comes after Z."""
    more, one = divmod(place, 26)
    return (letter(more - 1) if more else "") + chr(ord("A") + one)


def check_prompt(prompt: str, *, asks: bool = True) -> None:
    """Checks a wording.

    Args:
        prompt: The wording.
        asks: Whether there is a question to ask.

    Raises:
        ValueError: It does not ask the question, or holds something in braces that is no place.
    """
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r}: {error}; a brace that is meant is written twice") from error
    names = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACES or form or conversion):
            near = difflib.get_close_matches(name, PLACES, n=1)
            meant = f"; did you mean {{{near[0]}}}?" if near and name not in PLACES else ""
            known = ", ".join(f"{{{place}}}" for place in PLACES)
            raise ValueError(f"prompt {prompt!r} holds {{{name}}} in a form that is not known ({known}){meant}")
    if asks and "question" not in names:
        raise ValueError(f"prompt {prompt!r} does not hold {{question}}")


def worded(prompt: str, question: str, *, choices: Sequence[str] = (), hint: str = "", context: str = "") -> str:
    """Returns the prompt of a question, whose own letters are left as they are.

    A line of the wording is left out if it has places and all of them are empty.
    """
    values = {
        "question": question,
        "choices": "\n".join(f"{letter(place)}. {choice}" for place, choice in enumerate(choices)),
        "letters": ", ".join(letter(place) for place in range(len(choices))),
        "hint": hint,
        "context": context,
    }
    lines = []
    for line in prompt.split("\n"):
        names = [name for _, name, _, _ in Formatter().parse(line) if name is not None]
        if not names or any(values[name] for name in names):
            lines.append(line.format(**values))
    return "\n".join(lines)
