"""TensorFlow takes the fastest kernel that is right, and builds no more than needed."""

import ghosts
import keras
import numpy as np
import pytest
import tensorflow as tf
from backend import compiled

from gbn_keras.ghost_normalize import ghost_normalize
from gbn_keras.kernels import tensorflow_compiled, tensorflow_kernels


@pytest.mark.parametrize("kernel", ["closed_form", "two_stages", "compiled"])
def test_one_graph_takes_batches_of_any_size(kernel):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def normalize(x):
        return ghost_normalize(x, None, None, 4, _kernel=kernel)

    for batch in (3, 4, 7, 8, 21):
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
    tensorflow_compiled._traced.cache_clear()
    for _ in range(3):
        ghost_normalize(tf.ones([8, 3]), None, None, 4, _kernel="compiled")
    assert tensorflow_compiled._traced.cache_info().misses == 1


def second_derivative(normalize, x, way):
    """Of a loss by the inputs, in the direction of the inputs."""

    def function():
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(normalize(x) ** 3)
            slope = tf.reduce_sum(inner.gradient(loss, x) * x**2)
        return outer.gradient(slope, x)

    return compiled(function, way)()


@pytest.mark.parametrize(
    "way, masked",
    [
        ("eager", True),
        ("graph", False),
        pytest.param("eager", False, marks=pytest.mark.slow),
        pytest.param("graph", True, marks=pytest.mark.slow),
    ],
)
def test_what_is_compiled_can_be_differentiated_twice(way, masked):
    x = tf.random.stateless_normal([8, 3], [0, 1])
    mask = tf.constant([True, True, False, True] * 2) if masked else None
    weights = tf.cast(mask if masked else tf.ones(8), x.dtype)[:, None]

    def by_definition(x):
        ghosts = tf.reshape(x, [2, 4, 3])
        valid = tf.reshape(weights, [2, 4, 1])
        count = tf.reduce_sum(valid, 1, keepdims=True)
        mean = tf.reduce_sum(ghosts * valid, 1, keepdims=True) / count
        squares = valid * (ghosts - mean) ** 2
        variance = tf.reduce_sum(squares, 1, keepdims=True) / count
        return tf.reshape((ghosts - mean) / tf.sqrt(variance + 1e-3), [8, 3])

    def by_kernel(x):
        return ghost_normalize(x, None, None, 4, mask=mask, _kernel="compiled")[0]

    result = second_derivative(by_kernel, x, way)
    expected = second_derivative(by_definition, x, "eager")
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", [None, keras.activations.relu])
def test_a_graph_launches_what_is_compiled_itself(activation):
    """Of functions that it calls, TensorFlow would keep a copy for each graph."""

    @tf.function
    def update(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = ghost_normalize(x, None, None, 4, activation=activation)[0]
            loss = tf.reduce_sum(outputs**2)
        return tape.gradient(loss, x)

    graph = update.get_concrete_function(tf.TensorSpec([8, 3])).graph
    types = [operation.type for operation in graph.get_operations()]
    assert types.count("XlaLaunch") == 2
    assert not [name for name in types if "Call" in name or "Relu" in name]
