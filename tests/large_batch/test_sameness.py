"""Replicas and micro-batches do not change the weights (invariant 2).

`test_strategy.py` has the same for machines.
"""

import functools
import itertools

import numpy as np
import pytest
import sameness
from replicas import replicas_of
from sameness import TOLERANCE

# Of the combinations: micro-batches alone, with replicas, and compiled. The first two
# have the same micro-batch, for which XLA compiles the ghosts once.
SOME = [
    ("convolutional", "float64", 1, 4, False),
    ("convolutional", "float64", 2, 2, False),
    pytest.param("f1", "float32", 2, 1, True, marks=pytest.mark.cluster),
]
EVERY = [*itertools.product(TOLERANCE, [1, 2, 4], [1, 2, 4], [False, True])]


# Ghosts that fit a share of 2, 4 or 8 replicas, that are larger, and that straddle.
# `test_cut_ghosts.py` has some of the latter, `test_strategy.py` has them on machines.
CUT = [*itertools.product(TOLERANCE, (2, 4, 8), (16, 64, 128, 512, 48, 100))]


@functools.cache
def one_device(network, dtype, jit, ghost=sameness.GHOST):
    """What Keras itself makes of it on one device."""
    return sameness.trained(network, dtype, jit=jit, wrapped=False, ghost=ghost)


@functools.lru_cache(len(SOME))
def wrapped(network, dtype, replicas, micro_batches, jit):
    """What micro-batches on replicas make of it."""
    strategy = replicas_of(replicas)
    return sameness.trained(network, dtype, strategy, micro_batches, jit)


def check(network, dtype, replicas, micro_batches, jit):
    result = wrapped(network, dtype, replicas, micro_batches, jit)
    # The learning rate, in float32 for any model, XLA rounds otherwise.
    expected = one_device(network, dtype, jit and dtype == "float64")
    assert sameness.distance(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("network, dtype, replicas, micro_batches, jit", SOME)
def test_replicas_and_micro_batches_do_not_matter(
    network, dtype, replicas, micro_batches, jit
):
    check(network, dtype, replicas, micro_batches, jit)


@pytest.mark.parametrize("network, dtype, replicas, micro_batches, jit", SOME)
def test_logs_of_each_update_and_scores_are_those_of_the_whole_batch(
    network, dtype, replicas, micro_batches, jit
):
    figures = wrapped(network, dtype, replicas, micro_batches, jit)[-1]
    expected = one_device(network, dtype, False)[-1]
    np.testing.assert_allclose(figures, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", sameness.NETWORKS)
@pytest.mark.parametrize("dtype, replicas, micro_batches, jit", EVERY)
def test_no_combination_matters(network, dtype, replicas, micro_batches, jit):
    check(network, dtype, replicas, micro_batches, jit)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, replicas, ghost", CUT)
def test_ghosts_of_any_size_on_any_replicas_do_not_matter(dtype, replicas, ghost):
    strategy = replicas_of(replicas)
    result = sameness.trained("f1", dtype, strategy, ghost=ghost)
    expected = one_device("f1", dtype, False, ghost)
    assert sameness.distance(result, expected) < TOLERANCE[dtype]
