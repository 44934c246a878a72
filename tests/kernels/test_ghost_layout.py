"""Sums over ghosts are those of numpy, in any number of stages; gradients, too."""

import numpy as np
import pytest
from backend import WAYS, compiled, with_gradients
from keras import ops

from gbn_keras.kernels.ghost_layout import GhostLayout
from gbn_keras.kernels.paired_sums import paired_sums

LAYOUTS = [
    # ghosts, examples of each, shape of an example, axis, slices
    (2, 32, (3,), 1, 16),
    (2, 100, (3,), 1, 20),
    (3, 14, (3,), 1, 7),
    (2, 13, (3,), 1, None),  # A prime number of rows.
    (2, 1, (3,), 1, None),
    (2, 4, (8, 3), 2, 16),
    (2, 6, (2, 7, 3), 3, 14),  # 12 would cross the borders of 7.
    (1, 16, (3, 2, 4), 1, 8),  # Channels first.
    (0, 32, (3,), 1, 16),
]


@pytest.mark.parametrize("ghosts, size, shape, axis, slices", LAYOUTS)
def test_both_sums_are_over_each_ghost_and_channel(ghosts, size, shape, axis, slices):
    layout = GhostLayout(ghosts, size, shape, axis, in_two_stages=True)
    assert layout.in_two_stages == (slices is not None)
    first, second = (
        np.random.default_rng(0)
        .normal(size=(2, ghosts * size, *shape))
        .astype("float32")
    )
    if slices:
        assert layout.view(ops.array(first)).shape[2] == slices

    def sums(*tensors):
        views = [layout.view(tensor) for tensor in tensors]
        found = (*layout.sums(*views), *map(layout.sum, views))
        return [layout.by_ghost(each) for each in found]

    found = compiled(sums)(*map(ops.array, (first, second)))
    others = tuple(a for a in range(1, len(shape) + 2) if a != axis + 1)
    for result, values in zip(found, (first, second) * 2, strict=True):
        expected = values.reshape(ghosts, size, *shape).sum(others)
        np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=1e-4)


def test_paired_sums_can_be_differentiated():
    first, second = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")

    def loss_and_sums(first, second):
        sums = paired_sums(first, first * second, axis=1)
        return ops.sum(sums[0] ** 2) + ops.sum(sums[1] ** 3), sums

    gradients = with_gradients(loss_and_sums, (first, second), WAYS[-1])[1]
    of_first = 2 * first.sum(1, keepdims=True)
    of_product = 3 * (first * second).sum(1, keepdims=True) ** 2
    expected = (of_first + of_product * second, of_product * first)
    for gradient, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-4)
