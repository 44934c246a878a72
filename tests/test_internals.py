"""A new version of Keras or TensorFlow cannot drop a private name unnoticed."""

import importlib
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import gbn_keras
from gbn_keras import _keras_internals as internals
from gbn_keras import _tensorflow_internals

SOURCES = pathlib.Path(gbn_keras.__file__).parent.rglob("*.py")
# What the two files wrap, and where Keras and TensorFlow keep what they do not publish.
PRIVATE = re.compile(
    r"keras\.src|tensorflow\.python|\._(?:flatten_layers|compile_loss|compile_metrics|"
    r"loss_tracker|get_own_metrics|metrics|symbolic_build|flat_losses|"
    r"learning_rate|all_reduce_sum_gradients|clip_gradients|momentums|velocities|"
    r"velocity_hats|get_variable_index|initial_epoch|auto_config|nodes_by_depth)\b"
)


@pytest.fixture
def model():
    layers = [keras.Input((3,)), keras.layers.BatchNormalization()]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def test_what_a_model_tells(model):
    internals.build_by_trace(model, (np.ones((2, 3)), np.ones((2, 3))))
    assert model.optimizer.built
    assert internals.layers_of(model)[-1] is model.layers[-1]
    assert model.layers[-1] in internals.held_by(model)
    assert internals.calls_of(model) == [(model.layers[-1], [None])]
    assert internals.calls_of(model.layers[-1]) is None
    compile_loss = internals.compile_loss_of(model)
    (loss,) = internals.losses_of_outputs(compile_loss)
    assert float(loss.loss(np.ones(3), np.zeros(3))) == 1
    internals.replace_losses_of_outputs(compile_loss, [loss])
    assert internals.losses_of_outputs(compile_loss) == [loss]
    assert internals.compile_metrics_of(model).built
    assert internals.loss_tracker_of(model).name == "loss"
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert internals.learning_rate_of(keras.optimizers.SGD(schedule)) is schedule
    assert internals.number_of_compiled_metrics(model) == 2
    assert isinstance(internals.metrics_that_layers_track(model), list)


def test_masks_that_layers_give():
    tokens = keras.ops.convert_to_tensor([[0, 3]])
    masked = keras.layers.Embedding(5, 4, mask_zero=True)(tokens)
    assert internals.mask_of(masked).numpy().tolist() == [[False, True]]
    assert internals.mask_of(tokens) is None


def test_what_an_optimizer_trains():
    optimizer, variable = keras.optimizers.SGD(), keras.Variable([0.0])
    assert internals.variables_to_train(optimizer) == []
    optimizer.build([variable])
    assert internals.variables_to_train(optimizer)[0] is variable


def test_a_training_starts_where_a_callback_says(model):
    class Start(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            internals.start_at_epoch(model, 3)

    ones = np.ones((2, 3))
    history = model.fit(ones, ones, epochs=5, verbose=0, callbacks=[Start()])
    assert history.epoch == [3, 4]


def test_what_keras_calls_is_there():
    method = keras.optimizers.SGD()._all_reduce_sum_gradients
    assert list(inspect.signature(method).parameters) == ["grads_and_vars"]
    for name in (*internals.WRITES_WEIGHTS, *internals.SHOWS_LAYERS):
        assert "__class__.__name__" in inspect.getsource(importlib.import_module(name))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_what_adam_keeps(amsgrad):
    adam = keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.75, amsgrad=amsgrad)
    variables = [keras.Variable([0.0]), keras.Variable([0.0])]
    adam.apply([np.float32([2]), np.float32([4])], variables)
    first, second, largest = internals.adam_moments_of(adam, variables[1])
    assert (float(first[0]), float(second[0])) == (2, 4)
    assert (largest is not None) == amsgrad


def test_an_optimizer_may_clip_in_its_own_way():
    class Halved(internals.OwnClipping, keras.optimizers.SGD):
        def clipped(self, gradients, clip):
            return [gradient / 2 for gradient in clip(gradients)]

    variable = keras.Variable([1.0])
    Halved(1.0, clipvalue=0.5).apply([np.float32([4])], [variable])
    assert float(variable[0]) == 0.75


def test_a_layer_is_built_by_what_replaces_its_build():
    layer, built = keras.layers.Dense(2), []
    internals.replace_build(layer, built.append)
    layer.build((3, 4))
    assert built == [(3, 4)] and layer.built


def test_what_a_functional_model_calls():
    inputs, dense, add = keras.Input((3,)), keras.layers.Dense(3), keras.layers.Add()
    hidden = dense(inputs)
    model = keras.Model(inputs, [add([hidden, hidden]), hidden])
    found = dict(internals.calls_of(model))
    assert found[model.layers[0]] == [dense]
    assert found[dense] == [add, add, None] and found[add] == [None]


def test_a_layer_tells_the_arguments_of_another():
    class Scaled(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()

    one, other = Scaled(1), Scaled(2)
    internals.take_configuration(one, other)
    assert one.get_config()["factor"] == 2


def test_what_tensorflow_tells():
    assert not _tensorflow_internals.is_compiled_by_xla()
    assert isinstance(_tensorflow_internals.accelerators_memory(), list)
    x = tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.stop_gradient(x)
        _tensorflow_internals.record_gradient("Test", [y], [x], lambda up: [3 * up])
    assert float(tape.gradient(y, x)) == 3


def test_private_names_stand_in_two_files_only():
    assert not {
        f"{file.name}: {match}"
        for file in SOURCES
        if not file.name.endswith("_internals.py")
        for match in PRIVATE.findall(file.read_text())
    }
