import numpy as np
import pytest
from data_media import tone

from mmmoe.data.resample import resample

EDGE = 400
"""Samples at each end that feel the silence around the sound."""


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 16_001])
def test_a_tone_stays_the_same_tone(rate):
    heard = resample(tone(0.5, rate), rate, 16_000)
    assert heard.dtype == np.float32
    assert len(heard) == -(-round(0.5 * rate) * 16_000 // rate)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 16_000)
    np.testing.assert_allclose(heard[EDGE:-EDGE], wanted[EDGE:-EDGE], atol=1e-5)


@pytest.mark.parametrize("hertz", [9_000, 12_000, 20_000])
def test_what_cannot_be_heard_is_not_folded_back(hertz):
    heard = resample(tone(0.5, 48_000, hertz), 48_000, 16_000)
    assert np.abs(heard[EDGE:-EDGE]).max() < 0.5 * 10 ** (-80 / 20)


def test_the_same_rate_and_nothing_are_left_alone():
    samples = tone(0.01)
    assert resample(samples, 16_000, 16_000) is samples
    assert len(resample(samples[:0], 8_000, 16_000)) == 0
    assert resample(np.ones(3, dtype=np.float32), 48_000, 16_000).shape == (1,)
