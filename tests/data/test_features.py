import threading

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


def test_damaged_or_absent_parts_say_what_to_do(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    with pytest.raises(FileNotFoundError, match="encode the media first"):
        store.get(0, 0)
    encode_missing(store, encode, TRANSFORM)
    path = sorted(tmp_path.rglob("*.npy"))[0]
    path.write_bytes(path.read_bytes()[:100])
    fresh = FeatureStore(tmp_path, "tower", shards)
    with pytest.raises(OSError, match="delete the file"):
        assert_all_right(fresh, shards)


def test_outliers_stay_finite(shards, tmp_path):
    store = FeatureStore(tmp_path, "tower", shards)
    encode_missing(store, lambda pixels: encode(pixels) * 0 + 1e6, TRANSFORM)
    assert store.get(0, 0).max() == 65504
