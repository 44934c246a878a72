"""The schedule is its closed form in numpy, and the recipes are the paper's."""

import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from backend import JIT_COMPILE, compiled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops
from keras.optimizers.schedules import (
    CosineDecay,
    ExponentialDecay,
    PiecewiseConstantDecay,
)

from gbn_keras import REGIMES, Regime, RegimeAdaptation


def scale_of(lr_scaling, ratio):
    rules = {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}
    return rules.get(lr_scaling, lr_scaling)


@given(
    small=st.integers(1, 300),
    large=st.integers(1, 9000),
    lr_scaling=st.sampled_from(["none", "sqrt", "linear", 0.3, 7]),
    part=st.floats(0, 1),
    warmup_updates=st.sampled_from([0, 1, 10, 100]),
    update=st.integers(0, 100_000),
)
@settings(max_examples=100, deadline=None, derandomize=True)
# The stretch is M but for a rounding error below it.
@example(3, 1, "none", 1.0, 0, 0)
def test_the_rate_is_the_closed_form(
    small, large, lr_scaling, part, warmup_updates, update
):
    ratio = large / small
    stretch = 1 + part * (ratio - 1)
    adapted = RegimeAdaptation(
        ExponentialDecay(0.1, decay_steps=20_000, decay_rate=0.5),
        small,
        large,
        lr_scaling,
        stretch,
        warmup_updates,
    )
    scale = scale_of(lr_scaling, ratio)
    if update < warmup_updates:
        scale = 1 + (scale - 1) * update / warmup_updates
    expected = scale * 0.1 * 0.5 ** (update * ratio / stretch / 20_000)
    np.testing.assert_allclose(float(adapted(update)), expected, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("stretch", [None, 1, 2, 3, 4.5, 7, 10.666666666666666, 16, 32])
def test_the_rate_changes_at_the_very_update(stretch):
    """Where float32 would round, too: with M = 32, `stretch` 3 is 10.66... updates."""
    boundary = 39_999_9
    adapted = RegimeAdaptation(
        PiecewiseConstantDecay([boundary], [1.0, 0.1]), 128, 4096, "none", stretch
    )
    ratio = Fraction(32) / Fraction(stretch or 32).limit_denominator(100)
    # The first update whose place in the small batch's regime is past the boundary.
    first = math.floor(boundary / ratio) + 1
    assert float(adapted(first - 1)) == 1.0
    assert float(adapted(first)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "small, large, stretch",
    [(3, 1, 1 + (1 / 3 - 1)), (128, 4096, 0.9999999999999999), (49, 5, 5 * (1 / 49))],
)
def test_a_stretch_below_its_least_by_a_rounding_error_is_the_least(
    small, large, stretch
):
    least = Fraction(min(small, large), small)
    assert Fraction(stretch) < least
    schedule = ExponentialDecay(0.1, decay_steps=20_000, decay_rate=0.5)
    adapted = RegimeAdaptation(schedule, small, large, "none", stretch)
    exact = RegimeAdaptation(schedule, small, large, "none", float(least))
    for update in (0, 1, 12_345, 100_000):
        assert float(adapted(update)) == float(exact(update))


def test_a_number_is_a_constant_schedule():
    adapted = RegimeAdaptation(0.1, 128, 4096, warmup_updates=4)
    rates = [float(adapted(update)) for update in range(6)]
    full = math.sqrt(32)
    expected = [0.1 * (1 + (full - 1) * min(u / 4, 1)) for u in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_full_stretch_keeps_the_small_batch_schedule_update_by_update():
    schedule = PiecewiseConstantDecay([3, 7], [0.1, 0.01, 0.001])
    adapted = RegimeAdaptation(schedule, 128, 4096, lr_scaling="none")
    for update in range(10):
        assert float(adapted(update)) == float(schedule(update))


def test_the_schedule_is_serializable():
    adapted = RegimeAdaptation(
        CosineDecay(0.1, 1000, alpha=0.01), np.int64(128), 4096, 2.5, 7, 20
    )
    config = keras.saving.serialize_keras_object(adapted)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == adapted.get_config()
    for update in (0, 10, 100, 500):
        assert float(again(update)) == float(adapted(update))


@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_the_schedule_works_in_fit_and_comes_back_with_the_model(tmp_path, jit_compile):
    schedule = PiecewiseConstantDecay([7], [0.1, 0.01])
    adapted = RegimeAdaptation(schedule, 4, 12, "sqrt", stretch=2, warmup_updates=2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(adapted), "mse", jit_compile=jit_compile)
    weights = model.get_weights()[0].copy()
    inputs = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    for update in range(7):
        predictions = inputs @ weights
        gradient = 2 / 12 * inputs.T @ predictions
        weights = weights - float(adapted(update)) * gradient
        # The bias stays 0 in the reference: take it out of the model as well.
        model.layers[0].bias.assign([0.0])
        model.fit(inputs, np.zeros((12, 1)), batch_size=12, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], weights, rtol=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rate = float(loaded.optimizer.learning_rate)
    assert rate == float(adapted(7)) == pytest.approx(0.01 * math.sqrt(3))


def test_the_schedule_works_in_a_compiled_function():
    adapted = RegimeAdaptation(0.1, 128, 4096, "linear", warmup_updates=10)
    rate = compiled(adapted)
    for update in (0, 5, 10, 11):
        found = float(rate(ops.convert_to_tensor(update)))
        assert found == pytest.approx(float(adapted(update)))


@pytest.mark.parametrize(
    "changes, received",
    [
        ({"schedule": "0.1"}, "schedule='0.1'"),
        ({"schedule": None}, "schedule=None"),
        ({"schedule": float("nan")}, "schedule=nan"),
        ({"schedule": -0.1}, "schedule=-0.1"),
        ({"small_batch_size": 0}, "small_batch_size=0"),
        ({"batch_size": 12.5}, "batch_size=12.5"),
        ({"lr_scaling": "square"}, "lr_scaling='square'"),
        ({"lr_scaling": 0}, "lr_scaling=0"),
        ({"stretch": 0.5}, "stretch=0.5"),
        ({"stretch": 0.99999}, "stretch=0.99999"),
        ({"stretch": float("inf")}, "stretch=inf"),
        ({"stretch": "full"}, "stretch='full'"),
        ({"warmup_updates": -1}, "warmup_updates=-1"),
    ],
)
def test_what_is_no_argument_is_refused(changes, received):
    arguments = {"schedule": 0.1, "small_batch_size": 128, "batch_size": 4096}
    with pytest.raises(ValueError) as error:
        RegimeAdaptation(**{**arguments, **changes})
    assert str(error.value).startswith(next(iter(changes)))
    assert received in str(error.value)


REGIME = Regime(
    small_batch_size=10,
    epochs=6,
    learning_rate=((0, 0.4), (3, 0.04), (4.5, 0.004)),
    l2=((0, 5e-4), (2, 0.0)),
)


def rates(schedule, updates):
    return [float(schedule(update)) for update in range(updates)]


def test_a_regime_changes_its_rate_with_the_first_update_of_an_epoch():
    # 20 examples: two updates an epoch.
    schedule = REGIME.learning_rate_schedule(20)
    expected = [0.4] * 6 + [0.04] * 3 + [0.004] * 3
    np.testing.assert_allclose(rates(schedule, 12), expected, rtol=1e-6)
    expected = [5e-4] * 4 + [0.0] * 2
    np.testing.assert_allclose(rates(REGIME.l2_schedule(20), 6), expected, rtol=1e-6)


def test_other_epochs_move_the_boundaries_in_proportion():
    regime = REGIME.with_epochs(12)
    assert regime.epochs == 12
    assert regime.learning_rate == ((0, 0.4), (6, 0.04), (9, 0.004))
    assert regime.l2 == ((0, 5e-4), (4, 0.0))


def test_another_first_rate_scales_the_later_ones():
    regime = REGIME.with_learning_rate(0.1)
    np.testing.assert_allclose(
        [rate for _, rate in regime.learning_rate], [0.1, 0.01, 0.001]
    )


def test_another_l2_scales_the_later_ones_and_0_is_none():
    regime = REGIMES["alexnet"]
    assert regime.with_l2(1e-3).l2 == ((0, pytest.approx(1e-3)), (15, 0))
    assert regime.with_l2(0).l2 == ((0, 0), (15, 0))
    assert REGIMES["f1"].with_l2(0).l2_schedule(60_000) == 0
    with pytest.raises(ValueError, match="l2=-1"):
        regime.with_l2(-1)


@pytest.mark.parametrize("name", REGIMES)
def test_the_recipes_are_in_order(name):
    regime = REGIMES[name]
    for pairs in (regime.learning_rate, regime.l2):
        epochs = [epoch for epoch, _ in pairs]
        assert epochs[0] == 0 and epochs == sorted(set(epochs))
    assert regime.learning_rate_schedule(50_000) is not None


def test_the_papers_f1_recipe():
    regime = REGIMES["f1"]
    schedule = regime.learning_rate_schedule(60_000)
    for epoch, rate in ((0, 0.1), (9, 0.1), (10, 0.01), (20, 1e-3), (49, 1e-4)):
        assert float(schedule(epoch * 468)) == pytest.approx(rate)
    assert (regime.small_batch_size, regime.epochs) == (128, 50)
    assert regime.l2_schedule(60_000) == 1e-4
