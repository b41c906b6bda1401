import math

import pytest
import torch
from evaluation_fakes import EOS, FakeModel, FakeTemplate, FakeTransform

from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.subject import Subject

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for name, shade in (("a", 3), ("b", 9), ("copy_of_a", 3)):
        path = tmp_path / f"{name}.png"
        path.write_bytes(bytes([shade]))
        paths.append(path)
    return paths


@pytest.fixture
def questions(pictures):
    a, b, copy = pictures
    return [
        Question("1", "what", "ab", a, ("ab", "a", "xyz")),
        Question("2", "and this longer one", "no", b, ("yes", "no")),
        Question("3", "no picture", "q", None, ("q", "r")),
        Question("4", "here <image> inside", "k", copy, ("k", "lm")),
    ]


def by_hand(model, question, choice, shade):
    """The sum of costs along the answer and its end, one token at a time."""
    previous, total = ord(":"), 0.0
    for token in [*map(ord, choice), EOS]:
        total += model.cost(previous, token, shade)
        previous = token
    return -total


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_scores_equal_those_by_hand_for_any_batch(questions, batch):
    model = FakeModel()
    model.train()
    subject = Subject(model, FakeTemplate(), {"image": FakeTransform()}, CPU, batch=batch)
    scores = subject.score(questions)
    for question, shade, row in zip(questions, (3, 9, 0, 3), scores, strict=True):
        assert row == pytest.approx([by_hand(model, question, choice, shade) for choice in question.choices], abs=1e-4)
    assert model.training, "left as it was found"


def test_a_picture_is_encoded_once_by_content(questions):
    model = FakeModel()
    subject = Subject(model, FakeTemplate(), {"image": FakeTransform()}, CPU, batch=2)
    subject.score(questions)
    subject.generate(questions, 4)
    assert model.encoded == 2, "three files, two contents, nine rows"


def test_features_come_back_from_disk(questions, tmp_path):
    first = FakeModel()
    scores = Subject(first, FakeTemplate(), {"image": FakeTransform()}, CPU, cache=tmp_path / "cache").score(questions)
    second = FakeModel()
    again = Subject(second, FakeTemplate(), {"image": FakeTransform()}, CPU, cache=tmp_path / "cache").score(questions)
    assert (first.encoded, second.encoded) == (2, 0)
    assert scores == again
    other = FakeModel()
    other.tower.key = "other weights"
    Subject(other, FakeTemplate(), {"image": FakeTransform()}, CPU, cache=tmp_path / "cache").score(questions)
    assert other.encoded == 2, "another tower shares nothing"
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_blind_model_sees_grey(questions):
    model = FakeModel()
    scores = Subject(model, FakeTemplate(), {"image": FakeTransform()}, CPU).score(questions, blind=True)
    assert scores[0] == pytest.approx([by_hand(model, questions[0], c, 128) for c in questions[0].choices], abs=1e-4)
    assert model.encoded == 1


def test_rows_of_like_length_share_a_batch(questions):
    model = FakeModel()
    Subject(model, FakeTemplate(), {"image": FakeTransform()}, CPU, batch=3).score(questions)
    widths = [shape[1] for shape in model.calls]
    assert widths == sorted(widths, reverse=True)


def test_a_cut_answer_does_not_win(questions):
    model = FakeModel(longest=9)  # "<image>\nwhat:" is 7 ids; a + end fit, ab and xyz are cut
    subject = Subject(model, FakeTemplate(), {"image": FakeTransform()}, CPU)
    scores = subject.score(questions[:2])
    assert [math.isfinite(score) for score in scores[0]] == [False, True, False]
    assert scores[1] == [float("-inf")] * 2


def test_generate_in_question_order(questions):
    subject = Subject(FakeModel(), FakeTemplate(), {"image": FakeTransform()}, CPU, batch=2)
    assert subject.generate(questions, 8) == ["3", "9", "n", "3"]
    assert subject.generate(questions, 2, blind=True) == ["12", "12", "n", "12"]


def test_progress_adds_up_to_the_questions(questions):
    subject = Subject(FakeModel(), FakeTemplate(), {"image": FakeTransform()}, CPU, batch=2)
    for ask in (lambda a: subject.score(questions, advance=a), lambda a: subject.generate(questions, 2, advance=a)):
        amounts = []
        ask(amounts.append)
        assert sum(amounts) == pytest.approx(len(questions))


def test_prompt_hash_changes_with_the_wording(questions):
    subject = Subject(FakeModel(), FakeTemplate(), {"image": FakeTransform()}, CPU)
    assert subject.prompt_hash(questions[0]) != subject.prompt_hash(questions[1])
    assert subject.prompt_hash(questions[0]) == subject.prompt_hash(questions[0])


def test_a_broken_picture_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not one byte")
    question = Question("1", "q", "a", broken, ("a", "b"))
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        Subject(FakeModel(), FakeTemplate(), {"image": FakeTransform()}, CPU).score([question])
