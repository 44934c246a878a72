"""Micro-batches make the update of the whole batch in the memory of a part."""

import functools
import itertools
import math
import warnings

import keras
import numpy as np
import pytest
from backend import IS_JAX, IS_TENSORFLOW, JIT_COMPILE
from replicas import scope_of
from small_models import Batches, build, digits, functional, sequential

from gbn_keras import (
    GhostBatchNormalization,
    LargeBatchModel,
    ShardingInvariantDropout,
    to_ghost_batch_norm,
)

if IS_TENSORFLOW:
    import tensorflow as tf
elif IS_JAX:
    import jax
else:
    import torch


class Subclassed(keras.Model):
    """A model without a graph of its layers, which builds itself in training."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(12, use_bias=False)
        self.normalization = GhostBatchNormalization(32)
        self.classes = keras.layers.Dense(10)

    def call(self, inputs, training=None):
        """Logits."""
        hidden = self.normalization(self.dense(inputs), training=training)
        return self.classes(keras.ops.relu(hidden))


def trained(make_model, micro_batch_size, *, sizes=(256, 256), weights=None, **how):
    """Weights, optimizer state and logs after two epochs on digits.

    Batches have these sizes. If they differ, the traced update does not know them. XLA
    compiles ghosts for each size, so other tests should take the same sizes.
    """
    keras.utils.set_random_seed(0)
    model = make_model()
    wrapped = model
    if micro_batch_size:
        wrapped = LargeBatchModel(model, micro_batch_size)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    defaults = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # JAX is slower without.
        "jit_compile": IS_JAX,
    }
    wrapped.compile(
        keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        **{**defaults, **how},
    )
    x, y = digits(sum(sizes))
    if wrapped is model or make_model is not Subclassed:
        build(wrapped, x[:1], y[:1])
    if len(set(sizes)) == 1:
        data = {"x": x, "y": y, "batch_size": sizes[0], "sample_weight": weights}
    else:
        data = {"x": Batches(sizes, x, y)}
    history = wrapped.fit(**data, epochs=2, shuffle=False, verbose=0)
    values = [v.numpy() for v in model.variables]
    state = [v.numpy() for v in wrapped.optimizer.variables]
    return values, state, history.history


@functools.cache
def whole(make_model):
    """What Keras itself makes of whole batches."""
    return trained(make_model, None)


def assert_same(one, other):
    for values, expected in zip(one[:2], other[:2], strict=True):
        for value, reference in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)
    for name in other[2]:
        np.testing.assert_allclose(one[2][name], other[2][name], rtol=1e-5)


# Every model, and micro-batches of one ghost, of several and of the whole batch.
SIZES = [
    (sequential, 32),
    (sequential, 1024),
    (functional, 64),
    (Subclassed, 64),
]
EVERY_SIZE = itertools.product((sequential, functional, Subclassed), (32, 64, 1024))


@pytest.mark.parametrize(
    "make_model, micro_batch_size",
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in SIZES))
        for case in EVERY_SIZE
    ],
)
def test_micro_batches_give_the_update_of_the_whole_batch(make_model, micro_batch_size):
    assert_same(trained(make_model, micro_batch_size), whole(make_model))


def test_what_remains_joins_the_last_micro_batch():
    """Also if there is no other one, and if it is smaller than a ghost."""
    sizes = (228, 100, 24)
    how = {"sizes": sizes}
    assert_same(trained(sequential, 64, **how), trained(sequential, None, **how))


@pytest.mark.parametrize(
    "how",
    [
        *({"jit_compile": jit} for jit in JIT_COMPILE),
        {"run_eagerly": True, "jit_compile": False},
    ],
)
def test_compiled_or_eagerly_too(how):
    assert_same(trained(functional, 64, **how), whole(functional))


def test_sample_weights_count_over_the_whole_batch():
    weights = np.random.default_rng(0).random(512).astype("float32")
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

    with warnings.catch_warnings():
        # Some versions of Keras warn that there is no gradient.
        warnings.filterwarnings("ignore", "Gradients do not exist")
        assert_same(trained(model, 64), trained(model, None))


def test_a_mean_by_sample_weights_is_that_of_the_whole_batch():
    weights = np.random.default_rng(0).random(256).astype("float32")
    weights[:64] = 0  # A micro-batch that does not count.
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    # One batch an epoch: Keras would weigh batches by their sizes.
    how = {"weights": weights, "loss": loss, "sizes": (256,)}
    assert_same(trained(sequential, 64, **how), trained(sequential, None, **how))


def test_examples_that_fill_up_a_batch_do_not_count_in_the_epochs_loss():
    x, y = digits(96)
    weights = np.ones(128, "float32")
    weights[96:] = 0  # The second batch is half full.
    filled = [np.concatenate([values, values[:32]]) for values in (x, y)]
    inputs = keras.Input(x.shape[1:])
    model = LargeBatchModel(keras.Model(inputs, keras.layers.Dense(10)(inputs)), 32)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile("sgd", loss)
    found = model.evaluate(*filled, 64, sample_weight=weights, verbose=0)
    logits = keras.ops.convert_to_numpy(model(x))
    wanted = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits)
    assert found == pytest.approx(float(wanted), rel=1e-6)


def dropping():
    """A network whose masks depend on the place of an example, not of its part."""
    inner = sequential()
    layers = [*inner.layers[:-1], ShardingInvariantDropout(0.5, seed=1)]
    return keras.Sequential([keras.Input((64,)), *layers, inner.layers[-1]])


def test_micro_batches_do_not_change_what_is_dropped():
    assert_same(trained(dropping, 32), trained(dropping, None))


def test_float16_losses_are_scaled():
    model = LargeBatchModel(sequential(), 32)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=1024.0
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    before = [w.numpy() for w in model.trainable_weights]
    model.train_on_batch(*digits(64))
    steps = [
        np.abs(after.numpy() - earlier).max()
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
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    model.model.save(tmp_path / "plain.keras")
    plain = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(plain.predict(x, verbose=0), expected)


def computed_by_an_update(model, x, y):
    """Shapes of what an update computes, or on PyTorch, of what it keeps at once."""
    if IS_TENSORFLOW:
        specs = [tf.TensorSpec(array.shape, array.dtype) for array in (x, y)]
        step = tf.function(lambda *data: model.train_step(data), autograph=False)
        graph = step.get_concrete_function(*specs).graph
        bodies = [
            f.graph for name, f in graph._functions.items() if "while_body" in name
        ]
        operations = (op for body in bodies for op in body.get_operations())
        return [output.shape for op in operations for output in op.outputs]
    if IS_JAX:
        kinds = ("trainable", "non_trainable", "optimizer", "metrics")
        variables = [
            model.optimizer.variables
            if kind == "optimizer"
            else getattr(model, f"{kind}_variables")
            for kind in kinds
        ]
        state = tuple([v.value for v in kind] for kind in variables)
        return [*shapes_in(jax.make_jaxpr(model.train_step)(state, (x, y)).jaxpr)]
    shapes = []
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.append(tensor.shape) or tensor, lambda tensor: tensor
    )
    with keep:
        model.train_on_batch(x, y)
    return shapes


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)  # A closed one has it inside.
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_memory_depends_on_the_micro_batch():
    """By the sizes of what an update computes."""

    def largest_image(micro_batch_size):
        model = LargeBatchModel(functional(), micro_batch_size)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        x, y = digits(1024)
        build(model, x[:1], y[:1])
        shapes = computed_by_an_update(model, x, y)
        return max(math.prod(shape) for shape in shapes if len(shape) == 4)

    assert largest_image(64) == 64 * 6 * 6 * 4
    assert largest_image(256) == 256 * 6 * 6 * 4


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


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean_is_refused(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    with pytest.raises(ValueError, match=f"loss must be a mean.*{reduction}"):
        LargeBatchModel(sequential(), 64).compile("sgd", loss)


def test_an_optimizer_that_accumulates_itself_is_refused():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4"):
        LargeBatchModel(sequential(), 64).compile(optimizer, "mse")


def test_keras_own_random_layers_draw_for_each_micro_batch():
    class Draws(keras.layers.Layer):
        """Tells what a dropout kept."""

        def __init__(self):
            super().__init__()
            self.dropout = keras.layers.Dropout(0.5, seed=1)
            self.kept = self.add_weight(shape=(8,), trainable=False)

        def call(self, inputs):
            """The inputs; the sums of what was kept add up."""
            kept = self.dropout(inputs, training=True)
            self.kept.assign(100 * self.kept + keras.ops.sum(kept, axis=0) / 2)
            return inputs

    layer = Draws()
    model = LargeBatchModel(keras.Sequential([layer, keras.layers.Dense(1)]), 4)
    model.compile("sgd", "mse", jit_compile=IS_JAX)
    model.train_on_batch(np.ones((12, 8), "float32"), np.ones((12, 1)))
    kept = np.stack([layer.kept.numpy() // 100**i % 100 for i in range(3)])
    assert len({row.tobytes() for row in kept}) == 3  # Not one mask three times.
    assert layer.dropout.seed_generator.state.numpy().tolist() == [1, 1]


def replicated(make_model, replicas, micro_batch_size, **how):
    """A wrapped, compiled model on replicas, or on one device."""
    keras.utils.set_random_seed(0)
    with scope_of(replicas):
        model = LargeBatchModel(make_model(), micro_batch_size)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            **{"jit_compile": False, **how},
        )
    return model


# Keras's own functions fail with several updates in one call on replicas, its symbolic
# build on several machines, XLA on any replicas.
@pytest.mark.cluster
@pytest.mark.parametrize(
    "how",
    [
        {"steps_per_execution": 3},
        {"run_eagerly": True},
        # `test_sameness.py` compiles on replicas.
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"make_model": Subclassed}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_way_of_running_works_on_replicas(how):
    """And gives what one device does without it."""
    how = {"make_model": functional, **how}
    expected = fitted(1, how["make_model"])
    for one, other in zip(fitted(2, **how), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@functools.cache
def fitted(replicas, make_model, **how):
    """Logs, predictions and weights after eight updates."""
    x, y = digits(1024)
    model = replicated(make_model, replicas, 64, **how)
    history = model.fit(x, y, batch_size=256, epochs=2, shuffle=False, verbose=0)
    predictions = model.predict(x[:77], batch_size=32, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 8
    logs = history.history
    return logs["loss"], logs["accuracy"], predictions, *model.get_weights()


SOME = [
    (1001, 333, 2, False),
    # The last batch of 1 leaves a replica with nothing.
    (129, 128, 2, True),
]
EVERY = [
    (64, 64, 2, False),
    (140, 128, 4, False),
    *(
        (examples, batch_size, 4, jit)
        for examples, batch_size in ((1001, 333), (64, 64), (130, 128))
        for jit in (False, True)
    ),
]


@pytest.mark.cluster
@pytest.mark.parametrize(
    "examples, batch_size, replicas, jit_compile",
    [
        *SOME,
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in EVERY
            if case not in SOME
        ),
    ],
)
def test_evaluation_on_replicas_counts_every_example_once(
    examples, batch_size, replicas, jit_compile
):
    x, y = digits(examples)

    def scores(replicas, **how):
        model = replicated(functional, replicas, 32, **how)
        return model.evaluate(x, y, batch_size=batch_size, verbose=0)

    found = scores(replicas, jit_compile=jit_compile)
    np.testing.assert_allclose(found, scores(1), rtol=1e-5)


@pytest.mark.cluster
def test_a_frozen_ghost_layer_stays_as_it_is_on_replicas():
    def frozen():
        model = functional()
        for layer in model.layers:
            if isinstance(layer, GhostBatchNormalization):
                layer.trainable = False
                layer.moving_mean.assign(np.arange(4.0))
        return model

    x, y = digits(256)

    def fitted(replicas):
        model = replicated(frozen, replicas, 64)
        model.fit(x, y, batch_size=256, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for one, other in zip(fitted(2), fitted(1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.cluster
def test_plain_batch_normalization_does_not_diverge_on_replicas():
    def plain():
        layers = keras.layers
        return keras.Sequential(
            [keras.Input((64,)), layers.BatchNormalization(), layers.Dense(10)]
        )

    x, y = digits(256)
    model = replicated(plain, 2, 128)
    model.fit(x, y, batch_size=256, shuffle=False, verbose=0)
    moving = model.model.layers[0].moving_mean
    first, second = (copy.numpy() for copy in moving.value.values)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, 0.01 * x.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.cluster
def test_losses_are_scaled_on_replicas():
    """A step that overflows is skipped by all, and halves the scale."""
    x, y = digits(64)
    with scope_of(2):
        model = LargeBatchModel(sequential(), 32)
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1), initial_scale=2.0**10
        )
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(True),
            jit_compile=False,
        )
    before = [w.numpy() for w in model.trainable_weights]
    x[40] = np.inf  # On the second replica only.
    model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    assert float(optimizer.dynamic_scale.numpy()) == 2.0**9
    for weight, old in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    x[40] = 0
    model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    steps = [
        np.abs(weight.numpy() - old).max()
        for weight, old in zip(model.trainable_weights, before, strict=True)
    ]
    assert 0 < max(steps) < 1


def test_ghosts_that_came_after_the_model_are_not_cut_either():
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    inner = keras.Sequential([keras.Input((3,)), *layers])
    model = LargeBatchModel(inner, 8)
    model.compile("sgd", "mse")
    to_ghost_batch_norm(inner, 16)
    with pytest.raises(ValueError, match="micro_batch_size=8 with ghosts of 16"):
        model.fit(np.ones((32, 3)), np.ones((32, 1)), batch_size=32, verbose=0)


def siamese(ghost):
    """Two inputs through one ghost layer."""
    inputs = [keras.Input((1,)), keras.Input((1,))]
    layer = GhostBatchNormalization(2, momentum=0.5, name=ghost)
    return keras.Model(inputs, keras.layers.Add()([layer(x) for x in inputs])), layer


def test_a_ghost_layer_that_is_called_twice_is_warned_of():
    x = np.array([[0.0], [0], [1], [1]]), np.array([[4.0], [4], [8], [8]])
    means, weights = [], []
    for size in (4, 2):
        inner, layer = siamese("shared")
        model = LargeBatchModel(inner, size)
        model.compile("sgd", "mse", run_eagerly=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.train_on_batch(x, np.ones((4, 1)))
        told = [str(one.message) for one in caught if "shared: called" in str(one)]
        assert bool(told) == (size < 4)
        means.append(float(layer.moving_mean[0]))
        weights.append([w.numpy() for w in inner.trainable_weights])
    assert means == [5.125, 4.75]
    np.testing.assert_allclose(*weights, rtol=1e-6)
