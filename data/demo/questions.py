"""What is asked about a picture, and what it is called: one fixed small set of phrasings for pictures and for text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from demo.charts import BarChart, LineChart, PieChart
from demo.documents import NumberCard, RuledTable, TextPage, WordCard
from demo.emoji import KINDS, EmojiPicture
from demo.scenes import CountScene, PairScene
from demo.tables import TRENDS
from preparation.dialogue import Asked, any_of, with_others

NUMERALS = ("zero", "one", "two", "three", "four", "five", "six")
CHART_KINDS = ("bar", "line", "pie")


@dataclass(frozen=True)
class Pool:
    """What the wrong answers are drawn from."""

    names: tuple[str, ...]
    words: tuple[str, ...]


def alike(word: str, words: Sequence[str]) -> list[str]:
    """Returns the words whose length differs by at most one."""
    return [other for other in words if abs(len(other) - len(word)) <= 1 and other.upper() != word]


def ask_name(picture: EmojiPicture | CountScene, pool: Pool, draw: random.Random) -> Asked | None:
    """Asks which of four names it is, for things of the four groups; the wrong ones come from any of them."""
    if isinstance(picture, EmojiPicture) and picture.group not in KINDS:
        return None
    choices = with_others(picture.concept, pool.names, draw)
    start = draw.choice(("Which of these is it: {}?", "What does the picture show: {}?"))
    return Asked("name_of_four", start.format(any_of(choices)), picture.concept, choices)


def ask_open(picture: EmojiPicture, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the name without choices."""
    return Asked("name", "What is it?", picture.concept)


def ask_caption(picture: object, pool: Pool, draw: random.Random) -> Asked:
    """Asks for what there is to say about a picture: the description and, of a drawing, what goes with it."""
    words = f" {', '.join(picture.keywords)}." if isinstance(picture, EmojiPicture) and picture.keywords else ""
    return Asked("caption", "Describe the picture.", f"{describe(picture)}{words}")


def ask_category(picture: EmojiPicture, pool: Pool, draw: random.Random) -> Asked | None:
    """Asks for the group, for things of the four groups."""
    if picture.group not in KINDS:
        return None
    start = draw.choice(("What kind of thing is it: {}?", "Which group does it belong to: {}?"))
    return Asked("category", start.format(any_of(KINDS)), picture.group, KINDS)


def ask_colour(picture: EmojiPicture, pool: Pool, draw: random.Random) -> Asked | None:
    """Asks for the main colour, where the drawing has one."""
    if picture.colour is None:
        return None
    return Asked("colour", draw.choice(("What is its main colour?", "Which colour is it mostly?")), picture.colour)


def ask_count(picture: CountScene, pool: Pool, draw: random.Random) -> Asked:
    """Asks how many there are."""
    start = draw.choice(("How many are there?", "How many things does the picture show?"))
    return Asked("count", start, NUMERALS[picture.count])


def ask_position(picture: PairScene, pool: Pool, draw: random.Random) -> Asked:
    """Asks which of the two stands at a place."""
    place = draw.randrange(2)
    choices = tuple(draw.sample(picture.concepts, 2))
    name = picture.places[place]
    where = f"on the {name}" if picture.across else f"at the {name}"
    return Asked("position", f"Which is {where}: {any_of(choices)}?", picture.concepts[place], choices)


def ask_word(picture: WordCard, pool: Pool, draw: random.Random) -> Asked:
    """Asks which of four words of about the same length is written."""
    others = [word.upper() for word in alike(picture.word, pool.words)]
    choices = with_others(picture.word, others, draw)
    start = draw.choice(("Which of these words is written: {}?", "Which word does it say: {}?"))
    return Asked("document_word", start.format(any_of(choices)), picture.word, choices)


def ask_reading(picture: WordCard, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the word itself."""
    return Asked("document_reading", draw.choice(("What does it say?", "Read the word.")), picture.word)


def ask_first(picture: WordCard, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the first letter."""
    return Asked("document_letter", "What is the first letter?", picture.word[0])


def ask_number(picture: NumberCard, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the number, in digits."""
    start = draw.choice(("Which number is written?", "What is the number?"))
    return Asked("document_number", start, str(picture.number))


def ask_lines(picture: TextPage, pool: Pool, draw: random.Random) -> Asked:
    """Asks how many lines the page has."""
    start = draw.choice(("How many lines of text are there?", "How many lines does the page have?"))
    return Asked("document_lines", start, NUMERALS[len(picture.lines)])


def ask_table(picture: RuledTable, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the number of rows or of columns."""
    if draw.random() < 0.5:
        return Asked("document_table", "How many rows does the table have?", NUMERALS[len(picture.cells)])
    return Asked("document_table", "How many columns does the table have?", NUMERALS[len(picture.cells[0])])


def ask_kind(picture: BarChart | LineChart | PieChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks what kind of chart it is."""
    kind = {BarChart: "bar", LineChart: "line", PieChart: "pie"}[type(picture)]
    start = draw.choice(("What kind of chart is this: {}?", "Which chart is it: {}?"))
    return Asked("chart_kind", start.format(any_of(CHART_KINDS)), kind, CHART_KINDS)


def ask_tallest(picture: BarChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the colour of the tallest bar."""
    start = draw.choice(("Which colour is the tallest bar?", "What is the colour of the tallest bar?"))
    return Asked("chart_tallest", start, picture.tallest)


def ask_bars(picture: BarChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks how many bars there are."""
    start = draw.choice(("How many bars are there?", "How many bars does the chart have?"))
    return Asked("chart_bars", start, NUMERALS[len(picture.values)])


def ask_trend(picture: LineChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks which way the line goes."""
    start = draw.choice(("Is the line {}?", "How does the line go: {}?"))
    return Asked("chart_trend", start.format(any_of(TRENDS)), picture.trend, TRENDS)


def ask_largest(picture: PieChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks for the colour of the largest slice."""
    return Asked("chart_slice", "Which colour is the largest slice?", picture.largest)


def ask_slices(picture: PieChart, pool: Pool, draw: random.Random) -> Asked:
    """Asks how many slices there are."""
    return Asked("chart_slices", "How many slices are there?", NUMERALS[len(picture.values)])


Asking = Callable[[Any, Pool, random.Random], Asked | None]
ABOUT: dict[type, tuple[Asking, ...]] = {
    EmojiPicture: (ask_name, ask_category, ask_colour),
    CountScene: (ask_count, ask_name),
    PairScene: (ask_position,),
    WordCard: (ask_word, ask_first, ask_reading),
    NumberCard: (ask_number,),
    TextPage: (ask_lines,),
    RuledTable: (ask_table,),
    BarChart: (ask_tallest, ask_bars, ask_kind),
    LineChart: (ask_trend, ask_kind),
    PieChart: (ask_largest, ask_slices, ask_kind),
}


def ask_all(picture: object, pool: Pool, draw: random.Random) -> list[Asked]:
    """Returns every question about a picture, in random order."""
    asked = [asking(picture, pool, draw) for asking in ABOUT[type(picture)]]
    found = [question for question in asked if question is not None]
    draw.shuffle(found)
    return found


def describe(picture: object) -> str:
    """Returns what the picture shows, in a fixed form: what stands for it on the text side.

    Names stand between punctuation marks, so that the tokenizer cuts them alike everywhere.
    """
    match picture:
        case EmojiPicture():
            colour = f", mostly {picture.colour}" if picture.colour else ""
            return f"{picture.concept}, {picture.group}{colour}."
        case CountScene():
            return f"{NUMERALS[picture.count]} times: {picture.concept}."
        case PairScene():
            first, second = picture.concepts
            if picture.across:
                return f"on the left: {first}, on the right: {second}."
            return f"at the top: {first}, at the bottom: {second}."
        case WordCard():
            return f"the word {picture.word}."
        case NumberCard():
            return f"the number {picture.number}."
        case TextPage():
            return f"a page with {NUMERALS[len(picture.lines)]} lines."
        case RuledTable():
            return f"a table with {NUMERALS[len(picture.cells)]} rows and {NUMERALS[len(picture.cells[0])]} columns."
        case BarChart():
            return (
                f"a bar chart with {NUMERALS[len(picture.values)]} bars, {', '.join(picture.colours)}; "
                f"the tallest is {picture.tallest}."
            )
        case LineChart():
            return f"a line chart, {picture.trend}."
        case PieChart():
            return (
                f"a pie chart with {NUMERALS[len(picture.values)]} slices, {', '.join(picture.colours)}; "
                f"the largest is {picture.largest}."
            )
    raise ValueError(f"no description for a picture of type {type(picture).__name__}")
