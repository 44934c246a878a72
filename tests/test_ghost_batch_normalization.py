"""The layer is plain BatchNormalization on each slice of the batch (invariant 1)."""

import copy
from unittest import mock

import ghosts
import keras
import numpy as np
import pytest
from backend import JIT_COMPILE, NAME, WAYS, tensorflow_only, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from keras.src.testing import TestCase

from gbn_keras import GhostBatchNormalization, ghost_normalize


def build_pair(shape, virtual_batch_size, **arguments):
    """A ghost layer and a plain one with the same random variables."""
    pair = (
        GhostBatchNormalization(virtual_batch_size, **arguments),
        keras.layers.BatchNormalization(**arguments),
    )
    random = np.random.default_rng(7)
    for layer in pair:
        layer.build(shape)
    weights = [random.uniform(0.5, 1.5, w.shape) for w in pair[0].weights]
    for layer in pair:
        layer.set_weights(weights)
    return pair


def predict(model, inputs, **how):
    return ops.convert_to_numpy(model(inputs, **how))


def train_on(layer, inputs, upstream, masks):
    """Trains on the batches in order; outputs and summed gradients."""
    outputs, by_inputs, by_weights = [], [], 0
    for x, dy, mask in zip(inputs, upstream, masks, strict=True):
        moving = [variable.value for variable in layer.non_trainable_variables]

        def loss_and_results(x, *weights, dy=dy, mask=mask, moving=moving):
            y, moved = layer.stateless_call(
                list(weights), moving, x, training=True, mask=mask
            )
            return ops.sum(y * ops.array(dy)), (y, moved)

        weights = [variable.value for variable in layer.trainable_variables]
        (y, moved), (gradient, *rest) = with_gradients(loss_and_results, [x, *weights])
        is_ghost = isinstance(layer, GhostBatchNormalization)
        if is_ghost or mask is None or mask.any():  # Else the parent would step to 0.
            variables = layer.non_trainable_variables
            for variable, value in zip(variables, moved, strict=True):
                variable.assign(value)
        outputs.append(y)
        by_inputs.append(gradient)
        by_weights = by_weights + np.array(rest)
    return np.concatenate(outputs), np.concatenate(by_inputs), by_weights


@st.composite
def cases(draw, kernel):
    rank = draw(st.integers(2, 5))
    shape = [
        draw(st.integers(1, 13)),
        *(draw(st.integers(1, 4)) for _ in range(1, rank)),
    ]
    # The fused kernel takes channels last and no mask; the parent, whose masks lack the
    # last axis, takes none for other channels, nor for a single one.
    axis = rank - 1 if kernel == "fused" else draw(st.integers(1, rank - 1))
    may_mask = kernel != "fused" and axis == rank - 1 and shape[-1] > 1
    return {
        "shape": tuple(shape),
        "masked": may_mask and draw(st.booleans()),
        "axis": axis - draw(st.sampled_from([0, rank])),
        "virtual_batch_size": draw(st.integers(1, 14)),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.9, 0.99])),
        "center": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


KERNELS = pytest.mark.parametrize(
    "kernel, dtype, tolerance",
    [
        # In float64, which Keras has on TensorFlow, only a wrong formula can differ.
        pytest.param("closed_form", "float64", 1e-8, marks=tensorflow_only),
        pytest.param("two_stages", "float64", 1e-8, marks=tensorflow_only),
        ("closed_form", "float32", 1e-3),
        ("two_stages", "float32", 1e-3),
        pytest.param("compiled", "float32", 1e-3, marks=tensorflow_only),
        pytest.param("fused", "float32", 1e-3, marks=tensorflow_only),
    ],
)


@KERNELS
@given(data=st.data())
# JAX compiles every operation for every shape, and so does a kernel of TensorFlow's.
@settings(max_examples=8 if NAME == "jax" else 15, deadline=None, derandomize=True)
def test_a_batch_of_ghosts_is_plain_batch_normalization_on_each_slice(
    kernel, dtype, tolerance, data
):
    """Invariant 1: outputs, all gradients, running statistics."""
    check_slices(kernel, dtype, tolerance, data)


@pytest.mark.slow
@KERNELS
@given(data=st.data())
@settings(max_examples=8 if NAME == "jax" else 40, deadline=None, derandomize=True)
def test_any_batch_of_ghosts_is_plain_batch_normalization_on_each_slice(
    kernel, dtype, tolerance, data
):
    check_slices(kernel, dtype, tolerance, data)


def check_slices(kernel, dtype, tolerance, data):
    """A layer with that kernel, against the plain one, on data that are drawn."""
    case = data.draw(cases(kernel))
    random = np.random.default_rng(case["seed"])
    shape, size = case["shape"], case["virtual_batch_size"]
    inputs = random.normal(3, 2, shape).astype(dtype)
    upstream = random.normal(size=shape).astype(dtype)
    mask, mask_slices = None, [None] * max(1, shape[0] // size)
    if case["masked"]:
        mask = random.random(shape[:-1]) < 0.7
        mask_slices = ghosts.split(mask, size)
        # The gradient in closed form leaves out the epsilon (1e-7) by which
        # BatchNormalization divides where there is a mask. In a ghost left with one
        # value, the rounding of its mean counts a thousandfold (1 / epsilon).
        tolerance = max(10 * tolerance, 1e-6)
    arguments = {k: case[k] for k in ("axis", "momentum", "center", "scale")}
    ghost, plain = build_pair(shape, size, dtype=dtype, **arguments)

    with mock.patch.object(ghost_normalize, "_fastest_kernel", lambda *_: kernel):
        whole = train_on(ghost, [inputs], [upstream], [mask])
    sliced = train_on(
        plain, ghosts.split(inputs, size), ghosts.split(upstream, size), mask_slices
    )

    for result, reference in zip(whole, sliced, strict=True):
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=tolerance)
    for result, reference in zip(ghost.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=1e-8)


@pytest.mark.parametrize("virtual_batch_size", [None, 1000])
@pytest.mark.parametrize("training", [False, True])
def test_without_ghosts_or_with_one_the_layer_is_its_parent(
    virtual_batch_size, training
):
    inputs = np.random.default_rng(0).normal(3, 2, (24, 5, 4)).astype("float32")
    ghost, plain = build_pair(inputs.shape, virtual_batch_size)
    outputs, expected = (
        predict(layer, inputs, training=training) for layer in (ghost, plain)
    )
    exact = virtual_batch_size is None or not training
    tolerance = 0 if exact else 1e-5
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)
    for result, reference in zip(ghost.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(result, reference, rtol=tolerance)


# None takes Keras's own path, 1000 makes one ghost of the batch.
SIZES = (None, 1000, 2)
LAYOUTS = (((5, 3), -1), ((5, 3, 4, 2), -1), ((5, 3, 4, 2), 1))


class KerasStandards(TestCase):
    """Keras's own checks of a layer: configuration, shapes, dtypes, saving, fit."""

    def test_run_layer_test(self):
        for virtual_batch_size, (shape, axis) in zip(SIZES, LAYOUTS, strict=True):
            self.check(virtual_batch_size, shape, axis)

    @pytest.mark.slow
    def test_run_layer_test_for_every_size_and_layout(self):
        for virtual_batch_size in SIZES:
            for shape, axis in LAYOUTS:
                self.check(virtual_batch_size, shape, axis)

    def check(self, virtual_batch_size, shape, axis):
        """Keras's checks of one layer."""
        with self.subTest(size=virtual_batch_size, shape=shape, axis=axis):
            self.run_layer_test(
                GhostBatchNormalization,
                {"virtual_batch_size": virtual_batch_size, "axis": axis},
                call_kwargs={"training": True},
                input_shape=shape,
                expected_output_shape=shape,
                expected_num_trainable_weights=2,
                expected_num_non_trainable_weights=2,
                expected_num_losses=0,
                supports_masking=True,
            )


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_is_not_trainable_uses_its_running_statistics(training):
    inputs = np.random.default_rng(0).normal(3, 2, (24, 4)).astype("float32")
    ghost, plain = build_pair(inputs.shape, 4)
    ghost.trainable = plain.trainable = False
    before = ghost.get_weights()
    np.testing.assert_array_equal(
        predict(ghost, inputs, training=training),
        predict(plain, inputs, training=training),
    )
    for old, new in zip(before, ghost.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_inference_takes_any_batch_size():
    ghost, plain = build_pair((None, 4), 8)
    for batch in (1, 7, 8, 30):
        inputs = np.random.default_rng(batch).normal(size=(batch, 4)).astype("float32")
        np.testing.assert_array_equal(predict(ghost, inputs), predict(plain, inputs))


@pytest.mark.parametrize(
    "dtype, outputs, variables",
    [
        ("float16", "float16", "float16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
        pytest.param("float64", "float64", "float64", marks=tensorflow_only),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
    ],
)
def test_the_layer_keeps_to_its_dtype_policy(dtype, outputs, variables):
    # The mean's square overflows float16.
    random = np.random.default_rng(0)
    inputs = ops.cast(random.normal(300, 50, (64, 3)).astype("float32"), outputs)
    layer = GhostBatchNormalization(16, dtype=dtype)
    result = layer(inputs, training=True)
    assert keras.backend.standardize_dtype(result.dtype) == outputs
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {
        variables
    }
    inputs, result = (
        ops.convert_to_numpy(ops.cast(x, "float32")) for x in (inputs, result)
    )
    expected, _, _ = ghosts.normalize(inputs, 1, 0, 16, -1, 1e-3)
    tolerance = 0.02 if "16" in outputs else 1e-4
    np.testing.assert_allclose(result, expected, atol=tolerance)


@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_a_model_trains_the_same_in_a_graph_and_compiled(jit_compile):
    random = np.random.default_rng(0)
    images, targets = random.normal(size=(22, 6, 6, 2)), random.normal(size=(22, 1))

    def weights(**how):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                keras.layers.Conv2D(3, 3, use_bias=False),
                GhostBatchNormalization(4),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse", **how)
        # Batches of 10, 10 and 2: a remainder and less than a ghost among them.
        model.fit(images, targets, batch_size=10, shuffle=False, verbose=0)
        return model.get_weights()

    eager = weights(run_eagerly=True)
    for result, reference in zip(weights(jit_compile=jit_compile), eager, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-6)


def test_a_mask_reaches_the_layer_through_a_model():
    sequences = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    sequences[:, 3:] = 0
    ghost = GhostBatchNormalization(4, momentum=0.0)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.Masking(), ghost])
    model(sequences, training=True)
    # With momentum 0 the running statistics are those of the last ghost.
    np.testing.assert_allclose(
        ghost.moving_mean, sequences[4:, :3].mean((0, 1)), rtol=1e-4, atol=1e-6
    )


def moved(layer, inputs, way, mask=None):
    """Outputs, gradients by the inputs and the weights, and running statistics."""
    before = [ops.convert_to_numpy(v) for v in layer.non_trainable_variables]
    how = {"training": True, "mask": None if mask is None else ops.array(mask)}

    def loss_and_results(x, *weights):
        moving = [ops.array(value) for value in before]
        y, after = layer.stateless_call(list(weights), moving, x, **how)
        return ops.sum(y**2), (y, after)

    weights = [variable.value for variable in layer.trainable_variables]
    (y, after), gradients = with_gradients(loss_and_results, [inputs, *weights], way)
    return y, gradients, after


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape, axis", [((6,), -1), ((2, 3, 4), -1), ((4, 5), 1)])
def test_an_empty_batch_moves_nothing_and_comes_out_empty(way, shape, axis):
    layer, _ = build_pair((8, *shape), 4, axis=axis)
    inputs = np.zeros((0, *shape), "float32")
    outputs, gradients, after = moved(layer, inputs, way)
    assert outputs.shape == gradients[0].shape == inputs.shape
    for value, weight in zip(after, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(weight))
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, np.zeros(layer.gamma.shape))


@pytest.mark.parametrize("way", WAYS)
def test_examples_without_values_move_nothing(way):
    """Sequences of no steps, images of no rows."""
    layer, _ = build_pair((8, 5, 3), 4)
    inputs = np.zeros((9, 0, 3), "float32")
    outputs, _, after = moved(layer, inputs, way)
    assert outputs.shape == inputs.shape
    for value, weight in zip(after, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(weight))


@tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_graph_takes_sequences_of_any_length_and_of_none(jit_compile):
    import tensorflow as tf

    layer, other = (GhostBatchNormalization(4, momentum=0.5) for _ in range(2))
    for x in (layer, other):
        x.build((None, None, 3))

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, 3])], jit_compile=jit_compile
    )
    def train(x):
        return layer(x, training=True)

    for shape in ((9, 0, 3), (9, 2, 3), (0, 0, 3), (4, 5, 3), (0, 5, 3)):
        inputs = np.random.default_rng(0).normal(2, 3, shape).astype("float32")
        assert train(inputs).shape == shape
        if inputs.size:
            other(inputs, training=True)
        for one, two in zip(layer.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("empty", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_ghost_that_is_masked_altogether_takes_no_part(way, empty):
    layer, _ = build_pair((12, 5, 3), 4, momentum=0.5)
    random = np.random.default_rng(0)
    inputs = random.normal(3, 2, (12, 5, 3)).astype("float32")
    mask = random.random((12, 5)) < 0.7
    expected = layer.get_weights()[2:]
    for ghost in range(3):
        rows = slice(4 * ghost, 4 * ghost + 4)
        if ghost in empty:
            mask[rows] = False
            continue
        valid = inputs[rows][mask[rows]]
        for value, statistic in zip(
            expected, (valid.mean(0), valid.var(0)), strict=True
        ):
            value[:] = 0.5 * value + 0.5 * statistic
    outputs, gradients, after = moved(layer, inputs, way, mask)
    for result in (outputs, *gradients):
        assert np.isfinite(result).all()
    for value, reference in zip(after, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-5)


def small_model(normalization):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, use_bias=False),
            normalization,
            keras.layers.Dense(2),
        ]
    )


def test_saved_models_come_back(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model = small_model(GhostBatchNormalization(4, axis=-1, momentum=0.7))
    model(inputs, training=True)
    expected = predict(model, inputs)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, inputs), expected)
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(
        predict(loaded, inputs, training=True), predict(model, inputs, training=True)
    )


@tensorflow_only
def test_an_exported_model_serves_the_same(tmp_path):
    import tensorflow as tf

    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model = small_model(GhostBatchNormalization(4))
    model(inputs, training=True)
    model.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    np.testing.assert_allclose(
        served.serve(inputs), model(inputs), rtol=1e-5, atol=1e-6
    )


def test_a_cloned_layer_is_a_ghost_layer():
    model = small_model(GhostBatchNormalization(4, momentum=0.7))
    for clone in (keras.models.clone_model(model), copy.deepcopy(model)):
        assert type(clone.layers[1]) is GhostBatchNormalization
        assert clone.layers[1].get_config() == model.layers[1].get_config()


def test_weights_are_interchangeable_with_plain_batch_normalization(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    ghost = small_model(GhostBatchNormalization(4))
    plain = small_model(keras.layers.BatchNormalization())
    ghost(inputs, training=True)
    for source, target in ((ghost, plain), (plain, ghost)):
        source.save_weights(tmp_path / "model.weights.h5")
        expected = predict(source, inputs)
        target.set_weights([np.zeros_like(w) for w in target.get_weights()])
        target.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_array_equal(predict(target, inputs), expected)


def sparse(values):
    if NAME == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(values)
    if NAME == "jax":
        from jax.experimental.sparse import BCOO

        return BCOO.fromdense(values)
    import torch

    return torch.tensor(values).to_sparse()


@pytest.mark.parametrize("size", [4, None])
@pytest.mark.parametrize("training", [False, True])
def test_sparse_inputs_are_refused_in_one_line(size, training):
    inputs = sparse(np.eye(8, 6, dtype="float32"))
    with pytest.raises(ValueError, match=r"inputs must be dense.*sparse .*\(8, 6\)"):
        GhostBatchNormalization(size)(inputs, training=training)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8"])
def test_a_virtual_batch_size_that_is_no_positive_integer_is_refused(size):
    with pytest.raises(ValueError, match=f"virtual_batch_size={size!r}"):
        GhostBatchNormalization(size)


@pytest.mark.parametrize("shape, axis", [((8, 4), 0), ((8, 4, 4), -3)])
def test_the_batch_axis_is_refused(shape, axis):
    with pytest.raises(ValueError, match=f"axis={axis}"):
        GhostBatchNormalization(4, axis=axis)(np.ones(shape, "float32"))


@pytest.mark.parametrize(
    "argument", [pytest.param("synchronized", marks=tensorflow_only), "renorm"]
)
def test_statistics_of_more_than_a_ghost_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument}=True, virtual_batch_size=16"):
        GhostBatchNormalization(16, **{argument: True})
    assert getattr(GhostBatchNormalization(None, **{argument: True}), argument)
