"""Ghost layers take over the ReLU that follows them, and give it back.

`keras.layers.Identity` takes the place of the ReLU layer. So the model's graph stays as
it is, and with it the order of its weights, which Keras derives from the distance of
each layer to the output.
"""

from collections import defaultdict

import keras

from gbn_keras._keras_internals import (
    calls_of,
    held_by,
    layers_of,
    take_configuration,
)
from gbn_keras.convert.in_place import change_class, place_of
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.plain_relu import is_plain_relu


def fold_relu(model: keras.layers.Layer) -> list[GhostBatchNormalization]:
    """Makes ghost layers compute the ReLU that follows them, in place.

    That is done for each `GhostBatchNormalization` without an activation whose output
    goes to one layer of plain ReLU and nowhere else, with both called once, in a
    functional or Sequential model at any depth. The ReLU layer keeps its name and its
    place, and becomes a `keras.layers.Identity`.

    Returns:
        The ghost layers that compute their ReLU from now on.
    """
    folded = []
    for layer, relu in _pairs(model):
        if (
            type(layer) is GhostBatchNormalization
            and layer.activation is keras.activations.linear
            and is_plain_relu(relu)
            and relu.compute_dtype == layer.compute_dtype
            and layer.activity_regularizer is relu.activity_regularizer is None
        ):
            _make_identity(relu)
            layer.activation = keras.activations.relu
            folded.append(layer)
    return folded


def _make_identity(layer):
    """Makes a layer one that `keras.layers.Identity` would have made."""
    change_class(layer, keras.layers.Identity)
    made = keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
    take_configuration(layer, made)
    for name in vars(layer).keys() - vars(made).keys():
        if not name.startswith("_"):
            delattr(layer, name)


def unfold(model: keras.layers.Layer, layers: list[GhostBatchNormalization]) -> None:
    """Makes the `Identity` after each layer with an activation that activation.

    Args:
        model: A model that may have been folded. It is changed.
        layers: Ghost layers of it. Those with an activation lose it.

    Raises:
        ValueError: If a layer has an activation, and not just one `Identity` follows.
            The model then stays unchanged.
    """
    after = {
        id(layer): following
        for layer, following in _pairs(model)
        if type(following) is keras.layers.Identity
    }
    activated = [x for x in layers if x.activation is not keras.activations.linear]
    without = [place_of(x) for x in activated if id(x) not in after]
    if without:
        raise ValueError(
            "model must have a keras.layers.Identity() after each layer with an "
            "activation, to put the activation there, because BatchNormalization has "
            f"none. Received: {', '.join(without)} without it. Build the model with "
            "BatchNormalization and Activation layers and call set_weights(), or with "
            "Identity after these layers."
        )
    for layer in activated:
        following = after[id(layer)]
        change_class(following, keras.layers.Activation)
        following.activation = layer.activation
        layer.activation = keras.activations.linear


def _pairs(model):
    """Layers called once with the only layer that gets their output, called once too.

    Not those that a subclassed model or a wrapper holds, which may call them anyhow.
    """
    calls, held = defaultdict(list), set()
    for holder in layers_of(model):
        found = calls_of(holder)
        if found is None:
            held |= set(map(id, held_by(holder)))
        for layer, getters in found or []:
            calls[id(layer)].append((layer, getters))
    once = {key: of[0] for key, of in calls.items() if len(of) == 1 and key not in held}
    for layer, getters in once.values():
        if len(getters) == 1 and id(getters[0]) in once:
            yield layer, getters[0]
