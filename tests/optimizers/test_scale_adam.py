"""Adam for another batch size trains as before, per sample."""

import math

import keras
import numpy as np
import pytest
from backend import tensorflow_only
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from keras.optimizers.schedules import CosineDecay

from gbn_keras import L2SGD, BatchSizeInvariantAdam, RegimeAdaptation, scale_adam

TUNED = {
    "learning_rate": 0.002,
    "beta_1": 0.9,
    "beta_2": 0.99,
    "epsilon": 1e-6,
    "weight_decay": 0.1,
    "global_clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.96,
    "ema_overwrite_frequency": 100,
}


def settings_of(optimizer):
    """The numbers that make an optimizer."""
    config = optimizer.get_config()
    return {name: config[name] for name in TUNED}


@pytest.mark.parametrize("kind", [keras.optimizers.Adam, keras.optimizers.AdamW])
def test_the_square_root_rule(kind):
    tuned = kind(**TUNED)
    scaled = scale_adam(tuned, 4)
    assert type(scaled) is type(tuned)  # PyTorch has classes of its own.
    assert settings_of(scaled) == pytest.approx(
        TUNED
        | {
            "learning_rate": 0.004,
            "beta_1": 0.6,
            "beta_2": 0.96,
            "epsilon": 5e-7,
            "weight_decay": 0.2,
            "ema_momentum": 0.96**4,
            "ema_overwrite_frequency": 25,
        }
    )
    assert settings_of(tuned) == pytest.approx(TUNED)


def test_with_a_small_batchs_second_moment_the_rule_is_linear():
    scaled = scale_adam(BatchSizeInvariantAdam(small_batch_size=32, **TUNED), 32)
    assert type(scaled) is BatchSizeInvariantAdam
    assert scaled.small_batch_size == 32
    assert settings_of(scaled) == pytest.approx(
        TUNED
        | {
            "learning_rate": 0.064,
            "beta_1": 0.9**32,
            "beta_2": 0.99**32,
            "ema_momentum": 0.96**32,
            "ema_overwrite_frequency": 3,
        }
    )


def test_the_same_batch_changes_nothing():
    tuned = keras.optimizers.Adam(**TUNED | {"beta_1": 0.0})
    assert settings_of(scale_adam(tuned, 1)) == settings_of(tuned)


def test_without_an_average_its_momentum_stays():
    assert scale_adam(keras.optimizers.Adam(), 4).ema_momentum == 0.99


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    first=st.fractions(1, 3, max_denominator=8),
    second=st.fractions("1/3", 3, max_denominator=8),
    kind=st.sampled_from([keras.optimizers.Adam, BatchSizeInvariantAdam]),
)
def test_two_steps_are_one_and_the_way_back_leads_back(first, second, kind):
    # Rare enough that a rounded number of updates hardly differs.
    tuned = kind(**TUNED | {"ema_overwrite_frequency": 10**7})
    in_steps = scale_adam(scale_adam(tuned, first), second)
    at_once = scale_adam(tuned, first * second)
    assert settings_of(in_steps) == pytest.approx(settings_of(at_once), rel=1e-5)
    back = scale_adam(scale_adam(tuned, first), 1 / first)
    assert settings_of(back) == pytest.approx(settings_of(tuned), rel=1e-5)


@pytest.mark.parametrize(
    "kind, scale", [(keras.optimizers.Adam, 2), (BatchSizeInvariantAdam, 4)]
)
def test_a_schedule_counts_the_old_batchs_updates(kind, scale):
    schedule = CosineDecay(0.01, 1000)
    scaled = scale_adam(kind(schedule), 4)
    rate = RegimeAdaptation(schedule, 32, 128, lr_scaling=float(scale), stretch=1)
    for update in (0, 1, 100, 249):
        scaled.iterations.assign(update)
        assert float(scaled.learning_rate) == pytest.approx(float(rate(update)))
    # An adapted one is scaled already.
    adapted = scale_adam(kind(rate), 4)
    adapted.iterations.assign(100)
    assert float(adapted.learning_rate) == pytest.approx(float(rate(100)))


def test_a_ratio_may_be_a_fraction():
    rate = scale_adam(keras.optimizers.Adam(CosineDecay(1.0, 90)), 1 / 3)
    rate.iterations.assign(90)
    small = float(CosineDecay(1.0, 90)(30))
    assert float(rate.learning_rate) == pytest.approx(small / math.sqrt(3), rel=1e-5)


Adam = keras.optimizers.Adam
REFUSED = [
    (Adam, 10, "must be below 10 with beta_1=0.9, .* batch_ratio=10. Raise beta_1 at"),
    (Adam, 64, "must be below 10 with beta_1=0.9"),
    (lambda: Adam(beta_1=0), 1.5, "must be below 1 with beta_1=0"),
    (lambda: Adam(beta_2=0.5), 3, "must be below 2 with beta_2=0.5"),
    (lambda: Adam(beta_1=lambda: 0.9), 2, "beta_1 must be a number from 0 to below 1"),
    (lambda: Adam(beta_1=1.0), 2, "beta_1 must be a number from 0 to below 1"),
    (lambda: Adam(lambda: 0.1), 2, "learning_rate must be a number or a Learning"),
    (lambda: L2SGD(0.1), 2, "optimizer must be Adam, .* Received: L2SGD. For SGD,"),
    (keras.optimizers.Nadam, 2, "Received: Nadam"),
    (Adam, 0, "batch_ratio must be a finite number .* Received: batch_ratio=0"),
    (Adam, -2, "Received: batch_ratio=-2"),
    (Adam, 1e-9, "batch_ratio must be a finite number above 0"),
    (Adam, float("nan"), "batch_ratio must be a finite number"),
    (Adam, "4", "Received: batch_ratio='4'"),
]


@pytest.mark.parametrize("optimizer, ratio, message", REFUSED)
def test_what_cannot_be_scaled_is_refused(optimizer, ratio, message):
    with pytest.raises(ValueError, match=message):
        scale_adam(optimizer(), ratio)


# A quadratic with steep and flat directions, whose minimum each example sees elsewhere.
STEEPNESS = np.geomspace(0.03, 3, 64).astype("float32")
EXAMPLES, SMALL, LARGE = 1920, 8, 48


def trajectory(optimizer, batch):
    """The weights by samples seen, once in 96 of them."""
    noise = 6 * np.random.default_rng(0).normal(size=(EXAMPLES, 64)).astype("float32")
    weights = keras.Variable(np.full(64, 3, "float32"))
    optimizer.build([weights])
    seen = []
    for parts in noise.reshape(-1, batch // SMALL, SMALL, 64).mean(2):
        gradients = STEEPNESS * (weights.numpy() - parts)
        gradient = ops.convert_to_tensor(gradients.mean(0))
        if isinstance(optimizer, BatchSizeInvariantAdam):
            square = ops.convert_to_tensor((gradients**2).mean(0))
            inverses = ops.convert_to_tensor([1 / SMALL, 1 / batch])
            (gradient,) = optimizer.with_squares([gradient], [square], *inverses)
        optimizer.apply([gradient], [weights])
        seen.append(weights.numpy())
    return np.array(seen)[96 // batch - 1 :: 96 // batch]


@tensorflow_only
def test_on_a_noisy_quadratic_trajectories_agree():
    how = {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.98}
    tuned = Adam(**how), BatchSizeInvariantAdam(small_batch_size=SMALL, **how)
    square_root, linear = (scale_adam(adam, LARGE / SMALL) for adam in tuned)
    small = trajectory(Adam(**how), SMALL)
    moved = np.linalg.norm(small - 3, axis=1).mean()

    def apart(optimizer):
        large = trajectory(optimizer, LARGE)
        return np.linalg.norm(large - small, axis=1).mean() / moved

    plain = apart(Adam(**how))
    assert plain > 0.5
    assert apart(square_root) < 0.6 * plain
    assert apart(linear) < 0.02
