"""Every kernel computes the outputs, statistics and gradients that numpy computes."""

import ghosts
import keras
import numpy as np
import pytest
from backend import IS_JAX, IS_TENSORFLOW, NAME, WAYS, compiled, with_gradients
from keras import ops

from gbn_keras.ghost_normalize import ghost_moving_average, ghost_normalize

SHAPES = [
    # shape, channel axis, virtual batch size
    ((12, 5), -1, 4),
    ((13, 5), 1, 4),
    ((7, 3, 4), 1, 3),
    ((8, 4, 4, 3), -1, 2),
    ((9, 3, 4, 4), 1, 4),
    ((6, 2, 3, 2, 4), -1, 3),
    ((5, 4), -1, 8),
    ((4, 6, 1), -1, 2),
    ((27, 2), -1, 13),
    ((16, 6, 5), -1, 16),
    ((33, 4, 4, 2), 1, 8),
]


KERNELS = ("closed_form", "two_stages")
if IS_TENSORFLOW:
    KERNELS += ("compiled", "fused")
if NAME == "torch":
    KERNELS += ("native",)
if IS_JAX:
    KERNELS += ("by_example",)


def takes(kernel, way, axis):
    """Whether a kernel can be forced there."""
    if kernel == "compiled":
        return way != "XLA"
    if kernel == "fused":
        # Under XLA, where it is never chosen, its variance cancels.
        return axis == -1 and way in ("eager", "graph")
    return True


# A remainder in each, and channels last or not.
EVERYWHERE = (((9, 3, 4, 4), 1, 4), ((27, 2), -1, 13))


def marks(shape, way, kernel):
    """These shapes run in every way, the others where nothing is compiled."""
    is_quick = way == "eager" and kernel not in (None, "compiled")
    return [] if shape in EVERYWHERE or is_quick else [pytest.mark.slow]


CASES = [
    pytest.param(*shape, way, kernel, marks=marks(shape, way, kernel))
    for shape in SHAPES
    for way in WAYS
    for kernel in (None, *KERNELS)
    if takes(kernel, way, shape[1])
]


@pytest.mark.parametrize("shape, axis, virtual_batch_size, way, kernel", CASES)
def test_outputs_statistics_and_gradients_are_those_of_numpy(
    shape, axis, virtual_batch_size, way, kernel
):
    check(shape, axis, virtual_batch_size, way, kernel)


@pytest.mark.parametrize(
    "shape, axis, virtual_batch_size, way, kernel",
    [
        (*shape, way, kernel)
        for kernel in KERNELS
        for shape in EVERYWHERE[kernel == "fused" :][:1]
        for way in WAYS
        if takes(kernel, way, shape[1])
    ],
)
def test_relu_in_a_kernel_is_relu_after_it(
    shape, axis, virtual_batch_size, way, kernel
):
    relu = keras.activations.relu
    check(shape, axis, virtual_batch_size, way, kernel, relu)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_of_relu_at_zero_is_zero(kernel):
    def loss_and_results(x, gamma, beta):
        relu = keras.activations.relu
        y = ghost_normalize(x, gamma, beta, 4, activation=relu, _kernel=kernel)[0]
        return ops.sum(y), y

    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    gamma, beta = np.zeros((2, 3), "float32")
    y, gradients = with_gradients(loss_and_results, (x, gamma, beta))
    for zero in (y, *gradients):
        np.testing.assert_array_equal(zero, np.zeros_like(zero))


def check(shape, axis, virtual_batch_size, way, kernel, activation=None):
    """Compares what a kernel computes with numpy in float64."""
    random = np.random.default_rng(0)
    # A mean far from zero: a formula that cancels would show.
    inputs = random.normal(100, 1, shape).astype("float32")
    gamma, beta = random.normal(1, 0.3, (2, shape[axis])).astype("float32")
    upstream = random.normal(size=shape).astype("float32")

    def loss_and_results(*tensors):
        results = ghost_normalize(
            *tensors,
            virtual_batch_size,
            axis=axis,
            epsilon=1e-3,
            activation=activation,
            _kernel=kernel,
        )
        return ops.sum(results[0] * ops.array(upstream)), results

    arrays = (inputs, gamma, beta)
    results, gradients = with_gradients(loss_and_results, arrays, way)
    expected = ghosts.normalize(inputs, gamma, beta, virtual_batch_size, axis, 1e-3)
    if activation:
        upstream = upstream * (expected[0] > 0)
        expected = np.maximum(expected[0], 0), *expected[1:]
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=2e-4, atol=2e-4)
    expected = ghosts.gradients(inputs, gamma, upstream, virtual_batch_size, axis, 1e-3)
    for gradient, reference in zip(gradients, expected, strict=True):
        error = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
        assert error < 2e-4


# Keras has no float64 on the other backends.
DTYPES = ("float16", "bfloat16", "float32", *IS_TENSORFLOW * ["float64"], "int32")


@pytest.mark.parametrize(
    "dtype, kernel",
    [
        (dtype, kernel)
        for dtype in DTYPES
        for kernel in (None, *KERNELS)
        if (dtype, kernel) != ("float64", "fused")
    ],
)
def test_statistics_are_float32_at_least(dtype, kernel):
    # Squares of 300 overflow float16.
    values = ops.cast(ops.array([[300.0], [-300.0]] * 4), dtype)
    normalize = compiled(
        lambda x: ghost_normalize(x, None, None, 4, _kernel=kernel), WAYS[0]
    )
    results = normalize(values)
    found = [keras.backend.standardize_dtype(result.dtype) for result in results]
    statistics = "float64" if dtype == "float64" else "float32"
    assert found == ["float32" if dtype == "int32" else dtype, *2 * [statistics]]
    mean, variance = map(ops.convert_to_numpy, results[1:])
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    np.testing.assert_allclose(variance, 90_000, rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("where", [slice(1), slice(1, None), slice(0)])
def test_statistics_are_right_in_whatever_order_the_values_come(kernel, where):
    """Also where the first values of a ghost are far from all others, or all equal."""
    inputs = np.random.default_rng(0).normal(size=(32, 4, 2)).astype("float32")
    inputs[where] += 1e4
    inputs[..., 1] = 0.1
    way = "graph" if kernel in ("compiled", "fused") else WAYS[-1]
    normalize = compiled(
        lambda x: ghost_normalize(x, None, None, 32, _kernel=kernel), way
    )
    outputs, mean, variance = map(ops.convert_to_numpy, normalize(ops.array(inputs)))
    values = inputs.reshape(-1, 2).astype("float64")
    np.testing.assert_allclose(mean[0], values.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance[0, 0], values[:, 0].var(), rtol=1e-5)
    assert 0 <= variance[0, 1] < 1e-12
    np.testing.assert_allclose(outputs[..., 1], 0, atol=1e-5)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k not in ("fused", "native")])
def test_what_is_masked_takes_no_part_in_the_statistics(kernel):
    inputs = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    mask = np.random.default_rng(1).random((8, 5)) < 0.6
    inputs[~mask] = np.nan
    normalize = compiled(
        lambda x: ghost_normalize(x, None, None, 4, mask=mask, _kernel=kernel), WAYS[0]
    )
    results = normalize(ops.array(inputs))
    mean, variance = map(ops.convert_to_numpy, results[1:])
    for ghost in range(2):
        valid = inputs[4 * ghost : 4 * ghost + 4][mask[4 * ghost : 4 * ghost + 4]]
        np.testing.assert_allclose(mean[ghost], valid.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[ghost], valid.var(0), rtol=1e-5)


def test_a_mask_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"mask of shape \(8, 5, 3\)"):
        ghost_normalize(np.ones((8, 5, 3)), None, None, 4, mask=np.ones((8, 5, 3)))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 1.0])
def test_the_moving_average_takes_one_step_per_ghost_in_order(momentum):
    statistics = np.random.default_rng(0).normal(size=(7, 3))
    expected = moving = np.array([1.0, 2.0, 3.0])
    for statistic in statistics:
        expected = momentum * expected + (1 - momentum) * statistic
    found = ghost_moving_average(ops.array(moving), ops.array(statistics), momentum)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-6)
