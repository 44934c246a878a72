"""The gain is its formula, and the sum of gains loses nothing."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbn_keras import RegimeAdaptation
from gbn_keras.large_batch.gradient_moments import GradientMoments, NoiseScale
from gbn_keras.regime_progress import RegimeProgress, gain


@given(
    square=st.floats(1e-6, 1e6),
    noise=st.floats(0, 1e6),
    small=st.integers(1, 500),
    ratio=st.integers(1, 100),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_gain_is_from_1_to_the_ratio_and_grows_with_the_noise(
    square, noise, small, ratio
):
    found = gain(square, noise, ratio * small, small)
    assert 1 - 1e-9 <= found <= ratio * (1 + 1e-9)
    assert gain(square, 2 * noise + 1, ratio * small, small) >= found * (1 - 1e-9)
    scale = NoiseScale(square, noise)
    suitable = scale.suitable_stretch(ratio * small, small)
    assert suitable == pytest.approx(ratio / found)


@pytest.mark.parametrize(
    "square, noise, expected",
    [
        # 24 small batches in one, and a noise scale of the small batch's size.
        (1.0, 32.0, 2 / (1 + 1 / 24)),
        (1.0, 0.0, 1.0),
        # Estimates below 0 count as 0.
        (1.0, -3.0, 1.0),
        (-1.0, 5.0, 24.0),
        (-1.0, -5.0, 1.0),
    ],
)
def test_moments_give_the_gain_of_their_means(square, noise, expected):
    moments = GradientMoments()
    # Of two batches, of 32 and of 768 examples, that have exactly these moments.
    small, large = (square + noise / size for size in (32, 768))
    moments.update(*np.float32([small, 1 / 32, large, 1 / 768]))
    assert float(moments.gain(768, 32)) == pytest.approx(expected, rel=1e-4)


def test_the_gain_is_1_before_anything_is_known():
    assert float(GradientMoments().gain(768, 32)) == 1


def test_what_overflowed_is_left_out():
    moments = GradientMoments()
    moments.update(*np.float32([2, 1 / 32, 1, 1 / 768]))
    before = moments.estimate()
    moments.update(*np.float32([np.inf, 1 / 32, 1, 1 / 768]))
    assert moments.estimate() == before


def test_the_sum_of_many_gains_is_exact():
    """A sum of floats would stop to grow, or lose a part of each addend."""
    progress = RegimeProgress(4096, 128)
    progress.build()
    progress.variables[0].assign(2**24)  # From here on, float32 knows even numbers.
    total = Fraction(2**24)
    for new in np.float32(np.random.default_rng(1).uniform(1, 32, 200)):
        position = total
        progress.advance(new)
        total += Fraction(float(new))
        assert int(progress.position) == pytest.approx(position, abs=1)
    assert float(progress.done) == pytest.approx(float(total), rel=1e-6)


def test_the_rate_follows_the_position_and_the_gain():
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.1, 0.01])
    by_gain = RegimeAdaptation(rates, 32, 768, lr_scaling="gain", stretch="auto")
    by_root = RegimeAdaptation(rates, 32, 768, stretch="auto")
    by_root.progress = by_gain.progress
    by_gain.progress.build()
    found = []
    # The update that begins after 4.5 + 5 = 9.5 is the small batch's number 9, the one
    # after 10.5 is number 10.
    for new in (4.5, 5.0, 1.0, 8.0):
        by_gain.progress.advance(np.float32(new))
        found.append((float(by_gain(0)), float(by_root(0)) / 24**0.5))
    expected = [(0.45, 0.1), (0.5, 0.1), (0.1, 0.1), (0.08, 0.01)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_scale_warms_up_by_update():
    schedule = RegimeAdaptation(0.1, 32, 768, "gain", "auto", warmup_updates=4)
    schedule.progress.build()
    schedule.progress.advance(np.float32(9))
    rates = [float(schedule(np.int32(update))) for update in (0, 2, 4, 9)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 0.9, 0.9], rtol=1e-6)


def test_a_schedule_comes_back_from_its_configuration():
    schedule = RegimeAdaptation(0.1, 32, 768, "gain", "auto")
    again = RegimeAdaptation.from_config(schedule.get_config())
    assert again.get_config() == schedule.get_config()
    assert not again.progress.built


def test_what_nothing_measures_is_refused():
    with pytest.raises(ValueError, match="needs a model that measures its gain"):
        RegimeAdaptation(0.1, 32, 768, stretch="auto")(0)
    with pytest.raises(ValueError, match="gain, wanted it with stretch='auto' only"):
        RegimeAdaptation(0.1, 32, 768, "gain")
    with pytest.raises(ValueError, match="stretch must be auto or a finite number"):
        RegimeAdaptation(0.1, 32, 768, stretch="long")
