"""MoVA's coarse step in words: what an answer means, what a pool offers, and that both fit together."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from mmmoe.data.routing_prompt import MOST, Pool, drawn_pool, letters_in, released_routing, whole_pool

SAID = [[f"{name} one.", f"{name} two.", f"{name} three."] for name in ("dino", "vary", "codetr", "pix", "plot")]
AT_MOST_THREE = [vector for vector in itertools.product((0, 1), repeat=5) if sum(vector) <= MOST]

ANSWERS = {
    # nobody
    "": "", "none": "", "None.": "", "NONE": "", " none of A or B": "", "'none'": "", "no expert": "", "a, b": "",
    # letters
    "A": "A", "B.": "B", "(B)": "B", "[B]": "B", "A,B": "AB", "A, C, E": "ACE", " B , D ": "BD", "B;D": "BD",
    "B/D": "BD", "B & D": "BD", "A and B": "AB", "A or C": "AC", "C, A": "CA", "A\nB\nC": "ABC", "B\r\nD": "BD",
    "A.\nB.": "AB", "**B**": "B", "'A'": "A", "\"A\"": "A", "B, B, B": "B", "E-B": "EB",
    # in sentences
    "Answer: D": "D", "The answer is D.": "D", "Answer: A": "A", "Experts: A, D": "AD", "I choose B": "B",
    "I would take C and A": "CA", "A chart is best read by E": "E", "A picture": "", "It is a plot": "",
    "A is best": "A", "A: sees far, B: reads": "AB", "A: sees far": "A", "Take (A) and (C).": "AC",
    "Deplot (E), Pix2Struct (D)": "ED", "( C )": "C",
    # letters in words, and no letters
    "CAB": "", "DINOv2": "", "B2": "", "A's": "", "don't": "", "Ä, é": "", "ABCDE": "", "B_C": "", "Best: Co-DETR": "",
    # beyond the pool
    "F, G": "", "F, A": "A", "Z": "", "I, J": "",
}  # fmt: skip


@pytest.mark.parametrize(("answer", "letters"), ANSWERS.items(), ids=repr)
def test_strict_reading_of_an_answer(answer, letters):
    assert "".join("ABCDE"[place] for place in letters_in(answer, 5)) == letters


def test_only_the_first_three_count():
    pool = whole_pool(SAID)
    assert pool.routing("E, D, C, B, A", 5) == (0, 0, 1, 1, 1)
    assert pool.routing("A, A, A, A, B", 5) == (1, 1, 0, 0, 0)
    assert pool.routing("F, G, H, B", 5) == (0, 1, 0, 0, 0), "letters beyond the pool take no place"


def test_the_pronoun_is_a_letter_where_there_are_nine():
    assert letters_in("H, I, J", 9) == [7, 8]
    assert letters_in("I think H", 9) == [7]
    assert letters_in("I and H", 9) == [8, 7]


def test_the_released_rule_finds_letters_in_words():
    assert released_routing("Answer: D", 5) == (1, 0, 0, 1, 0)
    assert released_routing("b, c", 5) == (0, 0, 0, 0, 0)
    assert released_routing("A,B,C,D", 5) == (1, 1, 1, 0, 0)
    assert released_routing("G", 5) == (0, 0, 0, 0, 0)


def test_the_whole_pool_is_in_order_and_says_the_first_of_each():
    pool = whole_pool(SAID)
    assert pool == Pool((0, 1, 2, 3, 4), tuple(said[0] for said in SAID))
    assert pool.question("Which plot?", "Choose.").splitlines() == [
        "Choose.", "A. dino one.", "B. vary one.", "C. codetr one.", "D. pix one.", "E. plot one.", "Which plot?"
    ]  # fmt: skip


def drawn(number, shuffle=True, truncate=True, paraphrase=True):
    return drawn_pool(SAID, f"sample{number}", shuffle=shuffle, truncate=truncate, paraphrase=paraphrase)


def test_a_drawn_pool_is_a_pure_function_of_its_seed():
    assert [drawn(n) for n in range(50)] == [drawn(n) for n in range(50)]
    assert len({drawn(n) for n in range(50)}) > 45


@pytest.mark.parametrize("switches", itertools.product((False, True), repeat=3))
def test_each_switch_changes_what_it_names_and_nothing_else(switches):
    shuffle, truncate, paraphrase = switches
    pools = [drawn(n, *switches) for n in range(200)]
    orders = {pool.experts for pool in pools}
    sizes = {len(pool.experts) for pool in pools}
    firsts = {said.split()[1] for pool in pools for said in pool.descriptions}
    assert any(list(order) != sorted(order) for order in orders) == shuffle
    assert sizes == ({2, 3, 4, 5} if truncate else {5})
    assert firsts == ({"one.", "two.", "three."} if paraphrase else {"one."})
    for pool in pools:
        assert len(set(pool.experts)) == len(pool.experts) == len(pool.descriptions)
        assert all(said in SAID[expert] for expert, said in zip(pool.experts, pool.descriptions, strict=True))


def test_every_expert_is_drawn_at_every_letter_about_equally_often():
    counts = Counter((expert, place) for n in range(2000) for place, expert in enumerate(drawn(n).experts[:2]))
    assert len(counts) == 10
    assert all(320 < count < 480 for count in counts.values()), counts  # 400 expected, 4.5 standard deviations


def test_a_pool_of_two_or_one_is_not_truncated():
    for count in (1, 2):
        pools = [
            drawn_pool(SAID[:count], f"{n}", shuffle=True, truncate=True, paraphrase=False) for n in range(20)
        ]  # fmt: skip
        assert {len(pool.experts) for pool in pools} == {count}


@pytest.mark.parametrize("routing", AT_MOST_THREE, ids=str)
def test_what_is_taught_is_read_as_it_was_meant(routing):
    whole = whole_pool(SAID)
    assert whole.routing(whole.answer(routing), 5) == routing
    for number in range(30):
        for truncate in (False, True):
            pool = drawn(number, truncate=truncate)
            offered = tuple(bit if expert in pool.experts else 0 for expert, bit in enumerate(routing))
            assert pool.routing(pool.answer(routing), 5) == offered


def test_answers_name_letters_of_the_pools_order_and_none_for_whom_it_does_not_offer():
    pool = Pool((3, 0, 4), ("pix", "dino", "plot"))
    assert pool.answer((1, 0, 0, 1, 0)) == "A, B"
    assert pool.answer((1, 1, 1, 0, 1)) == "B, C"
    assert pool.answer((0, 1, 1, 0, 0)) == "none"
    assert pool.routing("C, A", 5) == (0, 0, 0, 1, 1)
    assert pool.routing("D", 5) == (0, 0, 0, 0, 0)
