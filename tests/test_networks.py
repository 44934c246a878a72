"""The networks: sizes derived here by hand, normalization by argument."""

import functools

import keras
import numpy as np
import pytest

from gbn_keras import REGIMES, GhostBatchNormalization
from gbn_keras.networks import NETWORKS, f1, f1_digits, resnet

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


@pytest.mark.parametrize("depth, blocks", [(20, 3), (44, 7)])
def test_resnet_has_three_stages_of_basic_blocks(depth, blocks):
    convolutions = 3 * 3 * 3 * 16
    for inputs, filters in ((16, 16), (16, 32), (32, 64)):
        shortcut = inputs * filters if inputs != filters else 0
        convolutions += 9 * inputs * filters + shortcut
        convolutions += (2 * blocks - 1) * 9 * filters * filters
    dense = 64 * 10 + 10
    normalized = 16 * (1 + 2 * blocks) + (32 + 64) * (1 + 2 * blocks)
    plain = resnet((32, 32, 3), 10, None, depth=depth)
    assert plain.count_params() == convolutions + dense
    ghost = resnet((32, 32, 3), 10, GHOSTS, depth=depth)
    assert ghost.count_params() == convolutions + dense + 4 * normalized


def test_resnet_starts_from_he_normal_weights_each_of_its_own():
    keras.utils.set_random_seed(0)
    model = resnet((8, 8, 3), 10, GHOSTS, depth=20)
    kernels = [w.numpy() for w in model.trainable_weights if len(w.shape) == 4]
    for kernel in kernels:
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    same_shape = [k for k in kernels if k.shape == (3, 3, 16, 16)]
    assert not np.array_equal(same_shape[0], same_shape[1])


@pytest.mark.parametrize("depth", [2, 18, 45])
def test_a_resnet_of_another_depth_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth={depth}"):
        resnet((32, 32, 3), 10, GHOSTS, depth=depth)


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
