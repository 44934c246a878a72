"""Changes layers of a model in place, and drops what was compiled with them."""

import keras

from gbn_keras._keras_internals import layers_of, replace_build


def change_class(layer: keras.layers.Layer, to: type[keras.layers.Layer]) -> None:
    """Makes a layer an instance of another class, which has the same variables.

    In general, a layer cannot be replaced by a new one: models refer to it in graphs,
    lists and attributes, and other layers and optimizers refer to it or its variables.
    """
    # The layer's own `__setattr__` is for attributes that Keras should track.
    object.__setattr__(layer, "__class__", to)
    replace_build(layer, to.build.__get__(layer))


def place_of(layer: keras.layers.Layer) -> str:
    """How messages name a layer: with the models that hold it, once it is built."""
    return layer.path or layer.name


def forget_traces(model: keras.layers.Layer) -> None:
    """Drops compiled functions, because they contain the layers as they were."""
    for layer in layers_of(model):
        if isinstance(layer, keras.Model):
            layer.train_function = None
            layer.test_function = None
            layer.predict_function = None
