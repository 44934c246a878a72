"""Layers on several replicas compute what one device computes, or refuse to."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import replicas_of

from gbn_keras import GhostBatchNormalization, ShardingInvariantDropout
from gbn_keras.batch_part import BatchPart
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.replicas import this_replica

INPUTS = np.random.default_rng(0).normal(3, 2, (256, 5)).astype("float32")


def shares_of(strategy, inputs, sizes):
    """Consecutive shares of so many examples, one for each replica."""
    ends = np.cumsum([0, *sizes])
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            inputs[slice(*ends[context.replica_id_in_sync_group :][:2])]
        )
    )


def on_replicas(number, function, inputs=INPUTS, times=1):
    """What `function` of a share gives on each replica, in order, the last time."""
    strategy = replicas_of(number)
    shares = shares_of(strategy, inputs, [len(inputs) // number] * number)
    run = tf.function(lambda x: strategy.run(function, args=(x,)))
    for _ in range(times):
        result = run(shares)
    return [v.numpy() for v in strategy.experimental_local_results(result)]


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_running_statistics_are_those_of_one_device(number):
    def layer():
        return GhostBatchNormalization(32, momentum=0.7)

    expected = layer()
    for _ in range(3):
        outputs = expected(INPUTS, training=True)
    with replicas_of(number).scope():
        mirrored = layer()
        mirrored.build(INPUTS.shape)
    found = on_replicas(number, functools.partial(mirrored, training=True), times=3)
    np.testing.assert_allclose(np.concatenate(found), outputs, rtol=1e-5, atol=1e-6)
    for one, other in zip(mirrored.weights, expected.weights, strict=True):
        for copy in one.value.values:  # Of each replica.
            np.testing.assert_allclose(copy, other, rtol=1e-5)


@pytest.mark.cluster
def test_keras_own_fit_on_replicas_gives_the_running_statistics_of_one_device():
    def fitted(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential(
                [
                    keras.Input((5,)),
                    keras.layers.Dense(4),
                    GhostBatchNormalization(32),
                    keras.layers.Dense(1),
                ]
            )
            model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        targets = INPUTS.sum(1)
        model.fit(INPUTS, targets, batch_size=256, epochs=3, shuffle=False, verbose=0)
        return [w.numpy() for w in model.weights]

    expected = fitted(tf.distribute.get_strategy())
    for one, other in zip(fitted(replicas_of(2)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.cluster
def test_a_micro_batch_that_cuts_ghosts_is_refused_where_the_size_is_unknown():
    with replicas_of(2).scope():
        layers = [keras.Input((5,)), GhostBatchNormalization(48), keras.layers.Dense(1)]
        model = LargeBatchModel(keras.Sequential(layers), 48)
        model.compile("sgd", "mse", jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((INPUTS, INPUTS[:, :1])).batch(192)
    # The first batch is 2 x 2 ghosts; 64 examples remain.
    message = "can be cut by replicas, not by micro-batches. Received: .*=48 for shares"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(batches, shuffle=False, verbose=0)


@pytest.mark.cluster
def test_replicas_with_shares_of_different_sizes_are_refused():
    strategy = replicas_of(2)
    with strategy.scope():
        layer = GhostBatchNormalization(8)
        layer.build((None, 5))
    shares = shares_of(strategy, INPUTS, (8, 16))
    run = tf.function(lambda x: strategy.run(layer, (x,), {"training": True}))
    with pytest.raises(tf.errors.InvalidArgumentError, match="shares of equal size"):
        run(shares)


@pytest.mark.parametrize(
    "sizes, dynamic",
    [
        ((0, 64), False),
        ((32, 32, 0, 0), True),
        ((0, 0), True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((64, 0), False),
                ((0, 0), False),
                ((0, 64), True),
                ((64, 0), True),
                ((32, 32, 0, 0), False),
            )
        ),
    ],
)
def test_replicas_with_nothing_take_no_part(sizes, dynamic):
    def layer():
        return GhostBatchNormalization(16, momentum=0.7)

    inputs = INPUTS[: sum(sizes)]
    strategy, expected = replicas_of(len(sizes)), layer()
    expected.build(INPUTS.shape)
    outputs = expected(inputs, training=True)
    with strategy.scope():
        mirrored = layer()
        mirrored.build(INPUTS.shape)

    def train(share):
        if dynamic:  # As what data sets give to replicas.
            share = tf.compat.v1.placeholder_with_default(share, (None, 5))
        return mirrored(share, training=True)

    run = tf.function(lambda x: strategy.run(train, args=(x,)))
    result = run(shares_of(strategy, inputs, sizes))
    found = [v.numpy() for v in strategy.experimental_local_results(result)]
    assert [len(part) for part in found] == list(sizes)
    np.testing.assert_allclose(np.concatenate(found), outputs, rtol=1e-5, atol=1e-6)
    for one, other in zip(mirrored.weights, expected.weights, strict=True):
        for copy in one.value.values:
            np.testing.assert_allclose(copy, other, rtol=1e-5)


@pytest.mark.cluster
def test_keras_own_fit_goes_through_a_batch_that_leaves_replicas_with_nothing():
    with replicas_of(4).scope():
        layers = [keras.Input((5,)), GhostBatchNormalization(1), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        model.compile("sgd", "mse", jit_compile=False)
    expected = GhostBatchNormalization(1)
    expected.build(INPUTS.shape)
    for batch in (INPUTS[:64], INPUTS[64:66]):  # One each for two of the replicas.
        expected(batch, training=True)
    batches = tf.data.Dataset.from_tensor_slices((INPUTS[:66], INPUTS[:66, :1]))
    model.fit(batches.batch(64), shuffle=False, verbose=0)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            getattr(model.layers[0], name), getattr(expected, name), rtol=1e-5
        )


@pytest.mark.cluster
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: LargeBatchModel(m, 32),
        pytest.param(lambda m: m, marks=pytest.mark.slow),
    ],
    ids=["wrapped", "plain"],
)
def test_ghosts_that_are_masked_altogether_take_no_part_on_any_replica(wrap):
    """Of 16 ghosts on two replicas and in micro-batches, some without values."""
    sequences = np.random.default_rng(1).normal(3, 2, (128, 3, 5)).astype("float32")
    ghosts = sequences.reshape(16, 8, 3, 5)
    ghosts[[0, 3, 9, 14, 15]] = 0
    ghosts[1, :, 2] = 0

    def statistics(strategy, wrap):
        with strategy.scope():
            layers = [
                keras.Input((3, 5)),
                keras.layers.Masking(),
                GhostBatchNormalization(8, momentum=0.7),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
            network = keras.Sequential(layers)
            network.layers[-1].set_weights([np.ones((5, 1)), np.zeros(1)])
            model = wrap(network)
            model.compile("sgd", "mse", jit_compile=False)
        targets = np.ones((128, 1), "float32")
        model.fit(sequences, targets, batch_size=128, shuffle=False, verbose=0)
        return network.layers[1].get_weights()[2:]

    expected = statistics(tf.distribute.get_strategy(), lambda m: m)
    moving = np.zeros(5), np.ones(5)
    for ghost in ghosts:
        valid = ghost[ghost.any(-1)]
        if len(valid):
            steps = valid.mean(0), valid.var(0)
            moving = [0.7 * m + 0.3 * s for m, s in zip(moving, steps, strict=True)]
    for found in (expected, statistics(replicas_of(2), wrap)):
        for value, reference in zip(found, moving, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5)


def test_outside_of_replicas_there_is_one():
    assert this_replica() == (0, 1)
    with replicas_of(2).scope():
        assert this_replica() == (0, 1)


def test_masks_do_not_repeat_on_replicas_and_are_those_of_one_device():
    ones = np.ones((64, 10), "float32")
    expected = ShardingInvariantDropout(0.5, seed=1)(ones, training=True)
    with replicas_of(4).scope():
        layer = ShardingInvariantDropout(0.5, seed=1)
    found = on_replicas(4, functools.partial(layer, training=True), ones)
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert len({masks.tobytes() for masks in found}) == 4


def test_a_shard_is_entered_and_left():
    assert BatchPart.current() is None
    with BatchPart(3) as outer:
        with BatchPart(5) as inner:
            assert BatchPart.current() is inner
        assert BatchPart.current() is outer
    assert BatchPart.current() is None
