import json

import pytest
import torch

from mmmoe.data.collate import collate
from mmmoe.data.dataset import Dataset, open_sources, with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.loader import StepLoader
from mmmoe.data.mixture import order_of
from mmmoe.data.pack import pack
from mmmoe.data.quarantine import BadSample, Quarantine
from mmmoe.data.sample import Sample
from mmmoe.data.shards import ShardSet
from mmmoe.data.spec import MixtureSpec, SourceSpec, TemplateSpec
from mmmoe.data.template import Template
from mmmoe.data.transforms import ImageTransform

TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")


def make(packed, tokenizer, folder=None, budget=0):
    sources = [
        SourceSpec(name="one", shards=str(packed), weight=2, domain="a"),
        SourceSpec(name="two", shards=str(packed), weight=1, domain="b"),
    ]
    spec = MixtureSpec(sources=sources, seed=11, bad_samples=budget)
    opened = open_sources(spec)
    dataset = Dataset(opened, Template(TemplateSpec(), tokenizer), {"image": TRANSFORM}, Quarantine(folder, budget))
    return dataset, order_of(spec, dataset.sizes)


def flat(batches):
    """Every sample of some batches as (source, key, ids, labels, number of its images), sorted."""
    rows = []
    for batch in batches:
        for b in range(batch.num_samples):
            length = int(batch.attention_mask_BT[b].sum())
            ids, labels = batch.input_ids_BT[b, :length].tolist(), batch.labels_BT[b, :length].tolist()
            rows.append((int(batch.source_B[b]), batch.keys[b], tuple(ids), tuple(labels)))
    return sorted(rows)


def test_any_world_size_sees_the_same_step(packed, tokenizer):
    dataset, order = make(packed, tokenizer)
    whole = {step: flat(StepLoader(dataset, order, 10, 10, workers=0).step(step)) for step in (0, 3, 7)}
    for world, micro in ((1, 3), (2, 2), (3, 4), (10, 1)):
        for step, expected in whole.items():
            ranks = [StepLoader(dataset, order, 10, micro, rank, world, workers=0).step(step) for rank in range(world)]
            assert len({len(batches) for batches in ranks}) == 1
            assert all(batch.num_samples <= micro for batches in ranks for batch in batches)
            assert flat(batch for batches in ranks for batch in batches) == expected


def test_steps_follow_the_order(packed, tokenizer):
    dataset, order = make(packed, tokenizer)
    keys = [dataset.sources[0].shards.entry(i).key for i in range(30)]
    for step in (0, 2):
        draws = order.draws(range(step * 6, step * 6 + 6))
        expected = sorted((draws[i].source, keys[draws[i].index]) for i in range(6))
        assert [row[:2] for row in flat(StepLoader(dataset, order, 6, 4, workers=0).step(step))] == expected


@pytest.mark.parametrize("workers", [1, 3])
def test_background_changes_nothing(packed, tokenizer, workers):
    dataset, order = make(packed, tokenizer)
    plain = StepLoader(dataset, order, 8, 3, workers=0)
    with StepLoader(dataset, order, 8, 3, workers=workers, total_steps=9) as ahead:
        for step in (0, 1, 2, 6, 7, 8, 1):
            expected, found = plain.step(step), ahead.step(step)
            for a, b in zip(expected, found, strict=True):
                assert a.keys == b.keys
                assert torch.equal(a.input_ids_BT, b.input_ids_BT)
                assert torch.equal(a.media["image"], b.media["image"])
        assert ahead.wait_s > 0


def test_features_stand_in_for_pixels(packed, tokenizer, tmp_path):
    dataset, order = make(packed, tokenizer)

    def encode(pixels_ICHW):
        return pixels_ICHW.mean((2, 3))[:, None]

    sources = with_features(dataset.sources, tmp_path, {"image": "tower"})
    encode_missing(sources[0].features["image"], encode, TRANSFORM)
    cached = Dataset(sources, dataset.template, {}, Quarantine(None, 0))
    for pixels, features in zip(
        StepLoader(dataset, order, 12, 5, workers=0).step(1),
        StepLoader(cached, order, 12, 5, workers=0).step(1),
        strict=True,
    ):
        assert features.media == {}
        assert features.features["image"].dtype == torch.float32
        assert torch.equal(features.features["image"], encode(pixels.media["image"]).half().float())
        assert torch.equal(features.input_ids_BT, pixels.input_ids_BT)


@pytest.fixture
def damaged(write_llava, tmp_path):
    """Ten samples; numbers 3 and 6 have no readable picture, found only when they are decoded."""
    json_path, images = write_llava(tmp_path / "in", 10, every_third_text_only=False)
    pack(json_path, images, tmp_path / "bad", samples_per_shard=10, domain="")
    shards = ShardSet(tmp_path / "bad")
    tar = shards.shards[0].path
    data = bytearray(tar.read_bytes())
    for number in (3, 6):
        offset, size = shards.entry(number).members["0.png"]
        data[offset : offset + size] = bytes(size)
    tar.write_bytes(bytes(data))
    return tmp_path / "bad"


def single(folder, tokenizer, quarantine, budget=2):
    spec = MixtureSpec(sources=[SourceSpec(name="one", shards=str(folder))], bad_samples=budget)
    dataset = Dataset(open_sources(spec), Template(TemplateSpec(), tokenizer), {"image": TRANSFORM}, quarantine)
    return dataset, order_of(spec, dataset.sizes)


def test_bad_samples_are_left_out_named_and_the_same_after_a_resume(damaged, tokenizer, tmp_path):
    quarantine = Quarantine(tmp_path, 2)
    dataset, order = single(damaged, tokenizer, quarantine)
    first = [flat(StepLoader(dataset, order, 5, 2, workers=0).step(step)) for step in range(4)]
    assert sum(len(rows) for rows in first) == 2 * (10 - 2)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.0.jsonl").read_text().splitlines()]
    assert sorted(line["key"].split("-")[0] for line in lines) == ["00000003", "00000006"]
    assert all(line["shard"] == "shard-000000.tar" and "decoded" in line["reason"] for line in lines)
    resumed, order = single(damaged, tokenizer, Quarantine(tmp_path, 2))
    again = [flat(StepLoader(resumed, order, 5, 2, workers=0).step(step)) for step in range(4)]
    assert again == first
    assert len((tmp_path / "quarantine.0.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_over_budget_stops_with_the_reasons(damaged, tokenizer, tmp_path, workers):
    dataset, order = single(damaged, tokenizer, Quarantine(tmp_path, 1))
    with (
        StepLoader(dataset, order, 10, 10, workers=workers) as loader,
        pytest.raises(ValueError, match=r"more than bad_samples = 1") as caught,
    ):
        loader.step(0)
    assert "cannot be decoded" in str(caught.value)
    assert "one/shard-000000.tar/0000000" in str(caught.value)


def test_one_found_by_another_thread_first_counts_as_well(tmp_path):
    quarantine = Quarantine(tmp_path, 1)
    quarantine.add(BadSample("s", "t.tar", "first", "why"))
    for _ in range(2):  # by the thread that reads ahead, and then by the one whose step it is
        with pytest.raises(ValueError, match="2 samples"):
            quarantine.add(BadSample("s", "t.tar", "second", "why"))


def test_budget_counts_all_processes(tmp_path):
    for rank in range(2):
        Quarantine(tmp_path, 2, rank).add(BadSample("s", "t.tar", f"key{rank}", "why"))
    Quarantine(tmp_path, 2, 0).add(BadSample("s", "t.tar", "key1", "why"))
    with pytest.raises(ValueError, match="3 samples"):
        Quarantine(tmp_path, 2, 1).add(BadSample("s", "t.tar", "key2", "why"))


def test_micro_batch_whose_samples_are_all_bad_has_no_rows(damaged, tokenizer, tmp_path):
    dataset, order = single(damaged, tokenizer, Quarantine(None, 2))
    batches = StepLoader(dataset, order, 10, 1, workers=0).step(0)
    assert len(batches) == 10
    empty = [batch for batch in batches if batch.num_samples == 0]
    assert len(empty) == 2
    assert all(b.num_targets == 0 and b.num_tokens == 0 and b.input_ids_BT.shape == (0, 1) for b in empty)


def test_collate_pads_on_the_right_and_keeps_reading_order():
    a, b, c = (torch.full((3, 2, 2), float(i)) for i in range(3))
    batch = collate(
        [
            Sample([1, -200, 7], [-100, -100, 7], media={"image": a[None]}, key="x", domain="p"),
            Sample([1], [-100], source=1, key="y", domain="q"),
            Sample(
                [1, -200, -200, 5, 6],
                [-100, -100, -100, 5, 6],
                media={"image": torch.stack((b, c))},
                source=2,
                key="z",
                domain="p",
            ),
        ],
        pad_id=9,
    )
    assert batch.input_ids_BT.tolist() == [[1, -200, 7, 9, 9], [1, 9, 9, 9, 9], [1, -200, -200, 5, 6]]
    assert batch.labels_BT.tolist() == [[-100, -100, 7, -100, -100], [-100] * 5, [-100, -100, -100, 5, 6]]
    assert batch.attention_mask_BT.sum(1).tolist() == [3, 1, 5]
    assert torch.equal(batch.media["image"], torch.stack((a, b, c)))
    assert (batch.num_samples, batch.num_targets, batch.num_tokens) == (3, 3, 6)
    assert set(batch.to(torch.device("cpu")).inputs()) == {
        "input_ids_BT",
        "labels_BT",
        "attention_mask_BT",
        "media",
        "features",
        "task_B",
    }


def test_pixels_and_features_do_not_mix():
    with pytest.raises(ValueError, match="mixes image as such and as cached features"):
        collate(
            [
                Sample([1], [1], media={"image": torch.zeros(1, 3, 2, 2)}),
                Sample([1], [1], features={"image": torch.zeros(1, 2, 3)}),
            ],
            0,
        )


def test_images_cut_off_with_the_text_are_not_handed_out(packed, tokenizer):
    dataset, _ = make(packed, tokenizer)
    short = Dataset(
        dataset.sources, Template(TemplateSpec(max_length=8), tokenizer), {"image": TRANSFORM}, Quarantine(None, 0)
    )
    sample = short.get(0, 0)
    assert len(sample.input_ids) == 8
    assert sample.input_ids.count(-200) == 0
    assert sample.media == {}


@pytest.mark.parametrize(("batch", "micro", "rank", "world"), [(1, 1, 0, 2), (4, 0, 0, 1), (4, 1, 2, 2)])
def test_impossible_divisions_are_refused(packed, tokenizer, batch, micro, rank, world):
    dataset, order = make(packed, tokenizer)
    with pytest.raises(ValueError, match="batch"):
        StepLoader(dataset, order, batch, micro, rank, world)


def test_two_sources_of_one_name_are_refused(packed):
    source = SourceSpec(name="one", shards=str(packed))
    with pytest.raises(ValueError, match="must differ"):
        open_sources(MixtureSpec(sources=[source, source]))
