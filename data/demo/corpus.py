"""Dialogues in LLaVA's form: captions, questions about pictures, and the text side, where words stand for pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from demo.emoji import KINDS, Concept, EmojiPicture
from demo.questions import Pool, ask_all, ask_caption, ask_open, describe
from preparation.chance import generator
from preparation.dialogue import any_of, turns, with_others

Row = dict[str, Any]


def caption_row(picture: Any, domain: str, pool: Pool) -> Row:
    """Returns one picture for alignment: a drawing with its name, anything else with its description."""
    asking = ask_open if isinstance(picture, EmojiPicture) else ask_caption
    asked = asking(picture, pool, generator("caption", picture.path))
    row = {"id": key_of("caption", picture.path), "image": picture.path, "domain": domain}
    return {**row, "conversations": turns("<image>", [asked])}


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


def text_rows(pictures: Sequence[Any], concepts: Sequence[Concept], pool: Pool) -> list[Row]:
    """Returns the text side: questions about described pictures, and facts about concepts."""
    rows = []
    for index, picture in enumerate(pictures):
        draw = generator("text", index)
        asked = ask_all(picture, pool, draw)
        if isinstance(picture, EmojiPicture) or draw.random() < 0.5:
            is_open = isinstance(picture, EmojiPicture) and draw.random() < 0.3
            told = (ask_open if is_open else ask_caption)(picture, pool, draw)
            asked.insert(draw.randrange(len(asked) + 1), told)
        if asked:
            rows.append(text_row(turns(f"Picture: {describe(picture)}", asked)))
    for concept in concepts:
        draw = generator("fact", concept.name)
        rows.append(text_row(turns_of_facts(concept_facts(concept, concepts, draw))))
        rows.append(text_row(turns_of_facts([(f"{', '.join(concept.keywords)}: what is it?", concept.name)])))
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
    """Returns what there is to know about a concept: its keywords, its group, and what it goes with."""
    facts = [(f"{concept.name}: which words go with it?", ", ".join(concept.keywords))]
    if concept.group in KINDS:
        facts.append((f"{concept.name}: what kind of thing is it: {any_of(KINDS)}?", concept.group))
    tags = [tag for tag in concept.tags if tag != concept.name]
    if tags:
        tag = draw.choice(tags)
        others = [other.name for other in concepts if tag not in other.tags]
        choices = with_others(concept.name, others, draw)
        facts.append((f"{tag}: which of these goes with it: {any_of(choices)}?", concept.name))
    draw.shuffle(facts)
    return facts
