"""What the families' papers report, as data: shown beside a run's scores, never compared with them by machine."""

from __future__ import annotations

from mmmoe import paths
from mmmoe.config.load import load
from mmmoe.config.spec import Spec
from mmmoe.evaluation.scores import PaperScore

FOLDER = "configs/benchmarks/published"


class PaperTable(Spec):
    """Scores of one model in one table of a paper."""

    model: str
    """As the paper calls it."""
    source: str
    """Paper and table."""
    scores: dict[str, str | float]
    """By the name of our benchmark; as text where it is more than one number."""


class PaperScoresSpec(Spec):
    """One file in configs/benchmarks/published: what is reported of a family."""

    family: str
    tables: list[PaperTable]


def paper_scores(family: str) -> dict[str, list[PaperScore]]:
    """Returns what papers report of a family, by benchmark; nothing where no file tells of it."""
    path = paths.resolve(f"{FOLDER}/{family}.yaml")
    if not path.is_file():
        return {}
    found: dict[str, list[PaperScore]] = {}
    for table in load(path, PaperScoresSpec).tables:
        for benchmark, value in table.scores.items():
            found.setdefault(benchmark, []).append(PaperScore(table.model, f"{value}", table.source))
    return found
