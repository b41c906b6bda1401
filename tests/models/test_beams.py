"""Beam search: one beam is greedy, many are an exhaustive search, and a batch is its rows one by one."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from models_toy import randomise, toy_model

from mmmoe.models.beams import beam_search
from mmmoe.models.generation import NO_NUMBER, words_of

STOPS = frozenset([2])


def prompt_of(model, rows):
    longest = max(len(row) for row in rows)
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    return model._splice(ids_BT, mask_BT, None, None, None, left=True)


@pytest.fixture(scope="module")
def model():
    model = toy_model()
    randomise(model)
    return model.eval()


ROWS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 4]]


@torch.no_grad()
def likelihood(model, row, answer):
    """The mean log-likelihood of an answer's tokens, each from a pass over all before it."""
    total = 0.0
    for place in range(len(answer)):
        ids = torch.tensor([row + answer[:place]])
        logits = model.logits(ids, torch.ones_like(ids).bool())[0, -1]
        total += float(logits.float().log_softmax(-1)[answer[place]])
    return total / len(answer)


@torch.no_grad()
def test_one_beam_is_greedy(model):
    ids = torch.tensor([[0, 0, 5, 6, 7], [0, 0, 0, 8, 9]])
    mask = ids > 0
    greedy = model.generate(ids, mask, max_new_tokens=6, eos_id=None)
    prompt = model._splice(ids, mask, None, None, None, left=True)
    assert beam_search(model.language, model.head, prompt, 1, 6, frozenset()) == greedy


@torch.no_grad()
@pytest.mark.parametrize("row", [[5, 6, 7], [8, 9]])
def test_one_beam_is_greedy_whatever_ends_an_answer(model, row):
    """Most of these ends are at some step the second likeliest, where a greedy answer goes on."""
    prompt, ids = prompt_of(model, [row]), torch.tensor([row])
    for stop in range(model.language.config.vocab_size):
        greedy = model.generate(ids, torch.ones_like(ids).bool(), max_new_tokens=12, eos_id=stop)
        assert beam_search(model.language, model.head, prompt, 1, 12, frozenset([stop])) == greedy


class Rehearsed:
    """A language model whose next logits depend on the number of tokens said alone."""

    def __init__(self, steps):
        self.steps, self.said = steps, 0

    def get_decoder(self):
        return self

    def get_input_embeddings(self):
        return lambda ids: torch.zeros(*ids.shape, 1)

    def __call__(self, inputs_embeds, **kwargs):
        hidden = torch.full((len(inputs_embeds), 1, 1), float(self.said))
        self.said += 1
        return SimpleNamespace(last_hidden_state=hidden, past_key_values=MagicMock())

    def head(self, hidden_ND):
        return self.steps[int(hidden_ND[0, 0])].expand(len(hidden_ND), -1)


def test_a_second_choice_does_not_end_a_greedy_answer():
    """Token 0 at .50 against an end (1) at .45; all that follows is flat, so ending at once has the better mean."""
    steps = torch.tensor([[0.5, 0.45, 0.05, 1e-9, 1e-9]] + [[0.25, 0.15, 0.2, 0.2, 0.2]] * 3).log()
    prompt = SimpleNamespace(
        embeddings_BTD=torch.zeros(1, 1, 1),
        mask_BT=torch.ones(1, 1, dtype=torch.bool),
        position_BT=torch.zeros(1, 1, dtype=torch.int64),
    )
    found = {}
    for beams in (1, 2):
        language = Rehearsed(steps)
        found[beams] = beam_search(language, language.head, prompt, beams, 4, frozenset([1]))[0]
    assert found == {1: [0, 0, 0, 0], 2: []}


@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(model):
    whole = beam_search(model.language, model.head, prompt_of(model, ROWS), 4, 5, STOPS)
    alone = [beam_search(model.language, model.head, prompt_of(model, [row]), 4, 5, STOPS)[0] for row in ROWS]
    assert whole == alone


@torch.no_grad()
def test_as_many_beams_as_there_are_continuations_find_the_best(model):
    vocabulary = model.language.config.vocab_size
    found = beam_search(model.language, model.head, prompt_of(model, ROWS[:1]), vocabulary, 2, frozenset())[0]
    firsts = torch.arange(vocabulary)[:, None]
    ids = torch.cat([torch.tensor([ROWS[0]]).expand(vocabulary, -1), firsts], dim=1)
    steps = model.logits(ids, torch.ones_like(ids).bool()).float().log_softmax(-1)
    both = steps[:, -2].gather(1, firsts) + steps[:, -1]  # every pair of tokens
    assert found == list(divmod(int(both.argmax()), vocabulary))


@torch.no_grad()
def test_more_beams_never_find_a_less_likely_answer_of_fixed_length(model):
    one, many = (
        beam_search(model.language, model.head, prompt_of(model, ROWS), beams, 4, frozenset()) for beams in (1, 8)
    )
    for row, few, found in zip(ROWS, one, many, strict=True):
        assert likelihood(model, row, found) >= likelihood(model, row, few) - 1e-6


@torch.no_grad()
def test_an_answer_has_no_end_in_it_and_a_penalty_keeps_it_from_repeating(model):
    for answer in beam_search(model.language, model.head, prompt_of(model, ROWS), 3, 8, STOPS):
        assert not STOPS & set(answer)
    strict = beam_search(model.language, model.head, prompt_of(model, ROWS), 3, 8, frozenset(), 1e6)
    assert all(len(set(answer)) == len(answer) for answer in strict)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("begins", [0, 2], ids=["at once", "later"])
def test_a_row_whose_logits_hold_a_nan_ends_there_and_the_others_as_ever(model, beams, begins):
    ids = torch.tensor([[0, 0, 5, 6, 7], [0, 0, 0, 8, 9], [10, 11, 12, 13, 4]])
    mask, calls = ids > 0, []

    def answers():
        return model.generate(ids, mask, max_new_tokens=5, eos_id=2, beams=beams)

    def spoil(head, given, logits):
        calls.append(1)
        own = len(logits) // 3
        if len(calls) > begins:
            logits[own : 2 * own, 7] = float("nan")

    sound = answers()
    assert len(sound[1]) > begins, "row 1 is not done before"
    with model.head.register_forward_hook(spoil):
        first, broken, last = answers()
    assert (first, last) == (sound[0], sound[2])
    assert (len(broken), broken[-1]) == (begins + 1, NO_NUMBER)
    assert words_of(None, broken) is None


@torch.no_grad()
def test_a_nan_after_its_end_is_none_of_a_rows_business(model):
    ids = torch.tensor([[0, 0, 5, 6, 7], [0, 0, 0, 8, 9]])

    def answers(stop):
        return model.generate(ids, ids > 0, max_new_tokens=5, eos_id=stop)

    stop = answers(None)[1][0]  # row 1 ends at once
    sound = answers(stop)
    assert sound[1] == []
    assert len(sound[0]) > 1
    calls = []

    def spoil(head, given, logits):
        calls.append(1)
        if len(calls) > 1:
            logits[1] = float("nan")

    with model.head.register_forward_hook(spoil):
        assert answers(stop) == sound
    calls.clear()
    with model.head.register_forward_hook(spoil):  # who runs on behind an end sees it there
        _, beyond = answers(None)
    assert beyond == [stop, NO_NUMBER]
