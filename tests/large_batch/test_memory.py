"""The chosen micro-batch is the largest whose update fits into the memory."""

import functools
import math

import keras
import pytest

from gbn_keras import GhostBatchNormalization
from gbn_keras.large_batch.backends import tensorflow_memory as memory
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import f1, resnet

GHOSTS = functools.partial(GhostBatchNormalization, 16)


def compiled(network, ghost=16):
    model = LargeBatchModel(network, ghost)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def small_f1():
    return compiled(f1((8, 8, 1), 10, GHOSTS, width=64, depth=2))


@pytest.fixture(scope="module", autouse=True)
def each_size_is_traced_once():
    """A trace takes long, and always finds the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "peak_bytes", functools.cache(memory.peak_bytes))
        yield


def test_what_an_example_needs_is_what_the_backward_pass_wants(small_f1):
    sizes = [memory.peak_bytes(small_f1, n) for n in (1024, 2048, 4096)]
    per_example = (sizes[2] - sizes[1]) / 2048
    assert per_example == pytest.approx((sizes[1] - sizes[0]) / 1024, rel=0.01)
    # The image; of both layers what the normalization and the ReLU are given; and at
    # the peak a gradient or two.
    least = 4 * (64 + 2 * 2 * 64)
    assert least <= per_example <= 2 * least


def test_the_coarse_bound_is_above(small_f1):
    residual = compiled(resnet((8, 8, 3), 10, GHOSTS, depth=8))
    for model in (small_f1, residual):
        for examples in (16, 512):
            bound = memory._at_most(model, examples)
            peak = memory.peak_bytes(model, examples)
            assert peak < bound < 5 * peak


@pytest.mark.parametrize("share", [480, 500, pytest.param(512, marks=pytest.mark.slow)])
def test_the_largest_that_fits_is_chosen(small_f1, share):
    ghosts = share // 16
    chosen = []
    for budget in (0, *(memory.peak_bytes(small_f1, n) for n in (16, 64, 256, share))):
        size = memory.largest_micro_batch(small_f1, share, budget)
        assert size % 16 == 0 and ghosts % (size // 16) == 0
        assert size == 16 or memory.peak_bytes(small_f1, size) <= budget * 1.001
        chosen.append(size)
    assert chosen[0] == 16 and chosen[-1] == 16 * ghosts
    assert chosen == sorted(chosen)
    assert math.prod(chosen)


def test_several_virtual_batch_sizes_go_into_one_micro_batch():
    inputs = keras.Input((20,))
    x = GhostBatchNormalization(6)(keras.layers.Dense(8)(inputs))
    x = GhostBatchNormalization(4)(keras.layers.Dense(8)(x))
    model = compiled(keras.Model(inputs, keras.layers.Dense(3)(x)), 12)
    assert memory.largest_micro_batch(model, 96, 0) == 12


def test_replicas_of_one_processor_share_its_memory():
    one, four = (memory.half_of_the_device(n) for n in (1, 4))
    assert 2**28 < one < 2**50
    assert four == one / 4
