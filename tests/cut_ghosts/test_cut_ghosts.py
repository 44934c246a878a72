"""A layer whose ghosts the replicas cut computes what one device computes."""

import functools
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import replicas_of
from small_models import digits

from gbn_keras import GhostBatchNormalization
from gbn_keras.large_batch.large_batch_model import LargeBatchModel

SHAPE = (64, 3, 4)
UPSTREAM, VALUES = np.random.default_rng(0).normal(size=(2, *SHAPE))
VALUES += 5
MASK = np.random.default_rng(1).random(SHAPE[:2]) > 0.3
MASK[24:40] = False  # A whole ghost of 12, and parts of larger ones.


def update_on(replicas, ghost, dtype, dynamic, masked, activation):
    """Outputs, gradients and running statistics of an update of a bare layer."""
    strategy = replicas_of(replicas) or tf.distribute.get_strategy()
    with strategy.scope():
        layer = GhostBatchNormalization(ghost, activation, momentum=0.7, dtype=dtype)
        layer.build(SHAPE)
        gamma, beta = np.linspace(0.5, 2, 4), np.arange(-1.0, 3)
        layer.set_weights([gamma, beta, np.zeros(4), np.ones(4)])

    def update(*arrays):
        if dynamic:  # As what data sets give to replicas.
            arrays = [
                tf.compat.v1.placeholder_with_default(x, (None, *x.shape[1:]))
                for x in arrays
            ]
        x, upstream, *mask = arrays
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask[0] if mask else None)
            loss = tf.reduce_sum(y * upstream)
        weights = [weight.value for weight in layer.trainable_variables]
        return y, *tape.gradient(loss, [x, *weights])

    arrays = [VALUES.astype(dtype), UPSTREAM.astype(dtype), *([MASK] * masked)]
    share = len(VALUES) // replicas
    shares = [
        strategy.experimental_distribute_values_from_function(
            lambda context, x=x: tf.constant(
                x[context.replica_id_in_sync_group * share :][:share]
            )
        )
        for x in arrays
    ]
    results = tf.function(lambda *args: strategy.run(update, args))(*shares)
    y, by_x, by_gamma, by_beta = (
        [value.numpy() for value in strategy.experimental_local_results(result)]
        for result in results
    )
    copies = [
        [copy.numpy() for copy in getattr(weight.value, "values", [weight.value])]
        for weight in layer.non_trainable_variables
    ]
    for copy in copies:
        for other in copy[1:]:
            np.testing.assert_array_equal(other, copy[0])
    sums = sum(by_gamma), sum(by_beta)  # As the optimizer sums them.
    return np.concatenate(y), np.concatenate(by_x), *sums, *(c[0] for c in copies)


CASES = [
    # Two ghosts, one of them on both replicas; the remainder joins the second.
    (2, 24, "float64", False, False, "relu"),
    # A ghost for each two replicas, in masks of any form.
    pytest.param(4, 32, "float64", False, True, None, marks=pytest.mark.cluster),
    # All kinds of pieces, of a size that is known when it runs.
    pytest.param(2, 12, "float64", True, True, None, marks=pytest.mark.cluster),
    # The whole batch on all.
    pytest.param(4, 100, "float32", False, False, None, marks=pytest.mark.cluster),
    # Nothing is cut, but only the replicas know.
    pytest.param(2, 16, "float64", True, True, None, marks=pytest.mark.slow),
    *(
        pytest.param(8, ghost, dtype, dynamic, masked, None, marks=pytest.mark.slow)
        for ghost in (3, 8, 9, 16, 48)
        for dtype, dynamic, masked in (
            ("float64", False, True),
            ("float64", True, False),
            ("float32", False, False),
        )
    ),
]


@pytest.mark.parametrize("replicas, ghost, dtype, dynamic, masked, activation", CASES)
def test_a_bare_layer_gives_what_one_device_gives(
    replicas, ghost, dtype, dynamic, masked, activation
):
    found = update_on(replicas, ghost, dtype, dynamic, masked, activation)
    expected = update_on(1, ghost, "float64", False, masked, activation)
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    for value, reference in zip(found, expected, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * scale)


def all_reduces(ghost):
    """How often a replica communicates in an update of a layer with shares of 32."""
    context = tf.distribute.ReplicaContext
    with mock.patch.object(
        context, "all_reduce", autospec=True, side_effect=context.all_reduce
    ) as counted:
        update_on(2, ghost, "float32", False, False, None)
    return counted.call_count / 2


def test_whole_ghosts_exchange_running_statistics_only():
    assert all_reduces(32) == 1


@pytest.mark.cluster
def test_cut_ghosts_take_one_more_all_reduce_forward_and_one_backward():
    assert all_reduces(48) == 3


def network(ghost):
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(8, use_bias=False),
            GhostBatchNormalization(ghost, momentum=0.7),
            keras.layers.Activation("gelu"),
            keras.layers.Dense(10),
        ]
    )


def trained(replicas, ghost, micro_batch_size, weights=None, **how):
    """Weights after two epochs of two updates of 64."""
    keras.utils.set_random_seed(0)
    x, y = digits(128)
    with (replicas_of(replicas) or tf.distribute.get_strategy()).scope():
        model = inner = network(ghost)
        if micro_batch_size:
            model = LargeBatchModel(inner, micro_batch_size, how.pop("noise", False))
        loss = keras.losses.SparseCategoricalCrossentropy(
            True, reduction="mean_with_sample_weight"
        )
        optimizer = keras.optimizers.SGD(0.1, 0.9)
        model.compile(optimizer, loss, **{"jit_compile": False, **how})
    data = (x, y) if weights is None else (x, y, weights)
    data = tf.data.Dataset.from_tensor_slices(data).batch(64, drop_remainder=True)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    return [variable.numpy() for variable in inner.variables]


@functools.cache
def alone(ghost, weighted=False):
    return trained(1, ghost, None, WEIGHTS if weighted else None)


WEIGHTS = np.random.default_rng(2).uniform(0, 3, 128).astype("float32")
WEIGHTS[:32] = 0.1  # Replicas must not count alike.


@pytest.mark.cluster
@pytest.mark.parametrize(
    "ghost, micro_batch_size, weighted",
    [
        (64, 32, True),  # Wrapped, with losses that have other weights in each share.
        (24, None, False),  # Keras's own training.
        # At once, since less than two micro-batches remain; not compiled by default.
        (24, 24, False),
    ],
)
def test_a_training_gives_the_weights_of_one_device(ghost, micro_batch_size, weighted):
    how = {"jit_compile": "auto"} if micro_batch_size else {}
    weights = WEIGHTS if weighted else None
    found = trained(2, ghost, micro_batch_size, weights, **how)
    for value, expected in zip(found, alone(ghost, weighted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "micro_batch_size, how, message",
    [
        (16, {}, "micro_batch_size=16 for shares of 32 examples on 2 replicas, with "
         "ghosts of 64"),
        (32, {"jit_compile": True}, "jit_compile must not be True.*ghosts of 64"),
        (32, {"noise": True}, "noise_scale, .* must have whole ghosts.*ghosts of 64"),
    ],
)  # fmt: skip
def test_what_needs_whole_ghosts_is_refused(micro_batch_size, how, message):
    with pytest.raises(ValueError, match=message):
        trained(2, 64, micro_batch_size, **how)
