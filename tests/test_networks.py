"""The networks: sizes derived here by hand, normalization by argument."""

import functools

import keras
import numpy as np
import pytest

from gbn_keras import REGIMES, GhostBatchNormalization
from gbn_keras.networks import NETWORKS, f1, f1_digits

GHOSTS = functools.partial(GhostBatchNormalization, 16)


def test_f1_is_five_hidden_layers_of_512():
    model = f1((28, 28, 1), 10, GHOSTS)
    kernels = 784 * 512 + 4 * 512 * 512 + 512 * 10
    trainable = kernels + 10 + 5 * 2 * 512
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == trainable
    assert model.count_params() == trainable + 5 * 2 * 512


def test_the_digits_f1_is_four_hidden_layers_of_128():
    model = f1_digits((8, 8, 1), 10, GHOSTS)
    kernels = 64 * 128 + 3 * 128 * 128 + 128 * 10
    assert model.count_params() == kernels + 10 + 4 * 4 * 128


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("normalization", [GHOSTS, keras.layers.BatchNormalization])
def test_the_normalization_layer_is_an_argument(name, normalization):
    model = NETWORKS[name]((8, 8, 3), 7, normalization)
    kind = type(normalization())
    found = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert found and all(type(layer) is kind for layer in found)
    assert model(np.zeros((5, 8, 8, 3))).shape == (5, 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_regime(name):
    assert name in REGIMES


def test_logits_are_float32_in_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = f1_digits((8, 8, 1), 10, GHOSTS)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.layers[1].compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
