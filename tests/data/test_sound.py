import struct

import numpy as np
import pytest
from data_media import compressed, tone, wav

from mmmoe.data import sound
from mmmoe.data.sound import decode_sound, probe_sound

RATE = 16_000


def test_samples_come_back_as_they_were():
    samples = tone(0.25)
    heard = decode_sound(wav(samples), RATE)
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, samples, atol=1 / 32768)


def test_channels_are_averaged_and_rates_changed():
    heard = decode_sound(wav(tone(0.5, 44_100), 44_100, channels=2), RATE)
    assert len(heard) == RATE // 2
    np.testing.assert_allclose(heard[400:-400], tone(0.5)[400:-400], atol=1e-4)


def test_only_the_beginning_that_is_asked_for_is_read():
    assert len(decode_sound(wav(tone(2.0)), RATE, seconds=0.5)) == RATE // 2


@pytest.mark.parametrize("form", ["mp4", "mp3", "ogg", "flac"])
def test_compressed_forms(form):
    samples = tone(1.0)
    heard = decode_sound(compressed(samples, form), RATE)
    assert len(heard) == pytest.approx(RATE, rel=0.15)  # codecs with frames of fixed length round up
    middle = heard[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.fft.rfftfreq(len(middle), 1 / RATE)[spectrum.argmax()] == pytest.approx(440, abs=4)
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.15)


def with_rate(data, rate):
    return data[:24] + struct.pack("<I", rate) + data[28:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav(tone(0)), "no samples"),
        (wav(tone(1.0))[:9000], "cut off"),
        (b"RIFF", "cannot be decoded"),
        (b"", "cannot be decoded"),
        (b"no sound at all, just words", "cannot be decoded"),
        (with_rate(wav(tone(0.1)), 100), "claims 100 samples a second"),
        (with_rate(wav(tone(0.1)), 4_000_000), "claims 4000000 samples a second"),
        (wav(tone(0.1), channels=40), "40 channels"),
    ],
)
def test_what_cannot_be_heard_says_why(data, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        decode_sound(data, RATE)
    (tmp_path / "it").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        probe_sound(tmp_path / "it")


@pytest.mark.parametrize("form", ["flac", "ogg", "mp4"])
def test_a_cut_compressed_file_is_no_short_sound(form):
    noise = np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    data = compressed(tone(4.0) + 0.1 * noise, form)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match=r"cut off|cannot be decoded"):
            decode_sound(data[: round(len(data) * share)], RATE)


def test_an_odd_rate_is_a_rate_like_any_other():
    heard = decode_sound(wav(tone(0.5, 15_999), 15_999), RATE)
    np.testing.assert_allclose(heard[400:-400], tone(0.5)[400 : len(heard) - 400], atol=1e-3)


def test_a_length_that_is_not_believed(monkeypatch):
    monkeypatch.setattr(sound, "MAX_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"claims to last 1 s, more than the limit"):
        decode_sound(wav(tone(1.0)), RATE)


@pytest.mark.parametrize("data", [wav(tone(1.0), channels=2), compressed(tone(2.0))])
def test_more_samples_than_memory_should_hold(data, monkeypatch):
    monkeypatch.setattr(sound, "MAX_SAMPLES", 30_000)
    with pytest.raises(ValueError, match="samples to decode, more than 30000"):
        decode_sound(data, RATE)
    assert len(decode_sound(data, RATE, seconds=0.1)) == 1600


def test_probing_tells_the_length(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(tone(1.5)))
    (tmp_path / "a.m4a").write_bytes(compressed(tone(1.5)))
    assert probe_sound(tmp_path / "a.wav") == 1.5
    assert probe_sound(tmp_path / "a.m4a") == pytest.approx(1.5, abs=0.15)


def test_a_playlist_reaches_nothing(tmp_path):
    (tmp_path / "secret.wav").write_bytes(wav(tone(0.1)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n".encode()
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_sound(playlist, RATE)
