"""The speed of PyTorch is that of the same networks."""

import pathlib

import numpy as np
import pytest
from keras.layers import BatchNormalization

from gbn_keras.networks import find_network


@pytest.fixture
def peers(monkeypatch):
    """The module that times the program beside PyTorch."""
    benchmarks = pathlib.Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    import train_speed_peers

    return train_speed_peers


@pytest.mark.backends
@pytest.mark.parametrize(
    "network, shape",
    [("f1", (28, 28, 1)), ("c1", (32, 32, 3)), ("resnet44", (32, 32, 3))],
)
def test_pytorchs_network_has_the_parameters_of_the_programs(peers, network, shape):
    build, _ = find_network(network)
    model = build(shape, 10, BatchNormalization)
    ours = sum(int(np.prod(x.shape)) for x in model.trainable_variables)
    with peers.pytorch_updates(network, 4) as (updates, facts):
        assert facts["parameters"] == ours
        assert updates(2) > 0
