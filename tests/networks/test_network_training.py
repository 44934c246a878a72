"""Each network starts from the right weights, computes its blocks, and trains."""

import functools

import keras
import numpy as np
import pytest
from backend import IS_JAX, SLOW_ON_JAX
from keras import ops
from small_networks import SMALL, layers_of

from gbn_keras import GhostBatchNormalization
from gbn_keras.networks.residual import basic_block, bottleneck_block

# JAX takes long to compile these. And one network of a family is enough by default: a
# basic block and a bottleneck have tests of their own, and the sizes of all are tested.
LARGE = ("c1", "c3", "wresnet10_2", "vgg11", "alexnet", "resnet18", "resnet50")
RELATIVES = ("f1_digits", "c3", "wresnet10_2", "resnet50")


@functools.cache
def small(name):
    """A network for 7 classes. Who changes its weights puts them back."""
    network, shape, _ = SMALL[name]
    keras.utils.set_random_seed(0)
    # In training they do as their parent: ghosts take seconds to trace, and their
    # gradient is tested where they are.
    return network(shape, 7, functools.partial(GhostBatchNormalization, None))


@pytest.fixture(autouse=True, scope="module")
def nothing_is_built():
    """Some hundred megabytes less for the files that follow."""
    yield
    small.cache_clear()


@pytest.mark.parametrize("strides, inputs", [(1, 6), (1, 4), (2, 6), (2, 4)])
def test_a_basic_block_is_two_convolutions_added_to_its_input(strides, inputs):
    x, block = random_block(basic_block, inputs, 4, strides)
    k = kernels_by_shape(block)
    first, second = k[(3, 3, inputs, 4)][0], k[(3, 3, 4, 4)][-1]
    expected = conv(ops.relu(conv(x, first, strides)), second)
    expected += shortcut(x, k, inputs, 4, strides)
    assert_allclose(block(x), ops.relu(expected))


@pytest.mark.parametrize("strides, inputs", [(1, 6), (1, 12), (2, 6), (2, 12)])
def test_a_bottleneck_is_three_convolutions_added_to_its_input(strides, inputs):
    x, block = random_block(bottleneck_block, inputs, 3, strides)
    k = kernels_by_shape(block)
    narrow = ops.relu(conv(x, k[(1, 1, inputs, 3)][0]))
    narrow = ops.relu(conv(narrow, k[(3, 3, 3, 3)][0], strides))
    expected = conv(narrow, k[(1, 1, 3, 12)][0])
    expected += shortcut(x, k, inputs, 12, strides)
    assert_allclose(block(x), ops.relu(expected))


def assert_allclose(*tensors):
    arrays = map(ops.convert_to_numpy, tensors)
    np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-5)


def random_block(block, inputs, filters, strides):
    """Examples, and a block of random kernels, without normalization."""
    keras.utils.set_random_seed(0)
    start = keras.Input((6, 6, inputs))
    model = keras.Model(start, block(start, filters, strides, None))
    return keras.random.normal((2, 6, 6, inputs)), model


def kernels_by_shape(model):
    kernels = {}
    for layer in layers_of(model, keras.layers.Conv2D):
        kernels.setdefault(tuple(layer.kernel.shape), []).append(layer.kernel.value)
    return kernels


def conv(x, kernel, strides=1):
    return ops.conv(x, kernel, strides, "same")


def shortcut(x, kernels, inputs, outputs, strides):
    kernel = kernels.get((1, 1, inputs, outputs))
    assert (kernel is None) == (strides == 1 and inputs == outputs)
    return x if kernel is None else conv(x, kernel[0], strides)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in RELATIVES
            else SLOW_ON_JAX * (name in LARGE),
        )
        for name in SMALL
    ],
)
def test_an_update_moves_every_weight(name):
    model, shape = small(name), SMALL[name][1]
    assert model.output_shape == (None, 7)
    # Copies: JAX reuses the memory of its own.
    before = [np.array(weight.numpy()) for weight in model.weights]
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=not IS_JAX)
    model.train_on_batch(x, np.arange(8) % 7)
    after = [np.array(weight.numpy()) for weight in model.weights]
    model.set_weights(before)
    for weight, old, new in zip(model.weights, before, after, strict=True):
        assert np.isfinite(new).all(), weight.path
        # Of a running statistic too: no normalization is at inference.
        assert not np.array_equal(new, old), weight.path


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        *(
            pytest.param(x, marks=SLOW_ON_JAX)
            for x in ("c1", "vgg11", "alexnet", "resnet18")
        ),
    ],
)
def test_convolutions_start_from_he_normal_weights_each_of_its_own(name):
    kernels = [x.kernel.numpy() for x in layers_of(small(name), keras.layers.Conv2D)]
    for kernel in kernels:
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        deviations = kernel * (fan_out / 2) ** 0.5
        assert deviations.std() == pytest.approx(1, abs=4 / kernel.size**0.5)
        # Not cut off at two deviations, as truncated ones are.
        assert kernel.size < 1000 or np.abs(deviations).max() > 2.5
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("name", [pytest.param("c1", marks=SLOW_ON_JAX), "resnet8"])
def test_a_saved_network_predicts_the_same(name, tmp_path):
    model = small(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, *SMALL[name][1]))
    outputs = (ops.convert_to_numpy(one(x)) for one in (loaded, model))
    np.testing.assert_array_equal(*outputs)
