"""An activation inside the layer does what it does after the layer."""

import keras
import numpy as np
import pytest
from backend import IS_JAX, SLOW_ON_JAX
from ghost_layers import build_pair, predict
from keras import ops

from gbn_keras import GhostBatchNormalization

RELU = keras.activations.relu


def trained(size, inside, after):
    """Weights after three updates, and predictions before and after."""
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(22, 2)), random.normal(size=(22, 1))
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3), GhostBatchNormalization(size, activation=inside)]
    layers += [keras.layers.Activation(after), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=IS_JAX)
    before = predict(model, inputs)
    # Batches of 10, 10 and 2: a remainder and less than a ghost among them.
    model.fit(inputs, targets, batch_size=10, shuffle=False, verbose=0)
    return [before, predict(model, inputs), *model.get_weights()]


@pytest.mark.parametrize(
    "size, activation",
    [
        (4, "relu"),
        pytest.param(4, "tanh", marks=SLOW_ON_JAX),
        (None, keras.layers.ReLU(max_value=0.5)),
        pytest.param(4, lambda x: x * ops.sigmoid(x), marks=pytest.mark.slow),
    ],
)
def test_a_model_trains_and_predicts_as_with_an_activation_layer(size, activation):
    inside, after = trained(size, activation, None), trained(size, None, activation)
    assert not np.allclose(inside[1], inside[0])
    for result, reference in zip(inside, after, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype, training, masked",
    [
        ("mixed_float16", True, True),
        ("mixed_bfloat16", True, False),
        ("float32", True, True),
        ("mixed_float16", False, False),
    ],
)
def test_outputs_are_those_of_relu_after_the_layer(dtype, training, masked):
    inputs = np.random.default_rng(0).normal(3, 2, (13, 5, 3)).astype("float32")
    mask = np.random.default_rng(1).random((13, 5)) < 0.6 if masked else None
    layers = [build_pair(inputs.shape, 4, dtype=dtype)[0] for _ in range(2)]
    layers[0].activation = RELU
    inside, plain = (
        layer(ops.cast(inputs, layer.compute_dtype), training=training, mask=mask)
        for layer in layers
    )
    assert inside.dtype == plain.dtype
    inside, after = (ops.cast(x, "float32") for x in (inside, RELU(plain)))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (inside, after)))
    assert (ops.convert_to_numpy(inside) == 0).any()


def of_config(activation):
    return GhostBatchNormalization(4, activation=activation).get_config()["activation"]


def test_a_configuration_has_the_activation_as_keras_has_it():
    assert of_config(None) == "linear"
    assert of_config("gelu") == of_config(keras.activations.gelu) == "gelu"
    plain = "relu", RELU, keras.layers.ReLU(), keras.layers.Activation("relu")
    assert {of_config(activation) for activation in plain} == {"relu"}
    other = keras.layers.ReLU(max_value=6)
    assert of_config(other) == keras.activations.serialize(other)
    layer = GhostBatchNormalization(4, activation=other)
    again = GhostBatchNormalization.from_config(layer.get_config())
    assert type(again.activation) is keras.layers.ReLU
    assert again.activation.max_value == 6


def test_files_of_before_load(tmp_path):
    """Their configurations have no activation."""
    config = GhostBatchNormalization(4).get_config()
    del config["activation"]
    layer = GhostBatchNormalization.from_config(config)
    assert layer.activation is keras.activations.linear
    models = [
        keras.Sequential([keras.Input((3,)), GhostBatchNormalization(4, activation=x)])
        for x in (None, "relu")
    ]
    models[0].layers[0].moving_mean.assign([1.0, 2.0, 3.0])
    models[0].save_weights(tmp_path / "before.weights.h5")
    models[1].load_weights(tmp_path / "before.weights.h5")
    models[1].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = np.random.default_rng(0).normal(2, 2, (9, 3))
    expected = np.maximum(predict(models[0], inputs), 0)
    np.testing.assert_array_equal(predict(loaded, inputs), expected)


def test_an_activation_that_keras_does_not_know_is_refused():
    with pytest.raises(ValueError, match="rellu"):
        GhostBatchNormalization(4, activation="rellu")
