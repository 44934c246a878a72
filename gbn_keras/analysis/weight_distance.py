"""`WeightDistance` logs how far the weights travel, `||w_t - w_0||`.

In the paper's Figure 2, the distance grows with the logarithm of the number of updates
while the learning rate is high, for every batch size. A random walk on a rough
landscape does the same.
"""

import math
import os
import pathlib

import numpy as np
from keras import ops

from gbn_keras.analysis.compiled import compiled
from gbn_keras.analysis.log_spaced import LogSpacedLog
from gbn_keras.whole_file import whole_file


class WeightDistance(LogSpacedLog):
    """Logs the distance of the weights from where they started.

    It writes `weight_distance.csv`, with rows at logarithmically spaced updates (see
    `LogSpacedLog`). The columns are `updates`, the Euclidean distance `total` over all
    trainable weights, and one distance per layer with weights, under the layer's path.
    It also writes `initial_weights.npz`, so that a resumed training measures from the
    same weights.

    Args:
        folder: Folder of the two files. It is created.
        start: Weights to measure from, in the form of `model.trainable_variables`. By
            default, these are the weights at the start of training. If training
            resumes, they are those in the folder.

    Raises:
        ValueError: In `on_train_begin`, if training resumes but the folder does not
            contain the weights that it started from.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 3 and Figure
        2, arXiv 1705.08741.
    """

    def __init__(self, folder: str | os.PathLike, start: list | None = None):
        self._folder = pathlib.Path(folder)
        self._given = start
        self._start_file = self._folder / "initial_weights.npz"
        super().__init__(self._folder / "weight_distance.csv")

    def on_train_begin(self, logs=None):
        """Stores the weights to measure from."""
        weights = self.model.trainable_variables
        self._layers = _by_layer(weights)
        updates = self._updates_made()
        if updates and self._given is None:
            self._start = self._read_start(weights, updates)
        else:
            self._start = self._given or [ops.copy(weight) for weight in weights]
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._start_file, self._start)
        # Uncompiled, the operations would take five times as long.
        self._squared_distances = compiled(_squared_distances)
        super().on_train_begin(logs)

    def columns(self) -> list[str]:
        """`total` and the paths of the layers."""
        return ["total", *self._layers]

    def row(self) -> list[float]:
        """The distances now."""
        squares = ops.convert_to_numpy(
            self._squared_distances(
                [weight.value for weight in self.model.trainable_variables], self._start
            )
        ).astype("float64")
        by_layer = [squares[places].sum() for places in self._layers.values()]
        return [math.sqrt(squares.sum()), *np.sqrt(by_layer)]

    def _read_start(self, weights, updates):
        try:
            with np.load(self._start_file, allow_pickle=False) as arrays:
                start = [arrays[str(place)] for place in range(len(arrays.files))]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"folder must contain {self._start_file.name}, the weights from which "
                f"the training started {updates} updates ago. Received: "
                f"folder='{self._folder}' ({error})."
            ) from error
        shapes = [tuple(weight.shape) for weight in weights]
        if [array.shape for array in start] != shapes:
            raise ValueError(
                f"folder must contain the {self._start_file.name} of this model. "
                f"Received: folder='{self._folder}', whose weights have other shapes."
            )
        return [
            ops.convert_to_tensor(array, dtype=weight.dtype)
            for array, weight in zip(start, weights, strict=True)
        ]


def _squared_distances(weights, start):
    """`(weights,)`: the squared distance of each weight."""
    return ops.stack(
        [
            ops.sum(ops.square(ops.cast(now, "float32") - ops.cast(then, "float32")))
            for now, then in zip(weights, start, strict=True)
        ]
    )


def _by_layer(weights):
    """The indices of each layer's weights in the list."""
    layers = {}
    for place, weight in enumerate(weights):
        layers.setdefault(weight.path.rpartition("/")[0], []).append(place)
    return layers


def _write(path, arrays):
    arrays = [ops.convert_to_numpy(array) for array in arrays]
    # numpy cannot save bfloat16.
    arrays = [
        array.astype(np.promote_types(array.dtype, "float32")) for array in arrays
    ]
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **{str(place): array for place, array in enumerate(arrays)})
