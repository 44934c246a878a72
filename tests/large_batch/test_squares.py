"""With the micro-batches' squares, Adam's second moment is that of small batches."""

import functools

import keras
import numpy as np
import pytest
from backend import IS_JAX, IS_TENSORFLOW, JIT_COMPILE, NAME, tensorflow_only
from keras import ops
from replicas import scope_of
from small_models import digits, sequential

from gbn_keras import BatchSizeInvariantAdam, LargeBatchModel

if IS_TENSORFLOW:
    import tensorflow as tf

    from gbn_keras.large_batch.backends import tensorflow_memory as memory

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ADAMS = [
    {},
    {"global_clipnorm": 0.5},
    {"clipnorm": 0.5},
    {"clipvalue": 0.1},
    {"amsgrad": True, "weight_decay": 0.1},
    {"loss_scale_factor": 8.0, "use_ema": True, "ema_overwrite_frequency": 2},
]


@pytest.mark.parametrize("how", ADAMS, ids=str)
def test_without_a_second_size_it_is_adam_bit_for_bit(how):
    """Also if only the graph's run shows that there is none."""
    ways = {
        "Keras": (keras.optimizers.Adam, False),
        "plain": (BatchSizeInvariantAdam, False),
        "one size": (functools.partial(BatchSizeInvariantAdam, 0.01), True),
    }
    found = {}
    for way, (kind, has_squares) in ways.items():
        random = np.random.default_rng(0)
        optimizer = kind(learning_rate=0.01, **how) if not has_squares else kind(**how)
        variables = [keras.Variable(random.normal(size=s)) for s in ((3, 2), (2,), ())]
        for _ in range(3):
            gradients = [random.normal(size=v.shape) for v in variables]
            gradients = [ops.convert_to_tensor(g, "float32") for g in gradients]
            if has_squares:
                squares = [ops.square(g) * 1.000001 for g in gradients]
                size = ops.convert_to_tensor(1 / 48)
                gradients = optimizer.with_squares(gradients, squares, size, size)
            optimizer.apply(gradients, variables)
        found[way] = [v.numpy() for v in (*variables, *optimizer.variables)]
    for way in ("plain", "one size"):
        for value, expected in zip(found[way], found["Keras"], strict=True):
            # On PyTorch, Keras's Adam computes in another order than ours.
            tolerance = 1e-6 if NAME == "torch" else 0
            np.testing.assert_allclose(value, expected, tolerance, tolerance)


def linear():
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])


def trained(optimizer, micro_batch_size, batch=256, make=linear, replicas=1, **how):
    """Weights and optimizer state after an epoch on digits."""
    keras.utils.set_random_seed(0)
    with scope_of(replicas):
        model = LargeBatchModel(make(), micro_batch_size)
        how = {"jit_compile": IS_JAX, **how}
        model.compile(optimizer() if callable(optimizer) else optimizer, **how)
    x, y = digits(how.pop("examples", 512))
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
    return [v.numpy() for v in (*model.model.variables, *model.optimizer.variables)]


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    for value, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol)


def by_hand(sizes, small=None, clipnorm=None, updates=2):
    """The weights after updates of a linear network, in float64.

    Args:
        sizes: Numbers of examples of the micro-batches of each update.
        small: The batch size of the second moment, or `None`.
        clipnorm: Largest global norm of the gradient.
        updates: The number of updates.
    """
    keras.utils.set_random_seed(0)
    weights = [v.numpy().astype("float64") for v in linear().trainable_variables]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    batch = sum(sizes)
    x, y = digits(batch * updates)
    for update in range(updates):
        start, parts = update * batch, []
        for size in sizes:
            here = slice(start, start + size)
            logits = x[here] @ weights[0] + weights[1]
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            error = (p - np.eye(10)[y[here]]) / size
            parts.append([x[here].T @ error, error.sum(0)])
            start += size
        share = np.array(sizes) / batch
        by_weight = [np.stack(x, -1) for x in zip(*parts, strict=True)]
        mean = [x @ share for x in by_weight]
        squares = [x**2 @ share for x in by_weight]
        if small is not None:
            factor = (1 / small - 1 / batch) / (len(sizes) / batch - 1 / batch)
            squares = [
                g**2 + factor * (s - g**2) for g, s in zip(mean, squares, strict=True)
            ]
        norm = np.sqrt(sum((g**2).sum() for g in mean))
        clip = min(1, (clipnorm or np.inf) / norm)
        for i, (gradient, square) in enumerate(zip(mean, squares, strict=True)):
            first[i] = 0.9 * first[i] + 0.1 * clip * gradient
            second[i] = 0.999 * second[i] + 0.001 * clip**2 * square
            m = first[i] / (1 - 0.9 ** (update + 1))
            v = second[i] / (1 - 0.999 ** (update + 1))
            weights[i] = weights[i] - 0.01 * m / (np.sqrt(v) + 1e-12)
    return weights


@pytest.mark.parametrize(
    "batch, micro_batch_size, sizes, how",
    [
        (256, 64, [64] * 4, {}),
        (256, 128, [128] * 2, {"small_batch_size": 16, "global_clipnorm": 0.1}),
        # The remainder joins the last one.
        (250, 64, [64, 64, 122], {"small_batch_size": 32}),
    ],
)
def test_it_is_adam_with_the_squares_of_small_batches(
    batch, micro_batch_size, sizes, how
):
    def adam():
        return BatchSizeInvariantAdam(0.01, epsilon=1e-12, **how)

    data = {"loss": CROSS_ENTROPY}
    keras.utils.set_random_seed(0)
    model = LargeBatchModel(linear(), micro_batch_size)
    model.compile(adam(), jit_compile=IS_JAX, **data)
    x, y = digits(2 * batch)
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
    expected = by_hand(sizes, how.get("small_batch_size"), how.get("global_clipnorm"))
    assert_close([v.numpy() for v in model.model.variables], expected, 1e-4, 2e-5)


@functools.cache
def in_halves():
    """What each way of running must give: two micro-batches, no loss scale."""
    return trained(_adam, 128, loss=CROSS_ENTROPY)


def _adam():
    return BatchSizeInvariantAdam(0.01, small_batch_size=32, global_clipnorm=1.0)


def scaled_adam():
    return keras.optimizers.LossScaleOptimizer(_adam(), initial_scale=1024.0)


@pytest.mark.parametrize(
    "how",
    [
        {"jit_compile": JIT_COMPILE[-1]},
        {"run_eagerly": True, "jit_compile": False},
    ],
)
def test_compiled_or_eagerly_too(how):
    found = trained(_adam, 128, loss=CROSS_ENTROPY, **how)
    assert_close(found, in_halves(), atol=1e-5)


def test_the_scale_of_the_loss_does_not_matter():
    found = trained(scaled_adam, 128, loss=CROSS_ENTROPY)
    assert_close(found[:2], in_halves()[:2])


def test_float16_rounds_it_only():
    def half():
        layer = keras.layers.Dense(10, dtype="mixed_float16")
        return keras.Sequential([keras.Input((64,)), layer])

    found = trained(scaled_adam, 128, make=half, loss=CROSS_ENTROPY)
    for value, expected in zip(found[:2], in_halves()[:2], strict=True):
        assert np.abs(value - expected).mean() < 1e-4  # Of two updates of 0.01.


@pytest.mark.cluster
@pytest.mark.parametrize("optimizer", [_adam, scaled_adam])
def test_two_replicas_are_two_micro_batches(optimizer):
    found = trained(optimizer, 128, replicas=2, loss=CROSS_ENTROPY)
    assert_close(found[:2], in_halves()[:2])


def test_losses_that_count_differently_have_the_same_squares():
    def two_outputs():
        inputs = keras.Input((64,))
        layers = [keras.layers.Dense(10, name=name) for name in ("one", "two")]
        return keras.Model(inputs, [layer(inputs) for layer in layers])

    def weights_of(reduction):
        keras.utils.set_random_seed(0)
        model = LargeBatchModel(two_outputs(), 64)
        two = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
        model.compile(_adam(), [CROSS_ENTROPY, two], jit_compile=IS_JAX)
        x, y = digits(512)
        ones = np.ones(512, "float32")
        data = {"sample_weight": [ones, ones], "batch_size": 256, "shuffle": False}
        model.fit(x, [y, y], verbose=0, **data)
        return [v.numpy() for v in model.model.variables]

    assert_close(
        weights_of("mean_with_sample_weight"), weights_of("sum_over_batch_size")
    )


def test_the_estimate_does_not_depend_on_the_micro_batches():
    """One entry is one trial, with the gradient 0.1 and the variance 1 per example."""
    batch, small = 96, 8
    examples = 0.1 + np.random.default_rng(0).normal(size=(batch, 100_000))
    gradient = examples.mean(0).astype("float32")
    optimizer = BatchSizeInvariantAdam(small_batch_size=small)
    for size in (4, 8, 24, 48):
        parts = examples.reshape(batch // size, size, -1).mean(1)
        squares = ops.convert_to_tensor((parts**2).mean(0), "float32")
        inverses = map(ops.convert_to_tensor, (1 / size, 1 / batch))
        (pair,) = optimizer.with_squares(
            [ops.convert_to_tensor(gradient)], [squares], *inverses
        )
        same, root = map(ops.convert_to_numpy, ops.unstack(pair, 2))
        np.testing.assert_array_equal(same, gradient)
        assert np.square(root).mean() == pytest.approx(0.01 + 1 / small, rel=0.02)
        assert (root >= np.abs(gradient) * 0.999999).all()


def test_rows_of_an_embedding_are_gradients_too():
    def model():
        layers = keras.layers
        return keras.Sequential(
            [layers.Embedding(17, 3), layers.Flatten(), layers.Dense(10)]
        )

    assert len(trained(_adam, 128, make=model, loss=CROSS_ENTROPY)) > 3
    x, y = digits(64)
    alone = model()
    alone.compile(BatchSizeInvariantAdam(), CROSS_ENTROPY, jit_compile=IS_JAX)
    alone.fit(x * 16, y, verbose=0)


def test_it_is_saved_and_goes_on_as_it_was(tmp_path):
    model = LargeBatchModel(linear(), 128)
    model.compile(_adam(), CROSS_ENTROPY, jit_compile=IS_JAX)
    x, y = digits(512)
    model.fit(x, y, batch_size=256, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is BatchSizeInvariantAdam
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, again):
        one.fit(x, y, batch_size=256, shuffle=False, verbose=0)
    for one, other in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_size_that_one_micro_batch_does_not_tell_is_refused():
    with pytest.raises(ValueError, match="small_batch_size=32 needs .*_size=256, and"):
        # Batches of a static size.
        model = LargeBatchModel(linear(), 256)
        model.compile(_adam(), CROSS_ENTROPY, jit_compile=IS_JAX)
        model.train_on_batch(*digits(256))
    if IS_TENSORFLOW:  # Others know all sizes when they trace.
        error = tf.errors.InvalidArgumentError
        with pytest.raises(error, match="at least two micro-batc"):
            trained(_adam, 256, batch=300, loss=CROSS_ENTROPY)
    for size in (0, 2.5, "32"):
        with pytest.raises(ValueError, match="small_batch_size must be an integer of"):
            BatchSizeInvariantAdam(small_batch_size=size)


@tensorflow_only
def test_memory_has_room_for_the_squares():
    sizes = []
    for optimizer in (keras.optimizers.Adam(), BatchSizeInvariantAdam()):
        model = LargeBatchModel(sequential(), 32)
        model.compile(optimizer, CROSS_ENTROPY, jit_compile=IS_JAX)
        model.model(keras.Input((64,)))
        optimizer.build(model.trainable_variables)
        sizes.append(memory.peak_bytes(model, 64))
    weights = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert sizes[1] - sizes[0] == 4 * weights
