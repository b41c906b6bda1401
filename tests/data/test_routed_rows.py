"""Routing weights from rows of JSON to records, and questions to the ids that the gate's encoder reads."""

from __future__ import annotations

import json
import threading

import pytest
from routed_source import ROUTINGS, question_ids, write_routed

from mmmoe.data.shards import ShardSet


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_routed(tmp_path_factory.mktemp("routed"))


def test_weights_come_through_packing_to_the_record(shards):
    records = [ShardSet(shards).record(index) for index in range(12)]
    wanted = [None if ROUTINGS[n % 6] is None else tuple(ROUTINGS[n % 6]) for n in range(12)]
    assert [record.routing for record in records] == wanted


@pytest.mark.parametrize("value", [[], [2, 0, 0], [0.5, 0, 1], "101", 1, [None], {"near": 1}, [[1]], [-1, -1, -1]])
def test_weights_that_are_none_are_refused_in_packing(value, tmp_path):
    def damaged(number, row):
        return row | ({"routing_weights": value} if number == 3 else {})

    with pytest.raises(ValueError, match=r"row 3: routing_weights .* is no list of 0 and 1; give one for each"):
        write_routed(tmp_path, 5, damaged)


def test_null_weights_are_none_at_all(tmp_path):
    shards = write_routed(tmp_path, 1, lambda number, row: row | {"routing_weights": None})
    assert ShardSet(shards).record(0).routing is None


def test_question_ids_are_cut_and_filled_up(tokenizer, tmp_path):
    short = question_ids(tokenizer, tmp_path, 5)
    row = short(["What colour is it ?", "yes"])
    assert row.shape == (1, 5)
    assert row[0].tolist() == tokenizer.encode("question 0: what colour is it ?")[:5]
    filled = question_ids(tokenizer, tmp_path, 40)(["What ?"])[0]
    length = len(tokenizer.encode("question 0: what ?\n\n"))
    assert (filled[length:] == tokenizer.pad_token_id).all()
    assert not (filled[:length] == tokenizer.pad_token_id).any()


def test_question_ids_from_many_threads(tokenizer, tmp_path):
    """The loader's threads share one tokenizer."""
    tokenizer.save_pretrained(tmp_path)
    for attempt in range(20):
        fresh, failures = question_ids(tokenizer, tmp_path, 6), []
        start = threading.Barrier(8)

        def ask(fresh=fresh, failures=failures, start=start):
            start.wait()
            try:
                for number in range(20):
                    fresh([f"What colour is it {number} ?"] * 20)
            except RuntimeError as error:
                failures.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [], attempt


def test_rows_of_json_may_name_the_weights_as_booleans(tmp_path):
    shards = write_routed(tmp_path, 1, lambda number, row: row | {"routing_weights": [True, False, True]})
    assert ShardSet(shards).record(0).routing == (1, 0, 1)
    assert json.loads((tmp_path / "rows.json").read_text())[0]["routing_weights"] == [True, False, True]
