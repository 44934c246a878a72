"""Short trainings with the program: flags, a small network, and what they write."""

import contextlib
import functools

import keras
import pytest

from gbn_keras.networks import NETWORKS, f1
from gbn_keras.training.run import events

SHORT = ("--batch_size=256", "--stretch=1", "--epochs=2")


@contextlib.contextmanager
def shallow_network():
    """Gives the program a network of two hidden layers for digits, instead of four.

    A short training spends its time on tracing, layer by layer.
    """
    with pytest.MonkeyPatch.context() as patch:
        shallow = functools.partial(f1, width=64, depth=2)
        patch.setitem(NETWORKS, "f1_digits", shallow)
        yield


def weights(run_dir):
    model = keras.models.load_model(f"{run_dir}/model.keras")
    return [*model.get_weights(), *[v.numpy() for v in model.optimizer.variables]]


def curves(folder):
    """The points of TensorBoard's files in a folder: by tag, by update."""
    found = {}
    for event in events.read_events(folder):
        for point in event.summary.value:
            (value,) = point.tensor.float_val
            points = found.setdefault(point.tag, {})
            assert event.step not in points
            points[event.step] = value
    return found
