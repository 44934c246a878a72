"""What a class of layers is called: one name in files, another on the screen."""

import sys

import keras

from gbn_keras._keras_internals import SHOWS_LAYERS, WRITES_WEIGHTS


class FiledAsParent(type(keras.layers.BatchNormalization)):  # type: ignore[misc]
    """Of classes whose weights are to be exchanged with those of another class.

    Keras files a layer's weights under `type(layer).__name__`, in `.weights.h5` and
    `.keras` alike, and prints the same in `summary()` and `plot_model`; it asks the
    layer for nothing by which one could tell these apart. So the name depends on who
    reads it: to Keras's readers and writers of weights it is the class's `filed_as`,
    to its tables and plots it is the class's name with the `virtual_batch_size`, to
    everything else the class's name.

    This is known to hold for Keras 3.12 to 3.15. Should a later Keras move these
    modules, files would be the first to show it, and the tests of exchange fail.
    """

    @property
    def __name__(cls):
        name, reader = super().__name__, sys._getframe(1)
        module = reader.f_globals.get("__name__")
        if module in WRITES_WEIGHTS:
            # Derived classes add to it, and are filed under their own names.
            return vars(cls).get("filed_as", name)
        if module in SHOWS_LAYERS:
            layer = reader.f_locals.get("layer")
            if type(layer) is cls:
                return f"{name}({layer.virtual_batch_size})"
        return name
