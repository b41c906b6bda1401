"""Questions of a benchmark, from lines of our own form or a published table, checked before anything is answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmmoe.data.media import KINDS
from mmmoe.evaluation.media import Files
from mmmoe.evaluation.metrics.metric import Item
from mmmoe.evaluation.own_rows import OwnRow, asked, check_row, files_in, parse_line, with_paths
from mmmoe.evaluation.pictures import PictureStore
from mmmoe.evaluation.published import Translator
from mmmoe.evaluation.spec import BenchmarkSpec
from mmmoe.evaluation.tables import files_of, rows_of
from mmmoe.log import logger

SHOWN_ERRORS = 20


@dataclass(frozen=True)
class Question:
    """One question about at most one item of each kind of media."""

    id: str
    """Unique within its benchmark."""
    text: str
    """As the model is asked it, but for the marks of media."""
    answer: str
    """The right one; of several the most frequent, the first of those."""
    image: Path | None = None
    choices: tuple[str, ...] = ()
    """The right answers are among them, also where a letter is asked for; empty for short answers."""
    domain: str = "general"
    video: Files | None = None
    speech: Path | None = None
    audio: Path | None = None
    routing: tuple[int, ...] | None = ()
    """0 or 1 for each vision expert, of a model that has some; None where it is to say itself which it wants."""
    reference: Path | None = None
    """What a drawing might look like; the judge's score on references is the most that drawings can reach."""
    answers: tuple[str, ...] = ()
    """All right ones as the file gives them, empty ones and repeats too; where none are given, the one answer."""
    category: str = ""
    """Sub-task, split or type."""
    group: str = ""
    """Questions that are judged together; empty: it stands alone."""

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", (self.answer,))

    @property
    def media(self) -> Mapping[str, Files]:
        """Its items by kind."""
        named: dict[str, Files | None] = {
            "image": self.image, "video": self.video, "speech": self.speech, "audio": self.audio
        }  # fmt: skip
        return {kind: item for kind, item in named.items() if item is not None}

    @property
    def item(self) -> Item:
        """What a metric may know of it."""
        return Item(self.id, self.answers, self.choices, self.category, self.group)


@dataclass(frozen=True)
class SetAside:
    """Rows that are no questions because something is wrong with them."""

    count: int = 0
    reasons: tuple[str, ...] = ()
    """What is wrong with the first of them."""


@dataclass(frozen=True)
class Exam:
    """What a benchmark asks."""

    questions: list[Question]
    """In the order of the files."""
    set_aside: SetAside = SetAside()


@dataclass
class _Faults:
    """What is wrong, row by row."""

    rows: int = 0
    texts: list[str] = field(default_factory=list)

    def add(self, place: str, problems: list[str]) -> None:
        self.rows += bool(problems)
        self.texts += [f"{place}: {problem}" for problem in problems]

    def told(self) -> str:
        more = f"\n  and {len(self.texts) - SHOWN_ERRORS} more" if len(self.texts) > SHOWN_ERRORS else ""
        return "\n  ".join(self.texts[:SHOWN_ERRORS]) + more


def load_questions(spec: BenchmarkSpec, limit: int | None = None, cache: Path | None = None) -> Exam:
    """Returns the questions of a benchmark in file order, the first `limit` of them if that is given.

    Args:
        spec: Where they are.
        limit: How many.
        cache: The run's cache, where pictures go that a table holds itself.

    Raises:
        ValueError: A file is missing or empty, no row can be used, or one cannot and `bad_rows` is to stop; every
            wrong row is counted and the first twenty are named.
    """
    try:
        files = files_of(spec.file)
    except ValueError as error:
        raise ValueError(f"benchmark {spec.name!r}: {error}") from error
    faults = _Faults()
    source = str(files[0][1]) if len(files) == 1 else f"benchmark {spec.name!r}"
    rows = list(_own_rows(files, spec, faults) if spec.fields is None else _published(spec, faults, cache))
    if faults.rows and (spec.stops_at_bad_rows or not rows):
        raise ValueError(f"{source} has {len(faults.texts)} errors:\n  {faults.told()}")
    if not rows:
        advice = "write one JSON object a line" if spec.fields is None else "see `where` and `having`"
        raise ValueError(f"benchmark {spec.name!r}: {source} holds no questions; {advice}")
    if faults.rows:
        logger().info("benchmark %s: %d rows set aside\n  %s", spec.name, faults.rows, faults.told())
    return Exam(
        [_question(row, spec) for row in rows[:limit]], SetAside(faults.rows, tuple(faults.texts[:SHOWN_ERRORS]))
    )


def _own_rows(files: list[tuple[str, Path]], spec: BenchmarkSpec, faults: _Faults) -> Iterator[OwnRow]:
    """Yields the usable lines of our own form, media as whole paths."""
    first_place: dict[str, str] = {}
    for _, path in files:
        before = "" if len(files) == 1 else f"{path.name} "
        # By bytes: of a text in another encoding every line is told, not only where reading broke off.
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{before}line {number}"
                row, problems = parse_line(line)
                if not problems:
                    problems = _is_new(row, place, first_place)
                    row = with_paths(row, path.parent)
                    problems += check_row(row, spec)
                faults.add(place, problems)
                if not problems:
                    yield row


def _published(spec: BenchmarkSpec, faults: _Faults, cache: Path | None) -> Iterator[OwnRow]:
    """Yields the usable rows of published tables in our own form."""
    assert spec.fields is not None
    translator = Translator(spec.fields, PictureStore(cache))
    first_place: dict[str, str] = {}
    kept: dict[str, OwnRow] = {}
    for table_row in rows_of(spec.file, spec.fields):
        place = f"{table_row.file.name} {table_row.place}"
        for row, problems in translator.rows(table_row):
            if not problems and spec.fields.merge and row["id"] in kept:
                kept[row["id"]]["answers"] += row["answers"]
                continue
            if not problems:
                problems = [*_is_new(row, place, first_place), *check_row(row, spec)]
            faults.add(place, problems)
            if not problems:
                kept[row["id"]] = row
    if unseen := translator.unseen():
        raise ValueError(f"benchmark {spec.name!r}: {unseen[0]}, in none of the rows")
    yield from kept.values()


def _is_new(row: OwnRow, place: str, first_place: dict[str, str]) -> list[str]:
    key = str(row["id"])
    if first_place.setdefault(key, place) != place:
        return [f"id {key!r} was already used in {first_place[key]}; ids must differ"]
    return []


def _question(row: OwnRow, spec: BenchmarkSpec) -> Question:
    files = {kind: files_in(row.get(kind)) for kind in KINDS}
    single = {kind: found[0] if found else None for kind, found in files.items()}
    answers = tuple(row["answers"])
    return Question(
        id=str(row["id"]),
        text=asked(row, spec),
        answer=row.get("answer") or Counter(answer for answer in answers if answer.strip()).most_common(1)[0][0],
        image=single["image"],
        choices=tuple(row.get("choices") or ()),
        domain=row.get("domain") or spec.domain,
        video=files["video"] if isinstance(row.get("video"), list) else single["video"],
        speech=single["speech"],
        audio=single["audio"],
        reference=None if row.get("reference") is None else Path(row["reference"]),
        answers=answers,
        category=row.get("category") or "",
        group=row.get("group") or "",
    )
