"""Micro-batches: the update of the whole batch in the memory of a part."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from gbn_keras import GhostBatchNormalization
from gbn_keras.training.large_batch_model import LargeBatchModel
from gbn_keras.training.micro_batches import MicroBatches


class Subclassed(keras.Model):
    """A model without a graph of its layers."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(12, use_bias=False)
        self.normalization = GhostBatchNormalization(32)
        self.classes = keras.layers.Dense(10)

    def call(self, inputs, training=None):
        """Logits."""
        hidden = self.normalization(self.dense(inputs), training=training)
        return self.classes(keras.ops.relu(hidden))


def sequential():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(
                12, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-3)
            ),
            GhostBatchNormalization(32),
            keras.layers.ReLU(),
            keras.layers.Dense(10),
        ]
    )


def functional():
    inputs = keras.Input((64,))
    hidden = keras.layers.Reshape((8, 8, 1))(inputs)
    hidden = keras.layers.Conv2D(4, 3, use_bias=False)(hidden)
    hidden = keras.layers.ReLU()(GhostBatchNormalization(16)(hidden))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(hidden))
    return keras.Model(inputs, outputs)


def trained(make_model, micro_batch_size, *, batch_size=256, weights=None, **how):
    """Weights, optimizer state and logs after some updates on the digits."""
    keras.utils.set_random_seed(0)
    model = make_model()
    wrapped = model
    if micro_batch_size:
        wrapped = LargeBatchModel(model, micro_batch_size)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    wrapped.compile(
        keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        **{"jit_compile": False, **how},
    )
    x, y = load_digits(return_X_y=True)
    x, y = (x[:1024] / 16).astype("float32"), y[:1024]
    history = wrapped.fit(
        x, y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0,
        sample_weight=weights,
    )  # fmt: skip
    values = [v.numpy() for v in model.variables]
    state = [v.numpy() for v in wrapped.optimizer.variables]
    return values, state, history.history


def assert_same(one, other):
    for values, expected in zip(one[:2], other[:2], strict=True):
        for value, reference in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)
    for name in other[2]:
        np.testing.assert_allclose(one[2][name], other[2][name], rtol=1e-5)


@pytest.mark.parametrize("make_model", [sequential, functional, Subclassed])
@pytest.mark.parametrize("micro_batch_size", [32, 128, 1024])
def test_micro_batches_give_the_update_of_the_whole_batch(make_model, micro_batch_size):
    assert_same(trained(make_model, micro_batch_size), trained(make_model, None))


# 1,024 examples leave a last batch: of unknown size while tracing.
@pytest.mark.parametrize("batch_size", [200, 300, 500])
def test_what_remains_joins_the_last_micro_batch(batch_size):
    how = {"batch_size": batch_size}
    assert_same(trained(sequential, 64, **how), trained(sequential, None, **how))


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("examples", [40, 64, 100, 128, 160, 192, 200, 300])
def test_every_example_is_in_one_micro_batch(examples, is_known):
    @tf.function(input_signature=[tf.TensorSpec([examples if is_known else None])])
    def seen(values):
        def add(state, start, part):
            # Squares, so that one too many is not made up for by one too few.
            return [state[0] + tf.size(part), state[1] + tf.reduce_sum(part**2)]

        state = [tf.constant(0), tf.constant(0.0)]
        return MicroBatches(values, 64).reduce(add, state)

    count, total = seen(tf.range(examples, dtype="float32"))
    assert count == examples
    np.testing.assert_allclose(total, np.square(np.arange(examples)).sum(), rtol=1e-6)


@pytest.mark.parametrize("how", [{"jit_compile": True}, {"run_eagerly": True}])
def test_compiled_or_eagerly_too(how):
    assert_same(trained(functional, 64, **how), trained(functional, None))


def test_sample_weights_count_over_the_whole_batch():
    weights = np.random.default_rng(0).random(1024).astype("float32")
    how = {"weights": weights}
    assert_same(trained(sequential, 64, **how), trained(sequential, None, **how))


def test_a_variable_without_a_gradient_and_one_looked_up_by_rows():
    def model():
        inputs = keras.Input((64,))
        rows = keras.layers.Embedding(17, 3)(inputs * 16)
        outputs = keras.layers.Dense(10)(keras.layers.Flatten()(rows))
        model = keras.Model(inputs, outputs)
        model.unused = keras.layers.Dense(2)
        model.unused.build((None, 3))
        return model

    with pytest.warns(UserWarning, match="Gradients do not exist"):
        expected = trained(model, None)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        assert_same(trained(model, 64), expected)


def test_float16_losses_are_scaled():
    model = LargeBatchModel(sequential(), 32)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=1024.0
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    x, y = load_digits(return_X_y=True)
    before = [w.numpy() for w in model.trainable_weights]
    model.train_on_batch(x[:64] / 16, y[:64])
    steps = [
        np.abs(after - earlier).max()
        for after, earlier in zip(model.trainable_weights, before, strict=True)
    ]
    assert 0 < max(steps) < 1


def test_a_wrapped_model_is_saved_and_loaded(tmp_path):
    model = LargeBatchModel(sequential(), 64)
    model.compile("sgd", "mse")
    model.save(tmp_path / "wrapped.keras")
    loaded = keras.models.load_model(tmp_path / "wrapped.keras")
    assert loaded.micro_batch_size == 64
    x = np.random.default_rng(0).random((8, 64), "float32")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model(x))
    model.model.save(tmp_path / "plain.keras")
    plain = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(plain(x), model(x))


def test_memory_depends_on_the_micro_batch():
    """By the sizes of what the traced update computes."""

    def largest_tensor(micro_batch_size):
        model = LargeBatchModel(functional(), micro_batch_size)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        model.optimizer.build(model.trainable_variables)
        batch = (tf.TensorSpec([1024, 64]), tf.TensorSpec([1024], tf.int32))
        step = tf.function(lambda *data: model.train_step(data), autograph=False)
        graph = step.get_concrete_function(*batch).graph
        bodies = [
            f.graph for name, f in graph._functions.items() if "while_body" in name
        ]
        return max(
            output.shape.num_elements() or 0
            for body in bodies
            for op in body.get_operations()
            for output in op.outputs
            if output.shape.rank == 4
        )

    assert largest_tensor(64) == 64 * 6 * 6 * 4
    assert largest_tensor(256) == 256 * 6 * 6 * 4


@pytest.mark.parametrize(
    "size, message",
    [
        (48, "micro_batch_size=48 with ghosts of 32. Choose 32 or 64"),
        (20, "micro_batch_size=20 with ghosts of 32. Choose 32"),
        (0, "0"),
        (2.5, "2.5"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        LargeBatchModel(sequential(), size)
