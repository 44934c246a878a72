"""A forecast's rows: updates, hours on replicas, costs, and the fastest of them."""

import numpy as np
import pytest

from gbn_keras.analysis.noise_history import NoiseHistory
from gbn_keras.training.forecast.all_reduce import seconds_of_all_reduce
from gbn_keras.training.forecast.choices import choices_of, fastest
from gbn_keras.training.forecast.speed import Speed

# The noise scale is 1,000 examples throughout.
HISTORY = NoiseHistory(np.array([0.5]), np.ones(1), np.full(1, 1000.0), 32, 3600)


def choices(sizes, replicas=(1, 2, 4), ghost=32, summing=lambda number: 0.0, cost=0.0):
    return choices_of(
        HISTORY, sizes, replicas, ghost, lambda size: size / 1000, summing, cost
    )


def test_the_small_batch_needs_the_updates_of_its_regime():
    [small] = choices([32], [1])
    assert (small.updates, small.samples) == (3600, 3600 * 32)
    assert (small.gain, small.stretch) == (1, 1)
    assert small.seconds_per_update == 0.032
    assert small.hours == {1: pytest.approx(0.032)}


def test_a_share_is_made_of_whole_ghosts():
    assert [set(c.hours) for c in choices([32, 64, 96, 128])] == [
        *({1}, {1, 2}, {1}, {1, 2, 4}),
    ]


def test_replicas_share_the_work_and_sum_their_gradients():
    alone, [many] = choices([128], [1])[0], choices([128], summing=lambda n: n / 100)
    computing = alone.hours[1]
    for number, hours in many.hours.items():
        summing = many.updates * number / 100 / 3600
        assert hours == pytest.approx(computing / number + summing)


def test_the_fastest_choice_is_marked_by_hours_and_not_by_updates():
    # An update of batch 4096 does not do the work of two of batch 1024.
    found = choices([32, 1024, 4096], [1])
    assert fastest(found).batch_size == 32
    found = choices([32, 1024, 4096], [1, 4])
    assert fastest(found).batch_size == 1024
    assert fastest(found).replicas == 4
    assert fastest(choices([32, 1024], summing=lambda n: n - 1.0)).replicas == 1


def test_a_row_has_a_column_for_each_number_of_replicas_and_the_cost():
    row = choices([64], cost=3.0)[0].row([1, 2, 4])
    assert row["hours_on_4"] == ""
    assert row["replicas"] == 2
    assert row["hours"] == row["hours_on_2"] == row["hours_on_1"] / 2
    assert row["cost"] == pytest.approx(3 * row["hours_on_1"])
    assert "cost" not in choices([64])[0].row([1])


def test_the_speed_is_a_line_through_what_was_measured():
    speed = Speed((100, 200, 400), (1.0, 1.5, 3.5))
    assert [speed.of(n) for n in (50, 100, 150, 300, 400)] == [1, 1, 1.25, 2.5, 3.5]
    assert speed.of(600) == pytest.approx(5.5)
    one = Speed((100,), (1.0,))
    assert [one.of(n) for n in (10, 100, 300)] == [1, 1, 3]


def test_a_ring_sends_almost_twice_the_bytes_however_many_replicas():
    assert seconds_of_all_reduce(1, 10**9, 1e9, 1e-3) == 0
    assert seconds_of_all_reduce(2, 10**9, 1e9, 0) == 1
    assert seconds_of_all_reduce(1000, 10**9, 1e9, 0) == pytest.approx(1.998)
    assert seconds_of_all_reduce(3, 0, 1e9, 1e-3) == pytest.approx(0.004)
