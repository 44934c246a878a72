"""A process that makes many models keeps none of them."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gbn_keras import GhostBatchNormalization
from gbn_keras.ghost_normalize import ghost_normalize
from gbn_keras.kernels import tensorflow_compiled, tensorflow_kernels
from gbn_keras.kernels.closed_form import ClosedForm


def graph_of_an_update(shape, virtual_batch_size, masked, kernel, jit):
    """A weak reference to the graph in which a gradient was traced and computed."""

    @tf.function(autograph=False, jit_compile=jit)
    def update(x):
        mask = x[..., 0] > 0 if masked else None
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, _, _ = ghost_normalize(
                x, None, None, virtual_batch_size, mask=mask, _kernel=kernel
            )
            loss = tf.reduce_sum(outputs**2)
        return tape.gradient(loss, x)

    traced = update.get_concrete_function(tf.TensorSpec(shape))
    traced(tf.ones([8, *shape[1:]]))
    return weakref.ref(traced.graph)


@pytest.mark.parametrize(
    "batch, rest, virtual_batch_size, masked, kernel, jit",
    [
        (8, (3,), 4, True, "compiled", False),
        (8, (2, 2, 3), 3, False, "fused", False),
        (None, (3,), 4, True, "closed_form", False),
        (8, (2, 2, 3), 3, False, "two_stages", True),
    ],
)
def test_no_graph_outlives_its_function(
    batch, rest, virtual_batch_size, masked, kernel, jit
):
    check_graph(batch, rest, virtual_batch_size, masked, kernel, jit)


@pytest.mark.slow
@given(
    batch=st.sampled_from([8, None]),
    rest=st.sampled_from([(3,), (2, 2, 3)]),
    virtual_batch_size=st.integers(1, 8),
    masked=st.booleans(),
    kernel=st.sampled_from(["closed_form", "two_stages", "compiled", "fused"]),
    jit=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_no_graph_of_many_outlives_its_function(**case):
    check_graph(**case)


def check_graph(batch, rest, virtual_batch_size, masked, kernel, jit):
    if kernel == "fused" and (masked or jit or batch is None):
        kernel = "closed_form"  # Which the fused one could not stand for.
    if kernel == "compiled" and (jit or batch is None):
        kernel = None
    graph = graph_of_an_update((batch, *rest), virtual_batch_size, masked, kernel, jit)
    gc.collect()
    assert graph() is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_no_model_outlives_its_training(jit_compile):
    models = []
    for _ in range(2):
        keras.backend.clear_session()
        layers = [keras.layers.Dense(6), GhostBatchNormalization(4)]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile("sgd", "mse", jit_compile=jit_compile)
        model.fit(np.ones((16, 3)), np.ones((16, 6)), batch_size=8, verbose=0)
        models.append(weakref.ref(model.layers[-1].gamma))
        del model, layers
    keras.backend.clear_session()
    gc.collect()
    assert [model() for model in models] == [None] * 2


def test_as_many_kernels_are_kept_as_a_network_has_and_no_more():
    form = ClosedForm(4, 1, 1e-3)
    for number in range(tensorflow_kernels._KEPT + 8):
        tensorflow_kernels._fused((8, number + 1), form)
    info = tensorflow_kernels._fused.cache_info()
    assert info.currsize == info.maxsize == tensorflow_kernels._KEPT


def test_what_was_left_out_is_traced_again_and_gives_the_same(monkeypatch):
    """Also between the forward and the backward pass."""
    x = tf.random.stateless_normal([8, 5], [0, 1])

    def gradient(forgets):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, _, _ = ghost_normalize(x, None, None, 4, _kernel="compiled")
            loss = tf.reduce_sum(outputs * x)
        if forgets:
            tensorflow_compiled._traced.cache_clear()
        return tape.gradient(loss, x).numpy()

    np.testing.assert_array_equal(gradient(True), gradient(False))
