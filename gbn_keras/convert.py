"""Turns any model's batch normalization into ghost batch normalization, and back."""

import warnings

import keras

from gbn_keras._keras_internals import layers_of, replace_build
from gbn_keras.arguments import integer
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization


def to_ghost_batch_norm(model: keras.Model, virtual_batch_size: int = 128) -> int:
    """Lets all batch normalization of a model work in ghosts, from now on.

    The model is changed in place: every `keras.layers.BatchNormalization` in it, at any
    depth, becomes a `GhostBatchNormalization` and stays the same object, with the same
    variables, name, `trainable` flag, dtype policy and place in the graph. So this
    works for any model, functional, Sequential or subclassed, for layers that are
    shared, wrapped or not built yet; a compiled model keeps its optimizer and the
    optimizer's state. Predictions are bit for bit what they were: ghosts are for
    training. Layers that are ghosts already take the new `virtual_batch_size`.

    Three things outside the model do not follow by themselves:

    - A `LargeBatchModel` looks at the ghosts when it is made, other models that contain
      this one when they are compiled: convert first.
    - A model whose constructor makes its own layers (a subclassed model, a keras-hub
      backbone) makes plain ones again in `load_model` and `from_config`. The weights
      fit; convert again. Other models load as they were saved, with their ghosts.
    - Layers that a model makes only when it is built: build it first.

    Example:
    ```python
    model = keras.applications.ResNet50(weights=None, classes=10)
    to_ghost_batch_norm(model, virtual_batch_size=64)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=2048)
    to_batch_norm(model)
    model.save("model.keras")  # Loads where there is no gbn_keras.
    ```

    Args:
        model: Any Keras 3 model. It is changed.
        virtual_batch_size: Number of examples of a ghost, at least 1.

    Returns:
        The number of layers that changed, a shared one counted once; 0, if all of them
        have ghosts of that size already.

    Raises:
        ValueError: If there is no batch normalization in the model; if a layer of it
            has `synchronized=True` or `renorm=True`, or the batch for its channel axis;
            if `virtual_batch_size` is not a positive integer. Nothing is changed then.

    Warns:
        UserWarning: If there are layers of classes derived from `BatchNormalization`,
            which may compute anything: they are named, and stay what they are.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the
        generalization gap in large batch training of neural networks", section 4 and
        Algorithm 1, NIPS 2017, arXiv 1705.08741.
    """
    virtual_batch_size = integer("virtual_batch_size", virtual_batch_size, 1)
    layers, derived = _batch_normalizations(model)
    _refuse_what_ghosts_cannot_replace(layers)
    changed = [
        layer
        for layer in layers
        if getattr(layer, "virtual_batch_size", None) != virtual_batch_size
    ]
    for layer in changed:
        _change_class(layer, GhostBatchNormalization)
        layer.virtual_batch_size = virtual_batch_size
    _forget_traces(model, changed)
    _warn_of(
        derived,
        "For ghosts, derive their classes from GhostBatchNormalization.",
    )
    return len(changed)


def to_batch_norm(model: keras.Model) -> int:
    """Lets a model be plain Keras again: the inverse of `to_ghost_batch_norm`.

    Every `GhostBatchNormalization` in the model becomes a
    `keras.layers.BatchNormalization`, in place and in all else the same, as there.
    Predictions are bit for bit what they were. What is saved or exported from then on
    does not need this package. But a file also holds what the model was compiled with:
    after training with a `RegimeAdaptation` or anything else of this package, compile
    with what Keras has before you save, or load with `compile=False`.

    Args:
        model: Any Keras 3 model. It is changed.

    Returns:
        The number of layers that changed, a shared one counted once; 0, if all of them
        are plain already.

    Raises:
        ValueError: If there is no batch normalization in the model.

    Warns:
        UserWarning: If there are layers of classes derived from
            `GhostBatchNormalization`: they are named, and stay what they are.
    """
    layers, derived = _batch_normalizations(model)
    changed = [layer for layer in layers if isinstance(layer, GhostBatchNormalization)]
    for layer in changed:
        _change_class(layer, keras.layers.BatchNormalization)
        del layer.virtual_batch_size
    _forget_traces(model, changed)
    ghosts = [layer for layer in derived if isinstance(layer, GhostBatchNormalization)]
    _warn_of(ghosts, "They keep their ghosts, and files of the model need gbn_keras.")
    return len(changed)


def _batch_normalizations(model):
    """The layers of the two classes, and those of classes derived from them."""
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(f"model must be a Keras 3 model. Received: model={model!r}.")
    found = [
        layer
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not found:
        raise ValueError(
            "model must have layers of batch normalization. Received: model="
            f"{model.name!r}, which has none. If it makes its layers when it is built, "
            "build it first."
        )
    classes = (keras.layers.BatchNormalization, GhostBatchNormalization)
    layers = [layer for layer in found if type(layer) in classes]
    return layers, [layer for layer in found if type(layer) not in classes]


def _refuse_what_ghosts_cannot_replace(layers):
    refused = []
    for layer in layers:
        for argument in ("synchronized", "renorm"):
            # `renorm` came with Keras 3.14.
            if getattr(layer, argument, False):
                refused.append(f"{argument}=True in {_place(layer)}")
        # Where it is not built yet, `build` looks at the axis.
        if layer.built and layer.axis % layer.input_spec.ndim == 0:
            refused.append(f"axis={layer.axis}, the batch, in {_place(layer)}")
    if refused:
        raise ValueError(
            "model must have no batch normalization but by the batch's own statistics "
            f"of its channels, which ghosts replace. Received: {', '.join(refused)}. "
            "Set these layers' `synchronized` to False; make the model without the "
            "rest."
        )


def _change_class(layer, to):
    """Makes the layer one of the other class; both have the same variables.

    Layers cannot be exchanged in general: models hold them in graphs, lists and
    attributes, other layers and optimizers hold them or their variables.
    """
    # The layer's own way of setting attributes is for what it should track.
    object.__setattr__(layer, "__class__", to)
    replace_build(layer, to.build.__get__(layer))


def _forget_traces(model, changed):
    """The functions that a model has compiled know the layers as they were."""
    if not changed:
        return
    for layer in layers_of(model):
        if isinstance(layer, keras.Model):
            layer.train_function = None
            layer.test_function = None
            layer.predict_function = None


def _warn_of(derived, consequence):
    if derived:
        places = ", ".join(f"{_place(x)} ({type(x).__qualname__})" for x in derived)
        warnings.warn(
            "Layers of classes derived from batch normalization stay what they are: "
            f"{places}. {consequence}",
            stacklevel=3,
        )


def _place(layer):
    return layer.path or layer.name
