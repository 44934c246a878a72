"""The layer is plain BatchNormalization on each slice of the batch (invariant 1)."""

import contextlib
from unittest import mock

import ghosts
import keras
import numpy as np
import pytest
from backend import (
    IS_JAX,
    IS_TENSORFLOW,
    JIT_COMPILE,
    SLOW_ON_JAX,
    WAYS,
    tensorflow_only,
)
from ghost_layers import build_pair, predict, update_function
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from keras.src.testing import TestCase

from gbn_keras import GhostBatchNormalization, ghost_normalize


def train_on(layer, inputs, upstream, masks):
    """Trains on the batches in order; outputs and summed gradients."""
    outputs, by_inputs, by_weights = [], [], 0
    update = update_function(layer, inputs[0], upstream[0], masks[0])
    for x, dy, mask in zip(inputs, upstream, masks, strict=True):
        y, (gradient, *rest), moved = update(x, dy, *([] if mask is None else [mask]))
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


def case(shape, virtual_batch_size, **others):
    """A case as `cases` draws them."""
    usual = {"masked": False, "axis": -1, "momentum": 0.5, "center": True}
    usual |= {"scale": True, "seed": 0}
    return {"shape": shape, "virtual_batch_size": virtual_batch_size, **usual, **others}


CASES = (
    case((13, 2, 3), 4),  # With a remainder.
    case((13, 3, 4), 4, axis=1, center=False),
    case((13, 5, 3), 4, masked=True),
    case((9, 2, 3), 5, axis=-2, scale=False),  # One ghost.
    case((6, 3), 1, momentum=0.9),  # Ghosts of one example.
)
IN_FLOAT32 = ("float32", 1e-3)
KERNELS = [
    # In float64, which Keras has on TensorFlow, only a wrong formula can differ.
    pytest.param("closed_form", "float64", 1e-8, marks=tensorflow_only),
    pytest.param("two_stages", "float64", 1e-8, marks=tensorflow_only),
    pytest.param("closed_form", *IN_FLOAT32, marks=[pytest.mark.slow] * IS_TENSORFLOW),
    pytest.param("two_stages", *IN_FLOAT32, marks=[pytest.mark.slow] * IS_TENSORFLOW),
]
# They take long to compile for a shape.
KERNELS_OF_TENSORFLOW = [
    pytest.param("compiled", *IN_FLOAT32, marks=tensorflow_only),
    pytest.param("fused", *IN_FLOAT32, marks=tensorflow_only),
]


@pytest.mark.parametrize("kernel, dtype, tolerance", KERNELS + KERNELS_OF_TENSORFLOW)
def test_a_batch_of_ghosts_is_plain_batch_normalization_on_each_slice(
    kernel, dtype, tolerance
):
    """Invariant 1: outputs, all gradients, running statistics."""
    for case in CASES:
        if kernel == "fused" and (case["masked"] or case["axis"] != -1):
            continue
        check_slices(kernel, dtype, tolerance, case)


@pytest.mark.parametrize(
    "kernel, dtype, tolerance",
    [pytest.param(*k.values, marks=[*k.marks, *SLOW_ON_JAX]) for k in KERNELS],
)
@given(data=st.data())
@settings(max_examples=3 if IS_JAX else 10, deadline=None, derandomize=True)
def test_any_batch_of_ghosts_is_plain_batch_normalization_on_each_slice(
    kernel, dtype, tolerance, data
):
    check_slices(kernel, dtype, tolerance, data.draw(cases(kernel)))


@pytest.mark.slow
@pytest.mark.parametrize("kernel, dtype, tolerance", KERNELS + KERNELS_OF_TENSORFLOW)
@given(data=st.data())
@settings(max_examples=8 if IS_JAX else 40, deadline=None, derandomize=True)
def test_every_kernel_normalizes_any_batch_of_ghosts_slice_by_slice(
    kernel, dtype, tolerance, data
):
    check_slices(kernel, dtype, tolerance, data.draw(cases(kernel)))


@contextlib.contextmanager
def almost_no_epsilon():
    """What both layers add to the number of values that a mask leaves.

    The gradient in closed form leaves it out. Where one value is left, 1e-7 is 0.4 %.
    """
    before = keras.config.epsilon()
    keras.config.set_epsilon(1e-30)
    try:
        yield
    finally:
        keras.config.set_epsilon(before)


def check_slices(kernel, dtype, tolerance, case):
    """A layer with that kernel, against the plain one."""
    random = np.random.default_rng(case["seed"])
    shape, size = case["shape"], case["virtual_batch_size"]
    inputs = random.normal(3, 2, shape).astype(dtype)
    upstream = random.normal(size=shape).astype(dtype)
    mask, mask_slices = None, [None] * max(1, shape[0] // size)
    if case["masked"]:
        mask = random.random(shape[:-1]) < 0.7
        mask_slices = ghosts.split(mask, size)
    arguments = {k: case[k] for k in ("axis", "momentum", "center", "scale")}
    ghost, plain = build_pair(shape, size, dtype=dtype, **arguments)

    with (
        almost_no_epsilon(),
        mock.patch.object(ghost_normalize, "_fastest_kernel", lambda *_: kernel),
    ):
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
        self.check(2, (5, 3, 4, 2), 1)

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


def trained_weights(**how):
    """Those of a model that was compiled so."""
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(22, 2)), random.normal(size=(22, 1))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, use_bias=False),
            GhostBatchNormalization(4),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", **how)
    # Batches of 10, 10 and 2: a remainder and less than a ghost among them.
    model.fit(inputs, targets, batch_size=10, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.fixture(scope="module")
def trained_eagerly():
    kernel = "closed_form"  # It compiles nothing.
    with mock.patch.object(ghost_normalize, "_fastest_kernel", lambda *_: kernel):
        return trained_weights(run_eagerly=True)


# What JAX does not compile it runs eagerly: it compiles each operation.
@pytest.mark.parametrize(
    "jit_compile",
    [pytest.param(x, marks=SLOW_ON_JAX) for x in JIT_COMPILE if x or not IS_JAX],
)
def test_a_model_trains_the_same_in_a_graph_and_compiled(trained_eagerly, jit_compile):
    for result, reference in zip(
        trained_weights(jit_compile=jit_compile), trained_eagerly, strict=True
    ):
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((6,), -1),
        pytest.param((2, 3, 4), -1, marks=pytest.mark.slow),
        ((4, 5), 1),
    ],
)
def test_an_empty_batch_moves_nothing_and_comes_out_empty(way, shape, axis):
    layer, _ = build_pair((8, *shape), 4, axis=axis)
    inputs = np.zeros((0, *shape), "float32")
    outputs, gradients, after = update_function(layer, inputs, way=way)(inputs)
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
    outputs, _, after = update_function(layer, inputs, way=way)(inputs)
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
def test_a_ghost_that_is_masked_altogether_takes_no_part(way):
    layer, _ = build_pair((12, 5, 3), 4, momentum=0.5)
    random = np.random.default_rng(0)
    inputs = random.normal(3, 2, (12, 5, 3)).astype("float32")
    some = random.random((12, 5)) < 0.7
    update = update_function(layer, inputs, mask=some, way=way)
    for empty in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        mask, expected = some.copy(), layer.get_weights()[2:]
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
        outputs, gradients, after = update(inputs, mask)
        for result in (outputs, *gradients):
            assert np.isfinite(result).all()
        for value, reference in zip(after, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5)


def sparse(values):
    if IS_TENSORFLOW:
        import tensorflow as tf

        return tf.sparse.from_dense(values)
    if IS_JAX:
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
