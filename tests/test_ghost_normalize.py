"""The mathematics of ghost batches, against numpy in float64."""

import ghosts
import numpy as np
import pytest
import tensorflow as tf

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
]


def run(compilation, shape):
    """A way to run a function of one tensor: eager, in a graph, or by XLA."""
    if compilation == "eager":
        return lambda function: function
    dynamic = [None, *shape[1:]] if compilation == "dynamic batch" else shape
    return tf.function(
        input_signature=[tf.TensorSpec(dynamic)], jit_compile=compilation == "XLA"
    )


# The fused kernel takes channels last and static shapes. It is never chosen under XLA,
# where it is slow and its variance cancels.
CASES = [
    (*shape, compilation, kernel)
    for shape in SHAPES
    for compilation in ("eager", "graph", "dynamic batch", "XLA")
    for kernel in (None, "closed_form", "fused")
    if kernel != "fused" or (shape[1] == -1 and compilation in ("eager", "graph"))
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


def test_one_graph_takes_batches_of_any_size():
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def normalize(x):
        return ghost_normalize(x, None, None, 4)

    for batch in (1, 3, 4, 5, 7, 8, 9, 16, 21):
        inputs = np.random.default_rng(batch).normal(size=(batch, 3)).astype("float32")
        expected = ghosts.normalize(inputs, 1, 0, 4, -1, 1e-3)
        for result, reference in zip(
            normalize(tf.constant(inputs)), expected, strict=True
        ):
            np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-5)


def test_the_number_of_operations_does_not_grow_with_the_number_of_ghosts():
    def operations(batch):
        function = tf.function(
            lambda x: ghost_normalize(x, None, None, 4, _kernel="closed_form")[0]
        )
        graph = function.get_concrete_function(tf.TensorSpec([batch, 3])).graph
        return len(graph.get_operations())

    assert operations(64) == operations(8)
    assert operations(65) == operations(9)


def kernels_in(function, signature, **how):
    """The names of the fused operations that a traced function calls."""
    compiled = tf.function(function, input_signature=[signature], **how)
    graph = compiled.get_concrete_function().graph
    # Functions that it calls are in its library.
    definition = graph.as_graph_def()
    nodes = [*definition.node]
    for called in definition.library.function:
        nodes.extend(called.node_def)
    return {node.op for node in nodes if "FusedBatchNorm" in node.op}


@pytest.mark.parametrize(
    "shape, dtype, arguments, how, fused",
    [
        ([16, 4, 4, 3], "float32", {}, {}, True),
        ([16, 3], "float32", {}, {}, True),
        ([19, 3], "bfloat16", {}, {}, True),
        ([16, 3], "float16", {}, {}, True),
        ([16, 3], "float64", {}, {}, False),
        ([16, 3], "float32", {}, {"jit_compile": True}, False),
        ([None, 3], "float32", {}, {}, False),
        ([16, 4, 4, 3], "float32", {"axis": 1}, {}, False),
        ([16, 5, 3], "float32", {"mask": np.ones((16, 5))}, {}, False),
        ([4 * 64, 3], "float32", {}, {}, True),
        ([4 * 65, 3], "float32", {}, {}, False),
    ],
)
def test_the_kernel_follows_from_what_is_known_while_tracing(
    shape, dtype, arguments, how, fused
):
    def normalize(x):
        return ghost_normalize(x, None, None, 4, **arguments)[0]

    found = kernels_in(normalize, tf.TensorSpec(shape, dtype), **how)
    assert bool(found) == fused


def test_a_function_called_by_a_compiled_one_knows_it():
    def nested(x):
        return tf.function(lambda x: ghost_normalize(x, None, None, 4)[0])(x)

    assert not kernels_in(nested, tf.TensorSpec([16, 3]), jit_compile=True)


@pytest.mark.parametrize(
    "dtype, kernel",
    [
        *((d, "closed_form") for d in ("float16", "bfloat16", "float32", "float64")),
        *((d, "fused") for d in ("float16", "bfloat16", "float32")),
        ("int32", None),
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


def test_what_is_masked_takes_no_part_in_the_statistics():
    inputs = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    mask = np.random.default_rng(1).random((8, 5)) < 0.6
    inputs[~mask] = np.nan
    _, mean, variance = ghost_normalize(inputs, None, None, 4, mask=mask)
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
