import numpy as np
import pytest

from mmmoe.evaluation.metrics import chance, interval, is_correct, majority, normalise
from mmmoe.evaluation.questions import Question


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("Yes.", "yes", True),
        ("  two   dogs ", "Two dogs!", True),
        ("", "", False),
        ("no", "yes", False),
        ("<", ">", False),
        ("<", "<", True),
        ("", "<", False),
        ("1,000", "1000", True),
    ],
)
def test_exact_match_after_normalisation(prediction, answer, right):
    assert is_correct(prediction, answer) is right


def test_normalise():
    assert normalise(" The  RED, car. ") == "the red car"


def test_interval_equals_a_literal_bootstrap():
    outcomes = np.arange(200) < 140
    generator = np.random.default_rng(5)
    means = [generator.choice(outcomes, len(outcomes)).mean() for _ in range(20_000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert np.allclose(interval(outcomes.tolist(), 20_000), expected, atol=0.006)
    # and its width is that of the normal approximation
    assert np.allclose(np.diff(expected), 2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rtol=0.05)


def test_interval_is_repeatable_and_never_claims_certainty():
    outcomes = [True, False, True]
    assert interval(outcomes, 1000) == interval(outcomes, 1000)
    low, high = interval([True] * 30, 1000)
    assert (low, high) == (pytest.approx(0.8843, abs=1e-4), 1.0)  # Clopper-Pearson, 30 of 30
    assert interval([False] * 30, 1000) == (0.0, pytest.approx(1 - low))


def test_guessing_baselines():
    questions = [
        Question("1", "q", "a", choices=("a", "b")),
        Question("2", "q", "a", choices=("a", "b", "c", "d")),
        Question("3", "q", "A.", choices=("A.", "b")),
        Question("4", "q", "b", choices=("a", "b")),
    ]
    assert chance(questions) == pytest.approx((0.5 + 0.25 + 0.5 + 0.5) / 4)
    assert majority(questions) == 0.75
    free = [Question(str(i), "q", answer) for i, answer in enumerate(["x", "X", "y", "z"])]
    assert chance(free) == pytest.approx(1 / 3)
    assert majority(free) == 0.5
