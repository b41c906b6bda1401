"""MoVA's guide in the dataset: which views a sample brings, what goes beside them, what it becomes when it asks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from routed_source import (
    DESCRIPTIONS,
    INSTRUCTION,
    ROUTINGS,
    TRANSFORMS,
    dataset_with,
    encode,
    guide_with,
    question_ids,
    same,
    write_routed,
)

from mmmoe.config.ids import GLANCE_VIEW, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.data import features as features_module
from mmmoe.data.collate import collate
from mmmoe.data.dataset import with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.routed_images import Augmentation, RoutedImages, drawn, fixed
from mmmoe.data.shards import ShardSet

VIEWS = ("image", *(f"image.{name}" for name in DESCRIPTIONS))
NOTHING_DRAWN = Augmentation(False, False, False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_routed(tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def ids(tokenizer, tmp_path_factory):
    return question_ids(tokenizer, tmp_path_factory.mktemp("text"))


def routed_views(routing):
    return {"image", *(view for view, bit in zip(VIEWS[1:], routing, strict=True) if bit)}


def test_a_sample_brings_the_views_that_are_routed_to_it(shards, tokenizer, ids):
    dataset = dataset_with(shards, tokenizer, guide_with(ids))
    for number in range(12):
        sample, routing = dataset.get(0, number), ROUTINGS[number % 6]
        if routing is None:
            assert sample.media == {}
            continue
        count = 1 + (number % 5 == 4)
        assert set(sample.media) == routed_views(routing) | {ROUTING_VIEW, QUESTION_VIEW}
        assert all(len(items) == count for items in sample.media.values())
        assert sample.media[ROUTING_VIEW].tolist() == [routing] * count
        first = " and ".join(["what colour ?"] * count)
        said = tokenizer.encode(f"question 0: {first}\n\nquestion 1: yes or no ?\n\n")
        assert sample.media[QUESTION_VIEW].tolist() == [said + [0] * (24 - len(said))] * count


def test_a_batch_holds_each_experts_own_images_in_order(shards, tokenizer, ids):
    dataset = dataset_with(shards, tokenizer, guide_with(ids))
    samples = [dataset.get(0, number) for number in range(12)]
    batch = collate(samples, 0)
    routing_IE = batch.media[ROUTING_VIEW]
    assert len(routing_IE) == len(batch.media["image"]) == int((batch.input_ids_BT == -200).sum()) == 12
    for e, name in enumerate(DESCRIPTIONS):
        at = routing_IE[:, e] == 1
        shades = batch.media[f"image.{name}"].mean((2, 3))
        torch.testing.assert_close(shades, batch.media["image"].mean((2, 3))[at])


@pytest.mark.parametrize("is_encoded", [False, True])
def test_features_of_experts_that_are_not_routed_are_never_opened(
    is_encoded, shards, tokenizer, ids, tmp_path, monkeypatch
):
    monkeypatch.setattr(features_module, "PARTS", dict.fromkeys(features_module.PARTS, 1))
    plain = dataset_with(shards, tokenizer, guide_with(ids))
    stores = dict(with_features(plain.sources, tmp_path, dict(zip(VIEWS, VIEWS, strict=True)))[0].features)
    for view, store in stores.items():
        if is_encoded or view != "image.wide":
            encode_missing(store, encode, TRANSFORMS[view])
    dataset = dataset_with(shards, tokenizer, guide_with(ids), features=stores, transforms={})
    opened = []
    for view, store in stores.items():
        load = store._load
        monkeypatch.setattr(store, "_load", lambda *given, view=view, load=load: opened.append(view) or load(*given))
    for number in (0, 1, 2, 6, 7):
        opened.clear()
        sample, routing = dataset.get(0, number), ROUTINGS[number % 6]
        assert set(opened) == (routed_views(routing) if routing is not None else set())
        assert set(sample.features) == set(opened)
        assert set(sample.media) <= {ROUTING_VIEW, QUESTION_VIEW}
    if not is_encoded:
        with pytest.raises(FileNotFoundError, match="were never written"):
            dataset.get(0, 3)


def test_a_dialogue_cut_before_its_second_image_brings_one(shards, tokenizer, ids):
    whole = dataset_with(shards, tokenizer, guide_with(ids)).get(0, 4)
    second = [at for at, token in enumerate(whole.input_ids) if token == -200][1]
    assert second > 8, "the template's least"
    for length, count in ((second + 1, 2), (second, 1)):
        cut = dataset_with(shards, tokenizer, guide_with(ids), max_length=length).get(0, 4)
        assert cut.input_ids.count(-200) == count
        assert {len(items) for items in cut.media.values()} == {count}


def test_a_routing_conversation_asks_for_what_the_shard_says(shards, tokenizer, ids):
    guide = guide_with(ids, conversations=[NOTHING_DRAWN])
    record = ShardSet(shards).record(3)
    guided = guide(record, 0, 3)
    lines = "\n".join(["A. near one.", "B. far one.", "C. wide one."])
    assert guided.turns[0].text == f"<image>\n{INSTRUCTION}\n{lines}\nWhat colour ?"
    assert [turn.text for turn in guided.turns[1:]] == ["B, C"]
    assert guided.views == {"image"}
    assert guided.counts_as == {"image": GLANCE_VIEW}
    assert guided.beside[ROUTING_VIEW].tolist() == [[-1, -1, -1]]
    asked = guide.prompt("What colour ?")
    assert guided.turns[0].text == f"<image>\n{asked}", "what inference asks with an empty pool drawn"
    sample = dataset_with(shards, tokenizer, guide).get(0, 4)
    assert set(sample.media) == {"image", ROUTING_VIEW, QUESTION_VIEW}
    assert sample.media[ROUTING_VIEW].tolist() == [[-1, -1, -1]] * 2
    assert dataset_with(shards, tokenizer, guide).get(0, 2).media == {}


def test_labels_within_reach_count_a_glance_as_few(shards, tokenizer, ids):
    def targets(guide, reach):
        labels = dataset_with(shards, tokenizer, guide, max_positions=reach).get(0, 0).labels
        return [at for at, label in enumerate(labels) if label != -100]

    conversation, answer = guide_with(ids, conversations=[NOTHING_DRAWN]), guide_with(ids)
    for guide, extra in ((conversation, 4 - 1), (answer, 9 - 1)):
        first = targets(guide, None)[0]
        assert targets(guide, first + extra + 1) == [first]
        assert targets(guide, first + extra) == []


def test_conversations_are_of_their_source_alone_and_pure(shards, ids):
    guide = guide_with(ids, conversations=[None, Augmentation()])
    record = ShardSet(shards).record(3)
    assert guide(record, 0, 3).turns == record.turns
    first = guide(record, 1, 3)
    again = guide_with(ids, conversations=[None, Augmentation()])(record, 1, 3)
    assert (again.turns, again.views, again.counts_as) == (first.turns, first.views, first.counts_as)
    assert same(again.beside, first.beside)
    others = {guide(ShardSet(shards).record(n), 1, n).turns[0].text for n in (0, 1, 3, 5, 6, 7, 9, 10, 11)}
    assert len(others) > 5
    answers = {guide(ShardSet(shards).record(n), 1, n).turns[1].text for n in (1, 7)}
    assert answers == {"none"}


def test_marks_of_a_later_turn_stay_in_a_routing_conversation(tokenizer, ids, tmp_path):
    def later(number, row):
        turns = row["conversations"]
        turns[2]["value"], turns[0]["value"] = turns[0]["value"], turns[2]["value"]
        return row

    dataset = dataset_with(write_routed(tmp_path, 2, later), tokenizer, guide_with(ids, conversations=[NOTHING_DRAWN]))
    sample = dataset.get(0, 0)
    assert sample.input_ids.count(-200) == 1
    assert set(sample.media) == {"image", ROUTING_VIEW, QUESTION_VIEW}


def test_choices_are_pure_and_bounded(shards, tokenizer, ids):
    record = ShardSet(shards).record(0)
    assert fixed("none", 3)(record, 0, 0) == (0, 0, 0)
    assert fixed("all", 3)(record, 0, 0) == (1, 1, 1)
    choose = drawn(5, seed=7, most=2)
    found = [choose(record, source, index) for source in range(2) for index in range(200)]
    assert found == [drawn(5, seed=7, most=2)(record, s, i) for s in range(2) for i in range(200)]
    assert found != [drawn(5, seed=8, most=2)(record, s, i) for s in range(2) for i in range(200)]
    assert {sum(routing) for routing in found} == {0, 1, 2}
    assert found[:200] != found[200:]
    assert {sum(drawn(2, 0, most=3)(record, 0, i)) for i in range(50)} == {0, 1, 2}
    guide = guide_with(ids, choice=fixed("all", 3))
    assert set(dataset_with(shards, tokenizer, guide).get(0, 1).media) == {*VIEWS, ROUTING_VIEW, QUESTION_VIEW}


def test_samples_without_usable_weights_are_set_aside_with_the_reason(tokenizer, ids, tmp_path):
    def damaged(number, row):
        return {1: row | {"routing_weights": [1, 0]}, 3: row | {"routing_weights": None}}.get(number, row)

    quarantine = Quarantine(None, 2)
    dataset = dataset_with(write_routed(tmp_path, 5, damaged), tokenizer, guide_with(ids), quarantine=quarantine)
    assert [dataset.get(0, number) is None for number in range(5)] == [False, True, False, True, False]
    two, none = (bad.reason for bad in quarantine.read())
    assert two.startswith("the sample has 2 routing_weights, the model 3 experts (near, far, wide)")
    assert none.startswith("the sample has no routing_weights; label its shards")


def test_weights_of_foreign_shards_that_are_no_bits_are_set_aside(shards, ids):
    """A row of -1 would be taken for a routing pass."""
    record = ShardSet(shards).record(0)
    for routing in ((-1, -1, -1), (2, 0, 0)):
        with pytest.raises(ValueError, match=r"routing_weights .* not all 0 and 1"):
            guide_with(ids)(replace(record, routing=routing), 0, 0)


def test_what_inference_asks_and_reads(ids):
    guide = guide_with(ids)
    assert guide.experts == ("near", "far", "wide")
    views, beside = guide.of_question("<image>\nWhat colour ?", None)
    assert views == {"image"}
    assert beside[ROUTING_VIEW].tolist() == [[-1, -1, -1]]
    views, again = guide.of_question("What <image> colour ?", (0, 1, 0))
    assert views == {"image", "image.far"}
    assert again[ROUTING_VIEW].tolist() == [[0, 1, 0]]
    assert torch.equal(beside[QUESTION_VIEW], guide.of_question("What colour ?", None)[1][QUESTION_VIEW])
    assert guide.of_question("What colour ?", ())[1][ROUTING_VIEW].tolist() == [[0, 0, 0]]
    assert guide.prompt("here <image> what ?").startswith(f"<image>\n{INSTRUCTION}\nA. near one.")
    assert guide.prompt("what ?").endswith("C. wide one.\nwhat ?")
    assert guide.read("C, A") == (1, 0, 1)
    assert guide.read("Answer: B") == (0, 1, 0)
    released = RoutedImages(DESCRIPTIONS, ids, INSTRUCTION, "released")
    assert released.read("Answer: B") == (1, 1, 0)
