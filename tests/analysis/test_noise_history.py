"""What a batch of any size needs is what the theory says of its noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from gbn_keras.analysis.noise_history import NoiseHistory
from gbn_keras.large_batch.gradient_moments import GradientMoments

SMALL, UPDATES = 32, 1000


def history(scales, place=None, updates=UPDATES):
    """A training with these noise scales, in examples, in equal intervals."""
    place = np.linspace(0, 1, len(scales) + 1)[1:] if place is None else place
    noise = np.array(scales, float)
    return NoiseHistory(np.array(place), np.ones(len(noise)), noise, SMALL, updates)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e6), ratio=st.integers(1, 4096))
def test_with_one_noise_scale_it_has_a_closed_form(scale, ratio):
    batch = SMALL * ratio
    gain = ratio * (SMALL + scale) / (batch + scale)
    small, needed = history([scale, scale, scale]).updates([SMALL, batch])
    assert small == UPDATES
    assert needed == pytest.approx(UPDATES / gain, abs=1)


@pytest.mark.parametrize("scale", [10, 1000, 50_000])
def test_the_critical_batch_has_a_closed_form(scale):
    critical = 1.2 * (SMALL + scale) - scale
    found = history([scale], updates=100_000).critical_batch_size(1e6)
    assert found == pytest.approx(critical, 0.03)


def test_a_batch_that_is_too_large_to_think_of_is_not_critical():
    assert history([1e9]).critical_batch_size(4096) == pytest.approx(4096)


def test_each_part_of_the_training_counts_by_its_length():
    # A quarter without noise, where an update is one of the small batch's, and three
    # quarters of noise, where it is M of them, soon after they begin.
    found = history([0, 1e12], [0.25, 1], updates=100_000).updates(8 * SMALL)
    assert found == pytest.approx(100_000 * (0.25 + 0.75 / 8), rel=0.005)


def test_the_last_values_hold_to_the_end():
    early = history([10, 1000], [0.2, 0.6])
    assert early.updates(512) == history([10, 1000, 1000], [0.2, 0.6, 1]).updates(512)
    # What was learned beyond the regime does not count.
    assert early.updates(512) == history([10, 1000, 1], [0.2, 1, 7]).updates(512)


def test_estimates_below_0_count_as_0():
    noise_alone = NoiseHistory(np.ones(1), -np.ones(1), np.ones(1), SMALL, UPDATES)
    assert noise_alone.updates(256) == UPDATES / 8
    no_noise = NoiseHistory(np.ones(1), np.ones(1), -np.ones(1), SMALL, UPDATES)
    assert no_noise.updates(256) == UPDATES


def test_it_counts_the_updates_of_the_training_that_it_comes_from():
    """Its running means hide how the noise changes; the history finds it again."""
    random, moments, done, rows = np.random.default_rng(0), GradientMoments(), 0.0, []
    for update in range(1, 2000):
        square, noise = np.exp(-update / 50), 100 * (1 + random.normal(0, 0.01))
        squares = [square + noise / size for size in (128, 256)]
        moments.update(
            *np.float32([squares[0], 1 / 128]), *np.float32([squares[1], 1 / 256])
        )
        done += float(ops.convert_to_numpy(moments.gain(256, SMALL)))
        found = moments.estimate()
        rows.append([update, done / UPDATES, found.gradient_square, found.noise])
        if done >= UPDATES:
            break
    every_third = np.array(rows)[::3].T
    found = NoiseHistory.of_estimates(*every_third, SMALL, UPDATES)
    assert found.updates(256) == pytest.approx(update, abs=2)
    middle = np.searchsorted(every_third[0], 60)
    assert found.gradient_square[middle] == pytest.approx(np.exp(-60 / 50), rel=0.1)
    # The running mean is far from it.
    assert every_third[2][middle] > 1.2 * np.exp(-60 / 50)
