"""Converts a model's batch normalization to ghost batch normalization, and back."""

import warnings

import keras

from gbn_keras._keras_internals import layers_of
from gbn_keras.arguments import integer
from gbn_keras.convert.fold import fold_relu, unfold
from gbn_keras.convert.in_place import change_class, forget_traces, place_of
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization


def to_ghost_batch_norm(
    model: keras.Model, virtual_batch_size: int = 128, *, with_relu: bool = False
) -> int:
    """Makes all batch normalization of a model use ghosts, from now on.

    It changes the model in place. Every `keras.layers.BatchNormalization`, at any
    depth, becomes a `GhostBatchNormalization`. It stays the same object, with the same
    variables, name, `trainable` flag, dtype policy and place in the graph. So the
    conversion works for functional, Sequential and subclassed models, and for layers
    that are shared, wrapped or not built yet. A compiled model keeps its optimizer and
    the optimizer's state. Predictions stay the same bit for bit, because only training
    uses ghosts. Layers that use ghosts already take the new `virtual_batch_size`.

    With `with_relu`, the layers also compute the ReLU that follows them, which makes
    training faster. A ReLU layer, or an `Activation("relu")`, becomes a
    `keras.layers.Identity` of the same name if it alone gets the output of the
    normalization, and both are called once, in a functional or Sequential model. It
    must not be used by a model outside of this one.

    Three things outside the model do not change with it:

    - A `LargeBatchModel` reads the ghost sizes when you create it, and other models
      that contain this one read them when you compile them. Convert first.
    - A model whose constructor makes its own layers (a subclassed model, a keras-hub
      backbone) makes plain ones again in `load_model` and `from_config`. The weights
      fit; convert again. Other models load with their ghosts, as saved.
    - Some models make layers only when they are built. Build them first.

    Example:
    ```python
    model = keras.applications.ResNet50(weights=None, classes=10)
    to_ghost_batch_norm(model, virtual_batch_size=64)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=2048)
    to_batch_norm(model)
    model.save("model.keras")  # Loads without gbn_keras installed.
    ```

    Args:
        model: Any Keras 3 model. It is changed.
        virtual_batch_size: Number of examples per ghost, at least 1.
        with_relu: Whether the layers compute the ReLU that follows them, too.

    Returns:
        The number of normalization layers that changed. A shared layer counts once. It
        is 0 if all are as asked already.

    Raises:
        ValueError: If the model has no batch normalization; if one of its layers has
            `synchronized=True`, `renorm=True` or the batch axis as its channel axis; if
            `virtual_batch_size` is not a positive integer. The model then stays
            unchanged.

    Warns:
        UserWarning: If the model has layers of classes derived from
            `BatchNormalization`. They may compute anything, so the warning names them
            and they stay unchanged.

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
        if type(layer) is not GhostBatchNormalization:
            change_class(layer, GhostBatchNormalization)
            layer.activation = keras.activations.linear
        layer.virtual_batch_size = virtual_batch_size
    if with_relu:
        changed += [x for x in fold_relu(model) if x not in changed]
    if changed:
        forget_traces(model)
    _warn_of(
        derived,
        "To use ghosts, derive their classes from GhostBatchNormalization.",
    )
    return len(changed)


def to_batch_norm(model: keras.Model) -> int:
    """Makes a model plain Keras again: the inverse of `to_ghost_batch_norm`.

    It changes the model in place. Every `GhostBatchNormalization` becomes a
    `keras.layers.BatchNormalization` and otherwise stays the same, as in
    `to_ghost_batch_norm`. If it has an activation, the `keras.layers.Identity` that
    follows becomes a `keras.layers.Activation` with it. The networks of
    `gbn_keras.networks` have these, too. A model without them cannot be converted: a
    new layer would change the order of the weights in files.

    Predictions stay the same bit for bit. You can load what you save or export
    afterwards without this package. But a saved model also contains what you compiled
    it with. If that includes a `RegimeAdaptation` or anything else from this package,
    compile with plain Keras objects before you save, or load with `compile=False`.

    Args:
        model: Any Keras 3 model. It is changed.

    Returns:
        The number of layers that changed. A shared layer counts once. It is 0 if all
        layers are plain already.

    Raises:
        ValueError: If the model has no batch normalization, or a layer with an
            activation that not just one `keras.layers.Identity` follows. The model then
            stays unchanged.

    Warns:
        UserWarning: If the model has layers of classes derived from
            `GhostBatchNormalization`. The warning names them, and they stay unchanged.
    """
    layers, derived = _batch_normalizations(model)
    changed = [layer for layer in layers if isinstance(layer, GhostBatchNormalization)]
    unfold(model, changed)
    for layer in changed:
        change_class(layer, keras.layers.BatchNormalization)
        del layer.virtual_batch_size, layer.activation
    if changed:
        forget_traces(model)
    ghosts = [layer for layer in derived if isinstance(layer, GhostBatchNormalization)]
    _warn_of(ghosts, "They keep their ghosts, and files of the model need gbn_keras.")
    return len(changed)


def _batch_normalizations(model):
    """`(layers, derived)`: layers of the two classes, and of derived classes."""
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(f"model must be a Keras 3 model. Received: model={model!r}.")
    found = [
        layer
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not found:
        raise ValueError(
            "model must have batch normalization layers. Received: "
            f"model={model.name!r}, which has none. If the model makes its layers "
            "when it is built, build it first."
        )
    classes = (keras.layers.BatchNormalization, GhostBatchNormalization)
    layers = [layer for layer in found if type(layer) in classes]
    return layers, [layer for layer in found if type(layer) not in classes]


def _refuse_what_ghosts_cannot_replace(layers):
    refused = []
    for layer in layers:
        for argument in ("synchronized", "renorm"):
            # Keras added `renorm` in 3.14.
            if getattr(layer, argument, False):
                refused.append(f"{argument}=True in {place_of(layer)}")
        # If the layer is not built yet, its `build` checks the axis.
        if layer.built and layer.axis % layer.input_spec.ndim == 0:
            refused.append(f"axis={layer.axis}, the batch axis, in {place_of(layer)}")
    if refused:
        raise ValueError(
            "model must have only batch normalization that uses the batch's own "
            "statistics per channel, because ghosts replace these. Received: "
            f"{', '.join(refused)}. Set `synchronized` of these layers to False, and "
            "build the model without the rest."
        )


def _warn_of(derived, consequence):
    if derived:
        places = ", ".join(f"{place_of(x)} ({type(x).__qualname__})" for x in derived)
        warnings.warn(
            "Layers of classes derived from batch normalization are not converted: "
            f"{places}. {consequence}",
            stacklevel=3,
        )
