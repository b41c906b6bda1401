import numpy as np
import pytest
import torch
from data_media import tone
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

from mmmoe.data import spectrograms
from mmmoe.data.spectrograms import AudioTransform, SpeechTransform

RATE = 16_000


@pytest.fixture
def hear(monkeypatch):
    """Makes every file decode to these samples, as far as it is asked to read."""

    def install(samples):
        monkeypatch.setattr(spectrograms, "decode_sound", lambda data, rate, seconds: samples[: round(seconds * rate)])
        return samples

    return install


def test_speech_is_whispers_input(hear):
    samples = hear(tone(70.0) * np.linspace(0, 1, 70 * RATE, dtype=np.float32))
    made = SpeechTransform()(b"")
    assert made.shape == (3, 80, 3000), "70 s are three chunks of 30"
    whisper = WhisperFeatureExtractor()
    for number in range(3):
        chunk = samples[number * 30 * RATE : (number + 1) * 30 * RATE]
        wanted = whisper(chunk, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
        torch.testing.assert_close(made[number], wanted, atol=1e-6, rtol=0)


def test_short_chunks(hear):
    hear(tone(13.0))
    assert SpeechTransform(chunk_seconds=6)(b"").shape == (3, 80, 600)
    assert AudioTransform(chunk_seconds=6, num_mels=32, max_frames=598)(b"").shape == (3, 598, 32)
    assert SpeechTransform(num_mels=40, chunk_seconds=0.5, max_chunks=100)(b"").shape == (26, 40, 50)


def test_sound_is_the_audio_spectrogram_transformers_input(hear):
    samples = hear(tone(12.0))
    made = AudioTransform(chunk_seconds=10, max_frames=1024)(b"")
    assert made.shape == (2, 1024, 128)
    ast = ASTFeatureExtractor()
    for number in range(2):
        chunk = samples[number * 10 * RATE : (number + 1) * 10 * RATE]
        wanted = ast(chunk, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        torch.testing.assert_close(made[number], wanted, atol=1e-6, rtol=0)
    # Frames that no sound fills are zero before the mean is taken away; 2 s fill 1 + (32000 - 400) // 160.
    assert torch.unique(made[1, 198:]) == pytest.approx([4.2677393 / (2 * 4.5689974)])


def test_sound_beyond_the_last_chunk_is_left_away(hear):
    hear(tone(7.0))
    assert len(SpeechTransform(chunk_seconds=1)(b"")) == 7
    assert len(SpeechTransform(chunk_seconds=1, max_chunks=3)(b"")) == 3
    assert len(AudioTransform(chunk_seconds=1, max_frames=98, max_chunks=3)(b"")) == 3


@pytest.mark.parametrize("samples", [1, 399, 400, RATE + 1])
def test_remainders_shorter_than_a_frame(hear, samples):
    hear(tone(2.0)[:samples])
    for transform in (SpeechTransform(chunk_seconds=1), AudioTransform(chunk_seconds=1, max_frames=98)):
        made = transform(b"")
        assert len(made) == -(-samples // RATE)
        assert made.isfinite().all()


@pytest.mark.parametrize(
    "transform", [SpeechTransform(chunk_seconds=2), AudioTransform(chunk_seconds=2, max_frames=99)]
)
def test_silence_is_one_chunk_like_any_other(hear, transform):
    hear(np.zeros(2 * RATE, dtype=np.float32))
    torch.testing.assert_close(transform.blank(), transform(b""))


def test_keys_tell_what_features_depend_on():
    made = [
        SpeechTransform(),
        SpeechTransform(chunk_seconds=6),
        SpeechTransform(max_chunks=2),
        SpeechTransform(num_mels=128),
    ]
    made += [AudioTransform(), AudioTransform(mean=1.0), AudioTransform(max_frames=2998)]
    assert len({transform.key for transform in made}) == len(made)


def test_impossible_chunks_are_refused():
    with pytest.raises(ValueError, match="a chunk needs 400 samples"):
        SpeechTransform(chunk_seconds=0.01)
    with pytest.raises(ValueError, match="max_chunks 0"):
        AudioTransform(max_chunks=0)
    with pytest.raises(ValueError, match="one file"):
        SpeechTransform()((b"", b""))
