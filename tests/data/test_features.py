import threading

import numpy as np
import pytest
import torch

from mmmoe.data import features as features_module
from mmmoe.data.encode import encode_missing
from mmmoe.data.features import FeatureStore
from mmmoe.data.pack import pack
from mmmoe.data.shards import ShardSet
from mmmoe.data.transforms import ImageTransform

TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")


def encode(pixels_ICHW):
    """A tower of 2 tokens of 3 channels: mean colour, and its double."""
    mean_IC = pixels_ICHW.mean((2, 3))
    return torch.stack((mean_IC, 2 * mean_IC), dim=1)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(features_module, "PARTS", dict.fromkeys(features_module.PARTS, 3))


@pytest.fixture
def shards(packed):
    return ShardSet(packed)


def assert_all_right(store, shards):
    for index in range(len(shards)):
        shard, _ = shards.locate(index)
        entry = shards.entry(index)
        for number, image in enumerate(shards.record(index).media.get("image", ())):
            expected = encode(TRANSFORM(image)[None])[0].half()
            assert torch.equal(store.get(shard, entry.first["image"] + number), expected)


def test_each_image_gets_its_own_features(shards, tmp_path):
    store = FeatureStore(tmp_path / "cache", "tower", shards)
    assert sum(part.stop - part.start for part in store.missing()) == 20
    assert encode_missing(store, encode, TRANSFORM, batch=2) == 20
    assert store.missing() == []
    assert_all_right(store, shards)
    assert encode_missing(store, lambda pixels: pytest.fail("encoded twice"), TRANSFORM) == 0


def test_processes_share_the_work(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    counts = [0, 0, 0]

    def work(rank):
        counts[rank] = encode_missing(store, encode, TRANSFORM, batch=2, rank=rank, world=3)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 20
    assert min(counts) > 0
    assert_all_right(FeatureStore(tmp_path, "tower", shards), shards)


def test_stopped_encoding_goes_on(shards, tmp_path):
    calls = []

    def dies(pixels_ICHW):
        calls.append(len(pixels_ICHW))
        if len(calls) == 5:
            raise RuntimeError("killed")
        return encode(pixels_ICHW)

    store = FeatureStore(tmp_path, "tower", shards)
    with pytest.raises(RuntimeError):
        encode_missing(store, dies, TRANSFORM, batch=2)
    left = sum(part.stop - part.start for part in store.missing())
    assert 0 < left < 20
    assert not list(tmp_path.rglob("*.tmp"))
    assert encode_missing(store, encode, TRANSFORM) == left
    assert_all_right(store, shards)


def test_another_tower_or_shard_is_another_cache(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    encode_missing(store, encode, TRANSFORM)
    assert len(FeatureStore(tmp_path, "other", shards).missing()) == len(store.parts())
    assert FeatureStore(tmp_path, "tower", ShardSet(shards.shards[1].path)).missing() == []


def test_broken_image_is_remembered_with_its_reason(write_llava, tmp_path):
    json_path, images = write_llava(tmp_path / "in", 6, every_third_text_only=False, size=(64, 64))
    pack(json_path, images, tmp_path / "out", samples_per_shard=10, domain="")
    shards = ShardSet(tmp_path / "out")
    tar = shards.shards[0].path
    offset, size = shards.entry(4).members["0.png"]
    data = bytearray(tar.read_bytes())
    data[offset : offset + size] = bytes(size)
    tar.write_bytes(bytes(data))
    store = FeatureStore(tmp_path / "cache", "tower", ShardSet(tmp_path / "out"))
    encode_missing(store, encode, TRANSFORM)
    fresh = FeatureStore(tmp_path / "cache", "tower", shards)
    with pytest.raises(ValueError, match="cannot be decoded"):
        fresh.get(0, 4)
    assert fresh.get(0, 5).shape == (2, 3)


def damage(path, how):
    content = bytearray(path.read_bytes())
    end = 128 + 3 * 2 * 3 * 2  # header, then 3 items of 2 tokens of 3 channels of 2 bytes
    if how == "cut":
        content = content[:100]
    elif how == "note cut":
        content = content[:-5]
    elif how == "note":
        content[end + 30] ^= 1
    else:
        content[{"header": 3, "first item": 128, "last item": end - 1}[how]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "note cut", "note", "header", "first item", "last item"])
def test_a_damaged_part_is_named_and_made_anew_by_the_next_encoding(shards, tmp_path, how):
    with pytest.raises(FileNotFoundError, match="encode the media first"):
        FeatureStore(tmp_path, "tower", shards).get(0, 0)
    encode_missing(FeatureStore(tmp_path, "tower", shards), encode, TRANSFORM)
    path = sorted(tmp_path.rglob("*.npy"))[0]
    damage(path, how)
    with pytest.raises(OSError, match=rf"{path} are damaged .* the next encoding makes it anew"):
        assert_all_right(FeatureStore(tmp_path, "tower", shards), shards)
    with pytest.raises(OSError, match=r"damaged .another process found it"):
        FeatureStore(tmp_path, "tower", shards).get(0, 0)
    again = FeatureStore(tmp_path, "tower", shards)
    assert [again.path(part) for part in again.missing()] == [path]
    assert encode_missing(again, encode, TRANSFORM) == 3
    assert_all_right(again, shards)
    assert not list(tmp_path.rglob("*.damaged"))


def test_damage_beside_an_item_does_not_keep_it_from_being_read(shards, tmp_path):
    encode_missing(FeatureStore(tmp_path, "tower", shards), encode, TRANSFORM)
    store = FeatureStore(tmp_path, "tower", shards)
    damage(store.path(store.parts()[0]), "last item")
    assert store.get(0, 0).shape == (2, 3)
    with pytest.raises(OSError, match="item 2 has another hash"):
        store.get(0, 2)


def test_who_finds_the_damage_late_leaves_what_was_made_anew(shards, tmp_path):
    encode_missing(FeatureStore(tmp_path, "tower", shards), encode, TRANSFORM)
    slow = FeatureStore(tmp_path, "tower", shards)
    path = slow.path(slow.parts()[0])
    damage(path, "last item")
    slow.get(0, 0)  # has the damaged file open
    path.rename(path.with_name("damaged"))
    encode_missing(FeatureStore(tmp_path, "tower", shards), encode, TRANSFORM)
    with pytest.raises(OSError, match="item 2"):
        slow.get(0, 2)
    assert path.is_file()


def test_parts_of_caches_without_hashes_are_taken_as_they_are(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    encode_missing(store, encode, TRANSFORM)
    for path in tmp_path.rglob("*.npy"):
        np.save(path, np.load(path))  # rows alone
    path = store.path(store.parts()[0])
    path.with_suffix(".bad.json").write_text('{"1": "no picture"}')
    older = FeatureStore(tmp_path, "tower", shards)
    assert older.missing() == []
    with pytest.raises(ValueError, match="no picture"):
        older.get(0, 1)
    path.with_suffix(".bad.json").unlink()
    assert_all_right(FeatureStore(tmp_path, "tower", shards), shards)


def test_outliers_stay_finite(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    encode_missing(store, lambda pixels: encode(pixels) * 0 + 1e6, TRANSFORM)
    assert store.get(0, 0).max() == 65504
