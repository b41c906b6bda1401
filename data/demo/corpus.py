"""Dialogues in LLaVA's form: captions, questions about pictures, and the text side, where words stand for pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from demo.emoji import KINDS, Concept
from demo.questions import NUMERALS, Asked, Pool, any_of, ask_all, describe, with_others
from demo.splits import generator

Row = dict[str, Any]

DESCRIBE = "Describe the picture."
"""What is said before a caption; on the text side the same words ask for the description to be repeated."""


def turns(opening: str, asked: Sequence[Asked]) -> list[dict[str, str]]:
    """Returns the turns of a dialogue that opens with a picture or its description."""
    said = []
    for place, question in enumerate(asked):
        said.append({"from": "human", "value": f"{opening}\n{question.question}" if place == 0 else question.question})
        said.append({"from": "gpt", "value": question.answer})
    return said


def caption_row(path: str, domain: str, caption: str) -> Row:
    """Returns one picture with its caption, for alignment."""
    said = [{"from": "human", "value": f"<image>\n{DESCRIBE}"}, {"from": "gpt", "value": caption}]
    return {"id": key_of("caption", path), "image": path, "domain": domain, "conversations": said}


def question_rows(pictures: Iterable[Any], domain: str, pool: Pool) -> list[Row]:
    """Returns one dialogue for each picture: every question about it, in an order drawn for the picture."""
    rows = []
    for picture in pictures:
        asked = ask_all(picture, pool, generator("dialogue", picture.path))
        if asked:
            row = {"id": key_of(domain, picture.path), "image": picture.path, "domain": domain}
            rows.append({**row, "conversations": turns("<image>", asked)})
    return rows


def key_of(source: str, path: str) -> str:
    """Returns a record's key: no dots and slashes, which a tar sample's name could not carry."""
    return f"{source}-{Path(path).stem}"


def text_rows(pictures: Sequence[Any], concepts: Sequence[Concept], words: Sequence[str], pool: Pool) -> list[Row]:
    """Returns the text side: questions about described pictures, and facts about concepts and words."""
    rows = []
    for index, picture in enumerate(pictures):
        draw = generator("text", index)
        asked = ask_all(picture, pool, draw)
        if draw.random() < 0.5:
            asked.insert(draw.randrange(len(asked) + 1), Asked("caption", DESCRIBE, describe(picture)))
        if asked:
            rows.append(text_row(turns(f"Picture: {describe(picture)}", asked)))
    for concept in concepts:
        draw = generator("fact", concept.name)
        rows.append(text_row(turns_of_facts(concept_facts(concept, concepts, draw))))
    for word in words:
        rows.append(text_row(turns_of_facts(word_facts(word))))
    generator("text-order").shuffle(rows)
    return [{"id": f"text-{index:06d}", **row} for index, row in enumerate(rows)]


def text_row(said: list[dict[str, str]]) -> Row:
    """Returns a dialogue without a picture."""
    return {"domain": "text", "conversations": said}


def turns_of_facts(facts: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Returns questions and answers as turns."""
    return [
        {"from": who, "value": value}
        for question, answer in facts
        for who, value in (("human", question), ("gpt", answer))
    ]


def concept_facts(concept: Concept, concepts: Sequence[Concept], draw: random.Random) -> list[tuple[str, str]]:
    """Returns what there is to know about a concept of the four groups: its group, and what it goes with."""
    facts = [(f"What kind of thing is {concept.name}: {any_of(KINDS)}?", concept.group)]
    tags = [tag for tag in concept.tags if tag != concept.name]
    if tags:
        tag = draw.choice(tags)
        others = [other.name for other in concepts if tag not in other.tags]
        choices = with_others(concept.name, others, draw)
        facts.append((f"Which of these goes with {tag}: {any_of(choices)}?", concept.name))
    draw.shuffle(facts)
    return facts


def word_facts(word: str) -> list[tuple[str, str]]:
    """Returns how a word is spelled."""
    return [
        (f"Write {word} in capitals.", word.upper()),
        (f"What is the first letter of {word}?", word[0].upper()),
        (f"How many letters does {word} have?", NUMERALS[len(word)]),
    ]
