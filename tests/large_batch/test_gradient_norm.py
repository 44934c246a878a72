"""The logged norm is that of the whole batch's gradient, however it is computed."""

import functools

import keras
import numpy as np
import pytest
from backend import IS_JAX, JIT_COMPILE, NAME, with_gradients
from replicas import scope_of
from small_models import build, digits, sequential

from gbn_keras import LargeBatchModel

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(replicas=1, optimizer=None, micro_batch_size=64, make=sequential, **how):
    keras.utils.set_random_seed(0)
    with scope_of(replicas):
        model = LargeBatchModel(make(), micro_batch_size)
        optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.1)
        model.compile(optimizer, CROSS_ENTROPY, **{"jit_compile": IS_JAX, **how})
    if replicas == 1:
        build(model, *digits(1))
    return model


def fit(model, batch_size=256):
    x, y = digits(512)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    return float(model.gradient_norm)


@pytest.fixture(scope="module")
def one_device():
    """A model after two updates of one device, traced by Keras in the usual way."""
    model = compiled()
    fit(model)
    return model


@functools.cache
def by_hand():
    """Of the first update, all examples at once."""
    x, y = digits(512)
    keras.utils.set_random_seed(0)
    model = sequential()

    def loss(*weights):
        values = zip(model.trainable_variables, weights, strict=True)
        with keras.StatelessScope(list(values), collect_losses=True):
            loss = CROSS_ENTROPY(y, model(x, training=True)) + sum(model.losses)
        return loss, loss

    weights = [v.numpy() for v in model.trainable_variables]
    _, gradients = with_gradients(loss, weights)
    return np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients))


@pytest.mark.parametrize("micro_batch_size", [64, 512])
def test_it_is_that_of_the_whole_batchs_gradient(micro_batch_size):
    model = compiled(micro_batch_size=micro_batch_size)
    assert np.isnan(float(model.gradient_norm))  # Nothing is known yet.
    assert fit(model, 512) == pytest.approx(by_hand(), rel=1e-5)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "micro_batch_size", [32, pytest.param(256, marks=pytest.mark.slow)]
)
def test_all_replicas_hold_that_of_the_whole_batchs_gradient(micro_batch_size):
    model = compiled(2, micro_batch_size=micro_batch_size)
    assert np.isnan(float(model.gradient_norm))
    norm = fit(model, 512)
    assert norm == pytest.approx(by_hand(), rel=1e-5)
    copies = model.gradient_norm._norm.value.values
    assert [float(copy) for copy in copies] == [norm] * 2


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            {"replicas": 2, "steps_per_execution": 2}, marks=pytest.mark.cluster
        ),
        *[{"steps_per_execution": 2}] * (NAME != "torch"),
        {"run_eagerly": True, "jit_compile": False},
        {"jit_compile": JIT_COMPILE[-1]},
        pytest.param({"replicas": 2, "jit_compile": True}, marks=pytest.mark.cluster),
    ],
    ids=str,
)
def test_after_two_updates_every_way_of_running_gives_the_same(how, one_device):
    norm = float(one_device.gradient_norm)
    assert fit(compiled(**how)) == pytest.approx(norm, rel=1e-4)


def test_clipping_comes_after_it():
    clipped = compiled(optimizer=lambda: keras.optimizers.SGD(global_clipnorm=1e-3))
    assert fit(clipped, 512) == pytest.approx(by_hand(), rel=1e-5)


def scaled():
    sgd = keras.optimizers.SGD(0.1)
    return keras.optimizers.LossScaleOptimizer(sgd, initial_scale=1024.0)


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.cluster)])
def test_the_scale_of_the_loss_is_not_in_it(replicas, one_device):
    norm = float(one_device.gradient_norm)
    assert fit(compiled(replicas, scaled)) == pytest.approx(norm, rel=1e-5)


def test_mixed_float16_rounds_it_only():
    def half():
        def clone(layer):
            return type(layer).from_config(
                {**layer.get_config(), "dtype": "mixed_float16"}
            )

        original = sequential()
        model = keras.models.clone_model(original, clone_function=clone)
        model.set_weights(original.get_weights())
        return model

    assert fit(compiled(1, scaled, make=half), 512) == pytest.approx(
        by_hand(), rel=0.02
    )


@pytest.mark.parametrize("replicas, value", [(1, np.inf), (2, np.nan)])
def test_it_is_not_finite_where_a_gradient_is_not(replicas, value):
    def linear():
        return keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])

    x, y = digits(256)
    x[200] = value  # On the second replica, if there is one.
    model = compiled(replicas, make=linear, run_eagerly=True, jit_compile=False)
    model.fit(x, y, batch_size=256, shuffle=False, verbose=0)
    assert not np.isfinite(float(model.gradient_norm))


def test_it_is_no_part_of_the_model(one_device):
    inner = one_device.model
    assert len(one_device.variables) == len(inner.variables)
    assert len(one_device.weights) == len(inner.weights)
