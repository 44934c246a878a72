"""SGD with L2 in the gradient makes the published update."""

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import PiecewiseConstantDecay

from gbn_keras.optimizers.l2_sgd import L2SGD


@pytest.mark.parametrize("clipnorm", [None, 0.5])
def test_l2_joins_the_gradient_after_clipping_and_before_momentum(clipnorm):
    random = np.random.default_rng(0)
    variables = [keras.Variable(random.normal(size=s)) for s in ((3, 2), (2,))]
    weights = [v.numpy().astype("float64") for v in variables]
    velocities = [0.0, 0.0]
    optimizer = L2SGD(0.1, l2=0.03, momentum=0.9, global_clipnorm=clipnorm)
    for _ in range(5):
        gradients = [random.normal(size=w.shape).astype("float32") for w in weights]
        optimizer.apply(gradients, variables)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        clip = min(1, (clipnorm or np.inf) / norm)
        for i, gradient in enumerate(gradients):
            gradient = clip * gradient + 0.03 * weights[i]
            velocities[i] = 0.9 * velocities[i] - 0.1 * gradient
            weights[i] = weights[i] + velocities[i]
    for variable, weight in zip(variables, weights, strict=True):
        np.testing.assert_allclose(variable, weight, rtol=1e-5, atol=1e-6)


def test_l2_may_follow_a_schedule():
    variable = keras.Variable([1.0])
    optimizer = L2SGD(0.1, l2=PiecewiseConstantDecay([1], [0.5, 0.0]))
    values = []
    for _ in range(4):
        optimizer.apply([np.zeros(1, "float32")], [variable])
        values.append(float(variable[0]))
    # Updates 0 and 1 shrink by 0.1 * 0.5; then the coefficient is 0.
    np.testing.assert_allclose(values, [0.95, 0.9025, 0.9025, 0.9025], rtol=1e-6)


def test_l2_may_leave_out_gamma_beta_and_biases():
    kernel, beta = keras.Variable([[1.0], [1.0]]), keras.Variable([1.0, 1.0])
    zeros = [np.zeros((2, 1), "float32"), np.zeros(2, "float32")]
    L2SGD(0.1, l2=0.5, l2_kernels_only=True).apply(zeros, [kernel, beta])
    np.testing.assert_allclose(kernel, [[0.95], [0.95]], rtol=1e-6)
    np.testing.assert_array_equal(beta, [1, 1])
    L2SGD(0.1, l2=0.5).apply(zeros, [kernel, beta])
    np.testing.assert_allclose(beta, [0.95, 0.95], rtol=1e-6)


@pytest.mark.parametrize("l2", [0.01, PiecewiseConstantDecay([1], [0.5, 0.0])])
def test_the_optimizer_is_serializable(l2):
    optimizer = L2SGD(
        0.1, l2=l2, l2_kernels_only=True, momentum=0.9, global_clipnorm=5.0
    )
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == optimizer.get_config()
    assert again.l2_kernels_only
    assert isinstance(again, L2SGD)
