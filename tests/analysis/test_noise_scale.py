"""The noise scale of a quadratic is the known one, however it is computed."""

import functools

import keras
import numpy as np
import pandas as pd
import pytest
from backend import IS_TENSORFLOW, tensorflow_only
from keras import ops
from marks import slow

from gbn_keras.analysis.noise_scale import NoiseScaleLog, noise_scale_advice
from gbn_keras.large_batch.gradient_moments import GradientMoments, NoiseScale
from gbn_keras.shares import WHOLE_BATCH

if IS_TENSORFLOW:
    import tensorflow as tf
    from replicas import replicas_of

    from gbn_keras.large_batch.large_batch_model import LargeBatchModel
    from gbn_keras.training.strategy import distribute

# A loss of |w - x|^2 / 2 has the gradient w - x: |G|^2 is the square of the distance to
# the mean of x, tr(Sigma) is the variance of x, all entries together.
ENTRIES, DEVIATION, OFFSET = 20, 3.0, 0.5
NOISE, SQUARE = ENTRIES * DEVIATION**2, ENTRIES * OFFSET**2


class Point(keras.layers.Layer):
    """Returns its weights, `w`, less the input."""

    def build(self, shape):
        """Makes the weights."""
        self.w = self.add_weight(shape=shape[1:], initializer="zeros")

    def call(self, x):
        """`w - x`."""
        return self.w - x


def quadratic(y, outputs):
    return ops.sum(ops.square(outputs), axis=-1) / 2


def batches(size, shares=WHOLE_BATCH):
    x = tf.random.stateless_normal([400 * size, ENTRIES], [1, 2]) * DEVIATION + OFFSET
    share = size // shares.replicas
    cut = tf.reshape(x, [400, shares.replicas, share, ENTRIES])
    cut = cut[:, shares.first : shares.first + shares.number]
    cut = tf.reshape(cut, [-1, share, ENTRIES])
    return tf.data.Dataset.from_tensor_slices((cut, cut[..., 0]))


def fit(
    micro_batch_size,
    size=64,
    strategy=None,
    rate=0.0,
    callbacks=(),
    updates=400,
    **compiled,
):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        inputs = keras.Input((ENTRIES,))
        inner = keras.Model(inputs, Point()(inputs))
        model = LargeBatchModel(inner, micro_batch_size, noise_scale=True)
        model.compile(keras.optimizers.SGD(rate), quadratic, **compiled)

    def data(**shares):
        return batches(size, **shares)

    stream = distribute(strategy, data)
    callbacks = [make(model) for make in callbacks]
    model.fit(
        stream, steps_per_epoch=updates, shuffle=False, verbose=0, callbacks=callbacks
    )
    return model


@functools.cache
def alone(micro_batch_size):
    """What one device finds."""
    return fit(micro_batch_size).gradient_moments.estimate()


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Of a training in micro-batches of 16: the log, and what it has found at last."""
    folder = tmp_path_factory.mktemp("logged")
    model = fit(16, callbacks=[lambda m: NoiseScaleLog(folder, m.gradient_moments)])
    table = pd.read_csv(folder / "noise_scale.csv")
    return table, model.gradient_moments.estimate()


@tensorflow_only
@pytest.mark.parametrize("micro_batch_size", [16, slow(32), slow(64), 80])
def test_it_is_that_of_the_quadratic(micro_batch_size):
    # Micro-batches of 80 are two, and a last one of 96. The smoothing keeps about 100
    # updates, of which each tells |G|^2 to 17 %.
    found = fit(micro_batch_size, size=256).gradient_moments.estimate()
    assert found.noise == pytest.approx(NOISE, rel=0.1)
    assert found.gradient_square == pytest.approx(SQUARE, rel=0.1)
    assert found.noise_scale == pytest.approx(NOISE / SQUARE, rel=0.1)


def test_the_estimates_are_without_bias():
    """Over many updates, each without smoothing."""
    random = np.random.default_rng(0)
    estimates = []
    for _ in range(250):
        gradients = random.normal(OFFSET, DEVIATION, size=(16, 8, ENTRIES))
        parts = gradients.mean(axis=1)
        moments = GradientMoments()
        moments.update(
            *np.float32([(parts**2).sum(-1).mean(), 1 / 8]),
            *np.float32([(parts.mean(axis=0) ** 2).sum(), 1 / 128]),
        )
        found = moments.estimate()
        estimates.append((found.noise, found.gradient_square))
    noise, square = np.mean(estimates, axis=0)
    assert noise == pytest.approx(NOISE, rel=0.02)
    assert square == pytest.approx(SQUARE, rel=0.05)


@tensorflow_only
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_compiled_or_not_it_is_the_same(options, logged):
    # Few updates: without a graph, each takes a tenth of a second.
    found = fit(16, updates=10, **options).gradient_moments.estimate()
    expected = logged[0].set_index("updates").loc[10]
    assert found.noise == pytest.approx(expected.noise, rel=1e-3)
    assert found.gradient_square == pytest.approx(expected.gradient_square, rel=1e-3)


@pytest.mark.cluster
@tensorflow_only
@pytest.mark.parametrize("micro_batch_size", [8, 32])
def test_replicas_are_parts_of_the_batch_too(micro_batch_size):
    strategy = replicas_of(2)
    # With one micro-batch a replica, the replicas' shares are what is compared.
    shared = fit(micro_batch_size, strategy=strategy).gradient_moments.estimate()
    expected = alone(micro_batch_size)
    assert shared.noise == pytest.approx(expected.noise, rel=1e-3)
    assert shared.gradient_square == pytest.approx(expected.gradient_square, rel=1e-2)


@tensorflow_only
def test_loss_scaling_does_not_matter(logged):
    with tf.distribute.get_strategy().scope():
        inputs = keras.Input((ENTRIES,))
        model = LargeBatchModel(
            keras.Model(inputs, Point()(inputs)), 16, noise_scale=True
        )
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.0), initial_scale=1024.0
        )
        model.compile(optimizer, quadratic)
    model.fit(batches(64), shuffle=False, verbose=0)
    scaled = model.gradient_moments.estimate()
    assert scaled.noise == pytest.approx(logged[1].noise, rel=1e-3)


@tensorflow_only
def test_a_batch_that_is_not_cut_tells_nothing(tmp_path):
    log = [lambda model: NoiseScaleLog(tmp_path, model.gradient_moments)]
    model = fit(64, updates=40, callbacks=log)
    assert model.gradient_moments.estimate() is None
    assert pd.read_csv(tmp_path / "noise_scale.csv")["noise"].isna().all()


@tensorflow_only
def test_it_is_logged(logged):
    table, now = logged
    assert table["updates"].iloc[0] == 1 and table["updates"].iloc[-1] > 350
    last = table.iloc[-1]
    assert last["noise_scale"] == pytest.approx(last["noise"] / last["gradient_square"])
    assert last["noise"] == pytest.approx(now.noise, rel=0.2)


def test_whoever_has_two_gradients_can_log_it(tmp_path):
    """Without `LargeBatchModel`, whose training is TensorFlow's."""
    moments = GradientMoments()

    class TakeIn(keras.callbacks.Callback):
        """Of batches of 4 and 16 examples: |G|^2 is 3, tr(Sigma) is 8."""

        def on_train_batch_end(self, batch, logs=None):
            known = np.float32([5, 1 / 4, 3.5, 1 / 16])
            moments.update(*map(ops.convert_to_tensor, known))

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [TakeIn(), NoiseScaleLog(tmp_path, moments)]
    ones = np.ones((40, 1), "float32")
    model.fit(ones, ones, batch_size=2, verbose=0, callbacks=callbacks)
    table = pd.read_csv(tmp_path / "noise_scale.csv")
    assert table["updates"].tolist() == [*range(1, 11), 12, 13, 15, 16, 18, 20]
    np.testing.assert_allclose(table["gradient_square"], 3, rtol=1e-4)
    np.testing.assert_allclose(table["noise"], 8, rtol=1e-4)
    np.testing.assert_allclose(table["noise_scale"], 8 / 3, rtol=1e-4)


@pytest.mark.parametrize(
    "scale, stretch",
    [(0, 32), (1e12, 1), (128, 32 * (1 + 1 / 32) / 2), (float("inf"), 1)],
)
def test_the_suitable_stretch_goes_from_1_to_m(scale, stretch):
    known = NoiseScale(1.0, scale) if np.isfinite(scale) else NoiseScale(-1.0, 5.0)
    assert known.suitable_stretch(4096, 128) == pytest.approx(stretch, rel=1e-6)


@pytest.mark.parametrize(
    "stretch, verdict", [(1, "would suit"), (32, "would have been enough")]
)
def test_the_advice_tells_what_was_learned_and_what_would_do(stretch, verdict):
    advice = noise_scale_advice(stretch, 16.5, 63.2, 288)
    assert "as much as 63 updates of the small batch, which makes 288" in advice
    assert f"a stretch of 16.5 {verdict} (it was {stretch}) to learn" in advice


@tensorflow_only
def test_the_model_remembers_that_it_measures():
    model = LargeBatchModel(keras.Sequential([Point()]), 8, noise_scale=True)
    assert model.get_config()["noise_scale"] is True
    plain = LargeBatchModel(keras.Sequential([Point()]), 8)
    assert plain.get_config()["noise_scale"] is False
