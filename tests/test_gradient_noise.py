"""Gradient noise keeps the mean and restores the covariance of the small batch."""

import functools

import keras
import numpy as np
import pytest
from backend import tensorflow_only, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow
from scipy.special import softmax

from gbn_keras import GradientNoise
from gbn_keras.shares import Shares

tf = pytest.importorskip("tensorflow", reason="weighs a tf.data.Dataset")

from gbn_keras.training.data import datasets  # noqa: E402 - Imports TensorFlow.

# TensorFlow computes the weights on every backend.
whatever_keras_computes_with = tensorflow_only


def batches(examples=8, count=4):
    x = tf.zeros([examples, 2])
    batch = tf.data.Dataset.from_tensor_slices((x, x[:, 0])).batch(examples)
    # Millions of examples would take long to put into batches.
    return batch.cache().repeat(count)


def weights_of(dataset):
    return np.stack([weights.numpy() for _, _, weights in dataset])


@pytest.fixture(scope="module")
def whole():
    """The weights of four batches of 8 with the noise of 2."""
    return weights_of(batches().apply(GradientNoise(8, 2)))


@pytest.fixture(scope="module")
def example_gradients():
    """Gradients by example of a softmax regression near its optimum."""
    data = datasets.load("digits")
    x = data.train_images.reshape(1536, -1).astype("float32") / 16
    y = data.train_labels
    weights, velocity = np.zeros((2, 64, 10))
    for _ in range(100):
        error = softmax(x @ weights, axis=1) - np.eye(10)[y]
        velocity = 0.9 * velocity - 0.5 * x.T @ error / 1536
        weights += velocity
    error = softmax(x @ weights, axis=1) - np.eye(10)[y]
    gradients = np.einsum("ni,nj->nij", x, error).reshape(1536, -1)
    return weights.astype("float32"), x, y, gradients


@whatever_keras_computes_with
def test_the_weights_have_mean_one_and_the_variance_that_restores_the_small_batch():
    weights = weights_of(batches(512, 200).apply(GradientNoise(512, 32)))
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1, abs=4 * (15 / weights.size) ** 0.5)
    assert weights.var() == pytest.approx(15, rel=0.02)
    quarter = GradientNoise(512, 32, variance=0.25)
    weights = weights_of(batches(512, 100).apply(quarter))
    assert weights.var() == pytest.approx(0.25, rel=0.03)


def test_as_sample_weights_they_scale_each_examples_gradient(example_gradients):
    kernel, x, y, gradients = example_gradients
    data = tf.data.Dataset.from_tensors((x, y)).apply(GradientNoise(1536, 32))
    (weights,) = weights_of(data)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_and_results(*parameters):
        outputs, _ = model.stateless_call(parameters, [], x)
        return loss(y, outputs, weights), ()

    _, (found, _) = with_gradients(loss_and_results, [kernel, np.zeros(10, "float32")])
    expected = weights @ gradients / 1536
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-6)


@whatever_keras_computes_with
def test_the_gradient_has_the_mean_of_the_large_batch_and_the_small_batchs_covariance(
    example_gradients,
):
    """Against small batches that are drawn from the large one, without replacement."""
    *_, gradients = example_gradients
    draws, large, small = 2000, len(gradients), 64
    random = np.random.default_rng(0)
    # A few directions, in which a covariance is soon known.
    shown = gradients @ random.normal(size=(gradients.shape[1], 4))
    noisy = weights_of(batches(large, draws).apply(GradientNoise(large, small)))
    noisy = noisy @ shown / large
    drawn = [random.choice(large, small, replace=False) for _ in range(draws)]
    drawn = np.array([shown[places].mean(axis=0) for places in drawn])

    deviation = noisy.std(axis=0)
    np.testing.assert_array_less(
        abs(noisy.mean(axis=0) - shown.mean(axis=0)), 4 * deviation / draws**0.5
    )
    wanted, found = np.cov(drawn.T), np.cov(noisy.T)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
    # Without the noise the batch's gradient would not vary at all; with half of it:
    assert np.linalg.norm(found / 2 - wanted) > 0.4 * np.linalg.norm(wanted)


@whatever_keras_computes_with
def test_every_update_and_every_seed_draws_anew_and_again_the_same():
    noise = GradientNoise(8, 2, seed=3)
    whole = weights_of(batches().apply(noise))
    np.testing.assert_array_equal(whole, weights_of(batches().apply(noise)))
    assert len(np.unique(whole)) == whole.size
    other = weights_of(batches().apply(GradientNoise(8, 2, seed=4)))
    assert (whole != other).all()
    resumed = weights_of(noise(batches(count=2), first_update=2))
    np.testing.assert_array_equal(resumed, whole[2:])


@whatever_keras_computes_with
@pytest.mark.parametrize(
    "replicas, per_machine",
    [(4, 1), (4, 2), slow(2, 1)],
)
def test_shares_have_the_weights_of_the_whole_batch(replicas, per_machine, whole):
    noise = GradientNoise(8, 2)
    size = 8 // replicas
    for first in range(0, replicas, per_machine):
        shares = Shares(replicas, first, per_machine)
        part = weights_of(noise(batches(size, 4 * per_machine), shares=shares))
        expected = whole[:, first * size :][:, : per_machine * size]
        np.testing.assert_array_equal(part.reshape(4, -1), expected)


@whatever_keras_computes_with
def test_a_last_batch_may_be_smaller(whole):
    data = batches(3, 1).apply(GradientNoise(8, 2))
    np.testing.assert_array_equal(weights_of(data), whole[:1, :3])


@whatever_keras_computes_with
def test_weights_that_are_there_are_multiplied(whole):
    weighted = batches().map(lambda x, y: (x, y, tf.range(8)))
    found = weights_of(weighted.apply(GradientNoise(8, 2)))
    np.testing.assert_allclose(found, whole * np.arange(8), rtol=1e-6)


def test_metrics_of_a_plain_fit_are_not_weighted():
    data = datasets.load("digits")
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.SGD(0.0),  # So that every update has the same accuracy.
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    stream = data.training_batches(512, 1)
    noisy = stream.apply(GradientNoise(512, 32))
    history = model.fit(noisy, steps_per_epoch=3, shuffle=False, verbose=0).history
    plain = model.evaluate(stream, steps=3, verbose=0, return_dict=True)
    assert history["accuracy"] == [pytest.approx(plain["accuracy"])]
    assert history["loss"][0] != pytest.approx(plain["loss"], rel=1e-3)


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"batch_size=0"):
        GradientNoise(0, 2)
    with pytest.raises(ValueError, match=r"small_batch_size=2.5"):
        GradientNoise(8, 2.5)
    with pytest.raises(ValueError, match=r"batch_size=4, small_batch_size=8"):
        GradientNoise(4, 8)
    with pytest.raises(ValueError, match=r"variance=-1"):
        GradientNoise(8, 2, variance=-1)
    with pytest.raises(ValueError, match=r"seed=None"):
        GradientNoise(8, 2, seed=None)
    with pytest.raises(ValueError, match="dataset must hold pairs"):
        GradientNoise(8, 2)(tf.data.Dataset.range(3))


SHAPES = {"numbers": (), "one_hot": (3,), "steps": (4,), "image": (2, 3)}


@st.composite
def targets_and_weights(draw):
    """Shapes of targets after the batch, and those of weights, each by output."""
    names = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3))
    weights = []
    for name in names:
        shape = SHAPES[name]
        choices = [None, shape, tuple(1 for _ in shape)]
        weights.append(draw(st.sampled_from(choices)))
    return names, weights, draw(st.sampled_from(["list", "dict"])), draw(st.booleans())


any_targets = given(drawn=targets_and_weights(), examples=st.integers(2, 4))
repeatably = settings(deadline=None, derandomize=True, database=None)


@any_targets
@settings(repeatably, max_examples=15)
def test_an_example_has_one_weight_in_targets_of_any_rank(drawn, examples):
    check_weights(drawn, examples)


@pytest.mark.slow
@any_targets
@settings(repeatably, max_examples=40)
def test_an_example_has_one_weight_in_many_targets(drawn, examples):
    check_weights(drawn, examples)


ONE_OF_FOUR = GradientNoise(4, 1, seed=5)


@functools.cache
def noise_of_a_batch(examples):
    (weights,) = weights_of(batches(examples, 1).apply(ONE_OF_FOUR))
    return weights


def check_weights(drawn, examples):
    names, shapes, structure, is_weighted = drawn
    random = np.random.default_rng(0)
    y = [random.random((examples, *SHAPES[name]), "float32") for name in names]
    predictions = [random.random(part.shape, "float32") for part in y]
    own_weights = [
        None if shape is None else random.random((examples, *shape), "float32")
        for shape in shapes
    ]

    def pack(parts):
        return dict(zip("abc", parts, strict=False)) if structure == "dict" else parts

    data = tf.data.Dataset.from_tensors((y[0], pack(tuple(y))))
    if is_weighted:
        weighted = (y[0], pack(tuple(y)), pack(tuple(own_weights)))
        data = tf.data.Dataset.from_tensors(weighted)
    plain = noise_of_a_batch(examples)
    (_, _, found) = next(iter(data.apply(ONE_OF_FOUR)))
    if not tf.nest.is_nested(found):
        found = pack([found] * len(names))
    for name, target, prediction, weights, z in zip(
        names, y, predictions, own_weights, tf.nest.flatten(found), strict=True
    ):
        # A loss by class numbers has the target's rank, others have one less.
        squares = (target - prediction) ** 2
        losses = {squares.ndim: squares}
        if name == "one_hot" or (name == "image" and weights is None):
            losses = {squares.ndim - 1: squares.mean(axis=-1)}
        own = plain.reshape(-1, *(1 for _ in range(squares.ndim - 1)))
        for values in losses.values():
            factor = own
            if is_weighted and weights is not None:
                factor = own * weights
            if factor.ndim > values.ndim:
                if factor.shape[-1] != 1:
                    continue  # Weights for losses of another rank.
                factor = factor[..., 0]
            loss = ByValue()(values, prediction, z)
            np.testing.assert_allclose(loss, (values * factor).mean(), rtol=1e-5)


class ByValue(keras.losses.Loss):
    """The targets themselves."""

    def call(self, y_true, y_pred):
        """`y_true`."""
        return y_true


@whatever_keras_computes_with
def test_weights_by_step_are_neither_transposed_nor_spread():
    """With as many steps as examples nothing but the numbers would tell."""
    noise = GradientNoise(4, 2)
    (plain,) = weights_of(batches(4, 1).apply(noise))
    steps = np.arange(16, dtype="float32").reshape(4, 4)
    for weights in (steps, steps[:, :1], steps[:, 0]):
        data = tf.data.Dataset.from_tensors((steps, steps, weights)).apply(noise)
        (found,) = weights_of(data)
        expected = weights * plain.reshape(4, *(1 for _ in weights.shape[1:]))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_autoencoder_and_a_segmentation_are_trained_by_the_example():
    """Of an update with the rate 1, by the examples' own gradients."""
    x = np.random.default_rng(0).random((8, 4, 4, 1), "float32")
    noise = GradientNoise(8, 2)
    (z,) = weights_of(batches(8, 1).apply(noise))
    for loss, y in (
        ("mse", x),
        ("binary_crossentropy", (x > 0.5).astype("float32")),
    ):
        keras.utils.set_random_seed(0)
        activation = None if loss == "mse" else "sigmoid"
        by_pixel = keras.layers.Dense(1, activation)
        model = keras.Sequential([keras.Input((4, 4, 1)), by_pixel])
        model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
        before = model.get_weights()
        steps = []
        for weights in (None, *np.eye(8, dtype="float32")):
            model.set_weights(before)
            if weights is None:
                data = tf.data.Dataset.from_tensors((x, y)).apply(noise)
                model.fit(data, verbose=0)
            else:
                model.train_on_batch(x, y, weights[:, None, None])
            steps.append(before[0] - model.get_weights()[0])
        expected = np.tensordot(z, steps[1:], 1)
        np.testing.assert_allclose(steps[0], expected, atol=1e-6)


@pytest.mark.parametrize("what", ["ragged", "sparse", "scalar", "rank"])
def test_what_has_no_weight_an_example_is_refused_in_a_line(what):
    x = tf.ones([4, 3])
    y = {
        "ragged": tf.RaggedTensor.from_tensor(x),
        "sparse": tf.sparse.from_dense(x),
        "scalar": tf.constant(1.0),
        "rank": x,
    }[what]
    data = tf.data.Dataset.from_tensors((x, y))
    if what == "rank":
        data = tf.data.Dataset.from_generator(
            lambda: iter([(x, y)]), (tf.float32, tf.float32)
        )
    with pytest.raises(ValueError, match="y must be dense tensors of known rank"):
        data.apply(GradientNoise(4, 2))
