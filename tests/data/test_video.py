import random

import pytest
import torch
from data_media import compressed, film, picture, tone, wav

from mmmoe.data import transforms, video
from mmmoe.data.sound import decode_sound
from mmmoe.data.transforms import ImageTransform
from mmmoe.data.video import VideoTransform, decode_video, even_places, probe_video

IMAGE = ImageTransform(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")


def shades(made):
    return [round(float(shade) * 255) for shade in made.mean((1, 2, 3))]


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [(8, 8, [0, 1, 2, 3, 4, 5, 6, 7]), (15, 8, [0, 2, 4, 6, 8, 10, 12, 14]), (3, 5, [0, 0, 1, 2, 2]), (9, 1, [4]),
     (1, 3, [0, 0, 0]), (100, 2, [0, 99])],
)  # fmt: skip
def test_even_places(count, wanted, places):
    assert even_places(count, wanted) == places


def test_lists_of_frames_are_thinned_or_repeated():
    frames = tuple(picture(20 * n) for n in range(9))
    made = VideoTransform(IMAGE, 3)(frames)
    assert made.shape == (3, 3, 4, 4)
    assert torch.equal(made[1], IMAGE(frames[4]))
    assert shades(made) == [0, 80, 160]
    assert shades(VideoTransform(IMAGE, 4)(frames[:2])) == [0, 0, 20, 20]


def test_blank_is_grey():
    made = VideoTransform(IMAGE, 5).blank()
    assert made.shape == (5, 3, 4, 4)
    assert shades(made) == [128] * 5


@pytest.mark.parametrize(
    ("codec", "form"), [("mpeg4", "mp4"), ("mpeg4", "avi"), ("mpeg4", "matroska"), ("libx264", "mp4")]
)
@pytest.mark.parametrize("length", [1, 5, 60])
def test_films_are_seen_from_end_to_end(codec, form, length):
    said = [20 + 200 * n // max(1, length - 1) for n in range(length)]
    made = VideoTransform(IMAGE, 8)(film(said, codec=codec, form=form))
    assert made.shape == (8, 3, 4, 4)
    wanted = [said[place] for place in even_places(length, 8)]
    assert shades(made) == pytest.approx(wanted, abs=8)


@pytest.mark.parametrize("form", ["mp4", "avi", "matroska"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_cut_film_says_so(form, share):
    data = film([50] * 50, size=(64, 64), form=form, noise=90)
    assert len(decode_video(data, 8)) == 8
    with pytest.raises(ValueError, match=r"cut off|damaged|cannot be decoded"):
        decode_video(data[: round(len(data) * share)], 8)


def outcome(decode, data):
    try:
        return len(decode(data)) > 0
    except ValueError:
        return False


@pytest.mark.parametrize("form", ["mp4", "avi", "matroska", "mp3", "ogg", "flac", "wav"])
def test_any_damage_is_a_value_error_or_none(form):
    rng = random.Random(0)
    if form in ("mp4", "avi", "matroska"):
        whole, decode = film([50] * 20, size=(64, 64), form=form, noise=90), lambda data: decode_video(data, 8)
    else:
        whole = wav(tone(0.5)) if form == "wav" else compressed(tone(0.5), form)
        decode = lambda data: decode_sound(data, 16_000)  # noqa: E731 (two of a kind)
    assert outcome(decode, whole)
    sound = 0
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 20, 200])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        sound += outcome(decode, bytes(data))
    assert sound < 40


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (b"not a film " * 100, "cannot be decoded"),
        (wav(tone(0.2)), "no pictures"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot be decoded"),
    ],
)
def test_what_is_no_film_says_why(data, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        decode_video(data, 8)
    (tmp_path / "it.mp4").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        probe_video(tmp_path / "it.mp4")


def test_a_sound_is_no_film():
    with pytest.raises(ValueError, match="no pictures"):
        decode_video(compressed(tone(0.5)), 8)


def test_limits(monkeypatch):
    data = film(range(30))
    monkeypatch.setattr(video, "MAX_DECODED", 32 * 16 * 10)
    with pytest.raises(ValueError, match="pixels to decode"):
        decode_video(data, 8)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_SECONDS", 2.0)
    with pytest.raises(ValueError, match="claims to last 3 s"):
        decode_video(data, 8)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_PICTURES", 20)
    with pytest.raises(ValueError, match="more than 20 pictures"):
        decode_video(data, 8)
    monkeypatch.undo()
    monkeypatch.setattr(transforms, "MAX_PIXELS", 500)
    with pytest.raises(ValueError, match="32 x 16 pixels"):
        decode_video(data, 8)


def test_no_pictures_are_no_video():
    with pytest.raises(ValueError, match="at least one picture"):
        VideoTransform(IMAGE, 0)
