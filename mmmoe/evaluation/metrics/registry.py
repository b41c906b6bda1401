"""All metrics by name."""

from __future__ import annotations

from mmmoe.evaluation.metrics.anls import ANLS, ANLS_DOCVQA, ANLS_TEXT_HARMONY
from mmmoe.evaluation.metrics.caption import CAPTION
from mmmoe.evaluation.metrics.circular import MMBENCH
from mmmoe.evaluation.metrics.exact import CHOICE, CONTAINED, EXACT, WRITTEN
from mmmoe.evaluation.metrics.gqa import GQA, GQA_LOOSE
from mmmoe.evaluation.metrics.metric import Metric
from mmmoe.evaluation.metrics.mme import MME, MME_MOVA
from mmmoe.evaluation.metrics.ocrbench import OCRBENCH
from mmmoe.evaluation.metrics.options import LETTERS_ONLY, OPTIONS, SCIENCEQA
from mmmoe.evaluation.metrics.place import LOCATION
from mmmoe.evaluation.metrics.pope import POPE
from mmmoe.evaluation.metrics.relaxed import RELAXED
from mmmoe.evaluation.metrics.vqa import A_OKVQA, TEXT_VQA, VQA_V2
from mmmoe.evaluation.metrics.words import TINY_LVLM, WORDS

METRICS: dict[str, Metric] = {
    "exact": EXACT,
    "choice": CHOICE,
    "contained": CONTAINED,
    "words": WORDS,
    "vqa": TEXT_VQA,
    "vqa_v2": VQA_V2,
    "a_okvqa": A_OKVQA,
    "anls": ANLS,
    "anls_docvqa": ANLS_DOCVQA,
    "anls_text_harmony": ANLS_TEXT_HARMONY,
    "relaxed": RELAXED,
    "gqa": GQA,
    "gqa_loose": GQA_LOOSE,
    "pope": POPE,
    "mme": MME,
    "mme_mova": MME_MOVA,
    "options": OPTIONS,
    "mmbench": MMBENCH,
    "scienceqa": SCIENCEQA,
    "letters": LETTERS_ONLY,
    "ocrbench": OCRBENCH,
    "caption": CAPTION,
    "tiny_lvlm": TINY_LVLM,
    "location": LOCATION,
    "written": WRITTEN,
}
"""What a benchmark's `metric` may be; configs/benchmarks/README.md names the page that defines each."""
OF_KIND = {
    "multiple_choice": "choice",
    "short_answer": "exact",
    "location": "location",
    "drawing": "written",
}
"""The metric of a benchmark that names none, by its kind."""


def metric_of(name: str) -> Metric:
    """Returns the metric of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; one of {', '.join(METRICS)}")
    return METRICS[name]
