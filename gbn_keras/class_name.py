"""Gives a class of layers one name in files and another one on the screen."""

import sys

import keras

from gbn_keras._keras_internals import SHOWS_LAYERS, WRITES_WEIGHTS


class FiledAsParent(type(keras.layers.BatchNormalization)):  # type: ignore[misc]
    """Metaclass of layers that exchange weights with another class.

    Keras stores a layer's weights under `type(layer).__name__`, in both `.weights.h5`
    and `.keras` files. It prints the same name in `summary()` and `plot_model`. The
    layer cannot tell these uses apart. So the name depends on the module that reads it:

    | reader | name |
    |---|---|
    | readers and writers of weights | the class's `filed_as` |
    | tables and plots | the class's name with its `virtual_batch_size` |
    | everything else | the class's name |

    This works with Keras 3.12 to 3.15. If a later Keras moves these modules, files are
    affected first, and the tests that exchange weights fail.
    """

    @property
    def __name__(cls):
        name, reader = super().__name__, sys._getframe(1)
        module = reader.f_globals.get("__name__")
        if module in WRITES_WEIGHTS:
            # A derived class may have more weights, so files use its own name.
            return vars(cls).get("filed_as", name)
        if module in SHOWS_LAYERS:
            layer = reader.f_locals.get("layer")
            if type(layer) is cls:
                return f"{name}({layer.virtual_batch_size})"
        return name
