"""The mathematics of ghost batches, against numpy in float64."""

import ghosts
import numpy as np
import pytest
import tensorflow as tf

from gbn_keras import tensorflow_kernels
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


def run(compilation, shape):
    """A way to run a function of one tensor: eager, in a graph, or by XLA."""
    if compilation == "eager":
        return lambda function: function
    dynamic = [None, *shape[1:]] if compilation == "dynamic batch" else shape
    return tf.function(
        input_signature=[tf.TensorSpec(dynamic)], jit_compile=compilation == "XLA"
    )


KERNELS = ("closed_form", "two_stages", "compiled", "fused")


def takes(kernel, compilation, axis):
    """Whether a kernel can be forced there."""
    if kernel == "compiled":
        return compilation != "XLA"
    if kernel == "fused":
        # Under XLA, where it is never chosen, its variance cancels.
        return axis == -1 and compilation in ("eager", "graph")
    return True


CASES = [
    (*shape, compilation, kernel)
    for shape in SHAPES
    for compilation in ("eager", "graph", "dynamic batch", "XLA")
    for kernel in (None, *KERNELS)
    if takes(kernel, compilation, shape[1])
]


@pytest.mark.parametrize("shape, axis, virtual_batch_size, compilation, kernel", CASES)
def test_outputs_statistics_and_gradients_are_those_of_numpy(
    shape, axis, virtual_batch_size, compilation, kernel
):
    random = np.random.default_rng(0)
    # A mean far from zero: a formula that cancels would show.
    inputs = random.normal(100, 1, shape).astype("float32")
    gamma, beta = random.normal(1, 0.3, (2, shape[axis])).astype("float32")
    upstream = random.normal(size=shape).astype("float32")

    @run(compilation, shape)
    def forward_and_backward(x):
        parameters = tf.constant(gamma), tf.constant(beta)
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            results = ghost_normalize(
                x,
                *parameters,
                virtual_batch_size,
                axis=axis,
                epsilon=1e-3,
                _kernel=kernel,
            )
            loss = tf.reduce_sum(results[0] * upstream)
        return results, tape.gradient(loss, [x, *parameters])

    results, gradients = forward_and_backward(tf.constant(inputs))
    expected = ghosts.normalize(inputs, gamma, beta, virtual_batch_size, axis, 1e-3)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=2e-4, atol=2e-4)
    expected = ghosts.gradients(inputs, gamma, upstream, virtual_batch_size, axis, 1e-3)
    for gradient, reference in zip(gradients, expected, strict=True):
        error = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
        assert error < 2e-4


@pytest.mark.parametrize("kernel", ["closed_form", "two_stages", "compiled"])
def test_one_graph_takes_batches_of_any_size(kernel):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def normalize(x):
        return ghost_normalize(x, None, None, 4, _kernel=kernel)

    for batch in (1, 3, 4, 5, 7, 8, 9, 16, 21):
        inputs = np.random.default_rng(batch).normal(size=(batch, 3)).astype("float32")
        expected = ghosts.normalize(inputs, 1, 0, 4, -1, 1e-3)
        for result, reference in zip(
            normalize(tf.constant(inputs)), expected, strict=True
        ):
            np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["closed_form", "two_stages"])
def test_the_number_of_operations_does_not_grow_with_the_number_of_ghosts(kernel):
    def operations(batch):
        function = tf.function(
            lambda x: ghost_normalize(x, None, None, 4, _kernel=kernel)[0]
        )
        graph = function.get_concrete_function(tf.TensorSpec([batch, 3])).graph
        return len(graph.get_operations())

    assert operations(64) == operations(8)
    assert operations(65) == operations(9)


def chosen(shape, dtype="float32", axis=-1, mask=None, **how):
    """The kernel for ghosts of 4 in a function traced for this shape."""
    found = []

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype)], **how)
    def function(x):
        axis_from_front = axis % len(shape)
        found.append(tensorflow_kernels.fastest_kernel(x, 4, axis_from_front, mask))

        def nested(x):
            found.append(tensorflow_kernels.fastest_kernel(x, 4, axis_from_front, mask))
            return x

        return tf.function(nested)(x)

    function.get_concrete_function()
    assert found[0] == found[1], "a function knows that its caller is compiled"
    return found[0]


def test_on_a_cpu_xla_compiles_unless_sizes_are_unknown():
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        assert chosen([16, 3], dtype) == "compiled"
    assert chosen([16, 4, 4, 3], axis=1) == "compiled"
    assert chosen([16, 5, 3], mask=tf.ones((16, 5, 3), "bool")) == "compiled"
    assert chosen([None, 3]) == "compiled"
    assert chosen([16, None, 3]) == "closed_form"
    assert chosen([16, 3], jit_compile=True) == "two_stages"
    assert chosen([None, 3], jit_compile=True) == "two_stages"


def test_with_an_accelerator_fused_kernels_take_what_they_can(monkeypatch):
    monkeypatch.setattr(tensorflow_kernels, "_only_cpus", lambda: False)
    for dtype in ("float16", "bfloat16", "float32"):
        assert chosen([19, 3], dtype) == "fused"
    assert chosen([16, 4, 4, 3]) == "fused"
    assert chosen([4 * 64, 3]) == "fused"
    assert chosen([4 * 65, 3]) == "closed_form"
    assert chosen([16, 3], "float64") == "closed_form"
    assert chosen([None, 3]) == "closed_form"
    assert chosen([16, 4, 4, 3], axis=1) == "closed_form"
    assert chosen([16, 5, 3], mask=tf.ones((16, 5, 3), "bool")) == "closed_form"
    assert chosen([16, 3], jit_compile=True) == "closed_form"


def test_a_compiled_pair_serves_every_layer_of_one_shape():
    tensorflow_kernels._compiled.cache_clear()
    for _ in range(3):
        ghost_normalize(tf.ones([8, 3]), None, None, 4, _kernel="compiled")
    assert tensorflow_kernels._compiled.cache_info().misses == 1


@pytest.mark.parametrize(
    "dtype, kernel",
    [
        (dtype, kernel)
        for dtype in ("float16", "bfloat16", "float32", "float64", "int32")
        for kernel in (None, *KERNELS)
        if (dtype, kernel) != ("float64", "fused")
    ],
)
def test_statistics_are_float32_at_least(dtype, kernel):
    # Squares of 300 overflow float16.
    values = tf.cast(tf.constant([[300.0], [-300.0]] * 4), dtype)
    outputs, mean, variance = ghost_normalize(values, None, None, 4, _kernel=kernel)
    assert outputs.dtype == ("float32" if dtype == "int32" else dtype)
    assert mean.dtype == variance.dtype
    assert mean.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(mean, 0)
    np.testing.assert_allclose(variance, 90_000)


@pytest.mark.parametrize("kernel", ["closed_form", "two_stages", "compiled"])
def test_what_is_masked_takes_no_part_in_the_statistics(kernel):
    inputs = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    mask = np.random.default_rng(1).random((8, 5)) < 0.6
    inputs[~mask] = np.nan
    _, mean, variance = ghost_normalize(
        inputs, None, None, 4, mask=mask, _kernel=kernel
    )
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
    np.testing.assert_allclose(
        ghost_moving_average(moving, tf.constant(statistics), momentum), expected
    )
