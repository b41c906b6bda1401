"""From shards of every kind to batches, with decoded media and with features; bad files are set aside."""

import json
from dataclasses import replace

import pytest
import torch
from data_media import compressed, dialogue, film, picture, tone, wav, write_tar

from mmmoe.data import features as features_module
from mmmoe.data.dataset import Dataset, Source, with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.loader import StepLoader
from mmmoe.data.mixture import Order
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.shards import ShardSet
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.spectrograms import AudioTransform, SpeechTransform
from mmmoe.data.template import Template
from mmmoe.data.transforms import ImageTransform
from mmmoe.data.video import VideoTransform

IMAGE = ImageTransform(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")
TRANSFORMS = {
    "image": IMAGE,
    "video": VideoTransform(IMAGE, 3),
    "speech": SpeechTransform(num_mels=8, chunk_seconds=0.5),
    "audio": AudioTransform(num_mels=16, chunk_seconds=0.5, max_frames=48),
}
IMAGE_ID, AUDIO_ID, VIDEO_ID, SPEECH_ID = -200, -300, -400, -500


def write_shard(path):
    """Twelve samples: three of each of four combinations."""
    members = []
    for n in range(3):
        members += [
            (f"a{n}.json", dialogue("speech", "image")), (f"a{n}.0.png", picture(n)),
            (f"a{n}.0.speech.wav", wav(tone(0.4 + 0.5 * n))),
            (f"b{n}.json", dialogue("video")), (f"b{n}.0.video.mp4", film([40 * n + 20] * 4)),
            (f"c{n}.json", dialogue("audio", "audio")), (f"c{n}.0.audio.wav", wav(tone(0.6))),
            (f"c{n}.1.audio.flac", compressed(tone(0.2 + n), "flac")),
            (f"d{n}.json", dialogue()),
        ]  # fmt: skip
    return write_tar(path, members)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("media") / "all.tar")


def dataset_of(shards, tokenizer, quarantine=None, transforms=TRANSFORMS, **options):
    sources = [Source("all", "d", ShardSet(shards))]
    return Dataset(
        sources,
        Template(TemplateSpec(), tokenizer),
        transforms,
        Quarantine(None, 0) if quarantine is None else quarantine,
        **options,
    )


def test_placeholders_stand_for_chunks(shard, tokenizer):
    dataset = dataset_of(shard, tokenizer)
    spoken = [dataset.get(0, 4 * n) for n in range(3)]
    # 0.4, 0.9 and 1.4 s in chunks of half a second.
    assert [sample.input_ids.count(SPEECH_ID) for sample in spoken] == [1, 2, 3]
    assert [sample.media["speech"].shape for sample in spoken] == [(n, 8, 50) for n in (1, 2, 3)]
    assert all(sample.media["image"].shape == (1, 3, 4, 4) for sample in spoken)
    assert all(len(sample.input_ids) == len(sample.labels) for sample in spoken)
    shown = dataset.get(0, 1)
    assert (shown.input_ids.count(VIDEO_ID), shown.media["video"].shape) == (1, (1, 3, 3, 4, 4))
    heard = dataset.get(0, 10)  # 0.6 s and 2.2 s: 2 + 5 chunks
    at = [place for place, token in enumerate(heard.input_ids) if token == AUDIO_ID]
    assert len(at) == len(heard.media["audio"]) == 7
    assert at[1] == at[0] + 1
    torch.testing.assert_close(heard.media["audio"][:2], TRANSFORMS["audio"](wav(tone(0.6))))
    assert all(heard.labels[place] == -100 for place in at)
    assert dataset.get(0, 3).media == {}


def test_labels_beyond_the_models_reach_count_chunks(shard, tokenizer):
    free = dataset_of(shard, tokenizer).get(0, 8)
    targets = [place for place, label in enumerate(free.labels) if label != -100]
    # Three chunks of ten positions and an image of five stand before the first target.
    first = targets[0] + 3 * 9 + 1 * 4
    positions = {"speech": 10, "image": 5}
    near = dataset_of(shard, tokenizer, max_positions=first + 1, positions=positions).get(0, 8)
    assert [place for place, label in enumerate(near.labels) if label != -100] == targets[:1]
    cut = dataset_of(shard, tokenizer, max_positions=first, positions=positions).get(0, 8)
    assert all(label == -100 for label in cut.labels)


def test_a_kind_the_model_does_not_take_is_told_at_once(shard, tokenizer):
    with pytest.raises(ValueError, match="source all has 3 videos, but the model takes images"):
        dataset_of(shard, tokenizer, transforms={"image": IMAGE})
    with pytest.raises(ValueError, match="3 images, but the model takes text alone"):
        dataset_of(shard, tokenizer, transforms={})


def loader(dataset, rank=0, world=1, micro=2, batch=12, batches="mixed"):
    return StepLoader(dataset, Order([12], [1.0], 3), batch, micro, rank, world, workers=0, batches=batches)


def test_media_stand_in_reading_order_over_the_batch(shard, tokenizer):
    dataset = dataset_of(shard, tokenizer)
    batch = loader(dataset, micro=12).step(0)[0]
    counts = {kind: int((batch.input_ids_BT == token).sum()) for kind, token in
              (("image", IMAGE_ID), ("video", VIDEO_ID), ("speech", SPEECH_ID), ("audio", AUDIO_ID))}  # fmt: skip
    assert counts == {"image": 3, "video": 3, "speech": 6, "audio": 3 * 2 + 1 + 3 + 5}
    assert {kind: len(tensor) for kind, tensor in batch.media.items()} == counts
    by_key = {sample.key: sample for sample in (dataset.get(0, n) for n in range(12))}
    for kind in counts:
        rows = [by_key[key].media[kind] for key in batch.keys if kind in by_key[key].media]
        assert torch.equal(batch.media[kind], torch.cat(rows))
    inputs = batch.to(torch.device("cpu")).inputs()
    assert set(inputs["media"]) == set(counts)
    assert inputs["features"] is None
    assert batch.num_tokens == int((batch.input_ids_BT >= 0)[batch.attention_mask_BT].sum())


def encode(media):
    """A tower of one token of two channels a placeholder (of a video: a frame)."""
    if media.dim() == 5:
        media = media.flatten(2)
        return torch.stack((media.mean(2), media.amax(2)), dim=-1)[:, :, None]
    media = media.flatten(1)
    return torch.stack((media.mean(1), media.amax(1)), dim=-1)[:, None]


@pytest.fixture
def encoded(shard, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "PARTS", dict.fromkeys(TRANSFORMS, 2))
    dataset = dataset_of(shard, tokenizer)
    sources = with_features(dataset.sources, tmp_path, dict.fromkeys(TRANSFORMS, "tower"))
    done = {
        kind: encode_missing(store, encode, TRANSFORMS[kind], batch=2) for kind, store in sources[0].features.items()
    }
    assert done == {"image": 3, "video": 3, "speech": 3, "audio": 6}
    assert not any(store.missing() for store in sources[0].features.values())
    return dataset, sources


def test_features_stand_in_for_media_of_every_kind(encoded):
    dataset, sources = encoded
    cached = Dataset(sources, dataset.template, {}, Quarantine(None, 0))
    for plain, kept in zip(loader(dataset, micro=5).step(0), loader(cached, micro=5).step(0), strict=True):
        assert kept.media == {}
        assert torch.equal(plain.input_ids_BT, kept.input_ids_BT)
        assert set(plain.media) == set(kept.features)
        for kind, media in plain.media.items():
            assert torch.equal(kept.features[kind], encode(media).half().float())


def test_a_kind_may_be_encoded_and_another_not(encoded):
    dataset, sources = encoded
    only = [replace(source, features={"speech": source.features["speech"]}) for source in sources]
    batch = loader(Dataset(only, dataset.template, TRANSFORMS, Quarantine(None, 0)), micro=12).step(0)[0]
    assert set(batch.features) == {"speech"}
    assert set(batch.media) == {"image", "video", "audio"}


def content(batches):
    return sorted(
        (batch.keys[row], tuple(batch.input_ids_BT[row, : int(batch.attention_mask_BT[row].sum())].tolist()))
        for batch in batches
        for row in range(batch.num_samples)
    )


def test_pure_batches_hold_the_same_samples_on_any_number_of_processes(shard, tokenizer):
    dataset = dataset_of(shard, tokenizer)
    for step, size in ((0, 12), (1, 7), (5, 10)):
        mixed = content(loader(dataset, batch=size).step(step))
        assert len(mixed) == size
        for world in (1, 2, 4):
            ranks = [loader(dataset, rank, world, batch=size, batches="pure").step(step) for rank in range(world)]
            assert len({len(batches) for batches in ranks}) == 1
            every = [batch for batches in ranks for batch in batches]
            assert content(every) == mixed
            for batch in every:
                assert len({key[0] for key in batch.keys}) <= 1, "a key's letter names its combination"
                assert batch.num_samples <= 2
    mixes = [batch for batch in loader(dataset, micro=12).step(0) if len({key[0] for key in batch.keys}) > 1]
    assert mixes, "without the rule they do mix"


def test_a_process_without_a_combination_of_its_own_gets_empty_micro_batches(shard, tokenizer):
    dataset = dataset_of(shard, tokenizer)
    ranks = [loader(dataset, rank, 4, micro=12, batch=4, batches="pure").step(0) for rank in range(4)]
    assert sum(batch.num_samples for batches in ranks for batch in batches) == 4
    ranks = [loader(dataset, rank, 4, micro=12, batch=5, batches="pure").step(2) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1


BAD = {
    "zero.0.speech.wav": (wav(tone(0)), "no samples"),
    "cut.0.speech.wav": (wav(tone(1.0))[:9000], "cut off"),
    "rate.0.speech.wav": (wav(tone(0.1), 900), "claims 900 samples a second"),
    "noise.0.audio.flac": (b"fLaC" + bytes(200), "cannot be decoded"),
    "film.0.video.mp4": (film([1] * 30)[:700], "cannot be decoded"),
    "frames.0.video.000.png": (picture(3)[:30], "image cannot be decoded"),
}


@pytest.mark.parametrize("encode_once", [False, True])
def test_bad_files_are_set_aside_with_their_reason_and_the_step_goes_on(tokenizer, tmp_path, encode_once):
    members = [("odd.json", dialogue("speech")), ("odd.0.speech.wav", wav(tone(0.3, 11_027), 11_027))]
    for name, (data, _) in BAD.items():
        members += [(f"{name.split('.')[0]}.json", dialogue(name.split(".")[2])), (name, data)]
    tar = write_tar(tmp_path / "bad.tar", [*members, ("text.json", dialogue())])
    quarantine = Quarantine(tmp_path, len(BAD))
    dataset = dataset_of(tar, tokenizer, quarantine)
    if encode_once:
        keys = dict.fromkeys(TRANSFORMS, "tower")
        sources = with_features(dataset.sources, tmp_path / "cache", keys)
        for kind, store in sources[0].features.items():
            encode_missing(store, encode, TRANSFORMS[kind])
        dataset = Dataset(sources, dataset.template, TRANSFORMS, quarantine)
    count = len(BAD) + 2
    batches = StepLoader(dataset, Order([count], [1.0], 0), count, 2, workers=0).step(0)
    assert sorted(key for batch in batches for key in batch.keys) == ["odd", "text"]
    lines = [json.loads(line) for line in (tmp_path / "quarantine.0.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines}.keys() == {name.split(".")[0] for name in BAD}
    for name, (_, reason) in BAD.items():
        assert any(line["key"] == name.split(".")[0] and reason in line["reason"] for line in lines), lines
