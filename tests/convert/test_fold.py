"""Ghost layers take over the ReLU that follows, if they alone feed it."""

import keras
import numpy as np
import pytest
from convertible import leave_kernels_to_slow_tests, of_class, predict
from keras import layers

from gbn_keras import GhostBatchNormalization, to_batch_norm, to_ghost_batch_norm

nothing_to_compile = pytest.fixture(autouse=True)(leave_kernels_to_slow_tests)
BatchNormalization = layers.BatchNormalization
VALUES = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")


class Subclassed(keras.Model):
    """Calls its layers as it likes."""

    def __init__(self):
        super().__init__()
        self.block = [BatchNormalization(name="own"), layers.ReLU()]
        nested = [BatchNormalization(name="yes5"), layers.ReLU()]
        self.nested = keras.Sequential([keras.Input((4,)), *nested])

    def call(self, inputs):
        """Uses what one of them gives twice."""
        normalized = self.block[0](self.nested(inputs))
        return self.block[1](normalized) + normalized


def model_of_all_kinds():
    """Six layers whose ReLU can be taken over, called `yes`, and others."""
    inputs = x = keras.Input((6,))
    for number, relu in enumerate((layers.ReLU(), layers.Activation("relu"))):
        x = relu(BatchNormalization(name=f"yes{number}")(layers.Dense(4)(x)))
    nested = [keras.Input((4,)), BatchNormalization(name="yes2"), layers.ReLU()]
    x = keras.Sequential(nested)(x)
    nested = [layers.Dense(4), BatchNormalization(name="yes3"), layers.ReLU()]
    x = keras.Sequential(nested)(x)
    x = layers.ReLU()(BatchNormalization(name="yes4")(x))
    for other in (layers.ReLU(max_value=3), layers.Activation("tanh")):
        x = other(BatchNormalization()(x))
    normalized = BatchNormalization(name="got_twice")(x)
    x = layers.Add()([layers.ReLU()(normalized), normalized])
    twice, relu = BatchNormalization(name="called_twice"), layers.ReLU()
    x = layers.Add()([relu(twice(x)), twice(x)])
    shared = layers.ReLU()
    x = layers.Add()([shared(BatchNormalization()(x)), shared(x)])
    half = layers.ReLU(dtype="float16")(BatchNormalization()(x))
    output = BatchNormalization(name="output")(Subclassed()(x))
    return keras.Model(inputs, [half, output, layers.ReLU()(output)])


def test_layers_take_over_their_relu_and_give_it_back():
    model = model_of_all_kinds()
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.2, 1, w.shape) for w in model.get_weights()])
    expected = predict(model, VALUES)
    names = [layer.name for layer in model._flatten_layers()]
    paths = [variable.path for variable in model.variables]
    assert to_ghost_batch_norm(model, 4, with_relu=True) == 14
    assert to_ghost_batch_norm(model, 4, with_relu=True) == 0
    with_relu = [
        layer.name
        for layer in of_class(model, GhostBatchNormalization)
        if layer.activation is keras.activations.relu
    ]
    assert sorted(with_relu) == [f"yes{number}" for number in range(6)]
    for convert in (lambda: None, lambda: to_batch_norm(model)):
        convert()
        keras.tree.map_structure(
            np.testing.assert_array_equal, predict(model, VALUES), expected
        )
        assert [layer.name for layer in model._flatten_layers()] == names
        assert [variable.path for variable in model.variables] == paths
    assert not of_class(model, layers.Identity)
    assert len(of_class(model, layers.Activation)) == 6 + 1


def small_model():
    block = (BatchNormalization(), layers.ReLU(), layers.Dense(2))
    return keras.Sequential([keras.Input((6,)), *block])


def test_it_is_only_done_when_asked_and_also_later():
    model = small_model()
    assert to_ghost_batch_norm(model, 4) == 1
    assert len(of_class(model, layers.ReLU)) == 1
    assert to_ghost_batch_norm(model, 4, with_relu=True) == 1
    assert not of_class(model, layers.ReLU)


def test_what_took_over_trains_the_same_and_is_saved(tmp_path):
    models = small_model(), small_model()
    models[1].set_weights(models[0].get_weights())
    for model, with_relu in zip(models, (False, True), strict=True):
        to_ghost_batch_norm(model, 4, with_relu=with_relu)
        model.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
        targets = VALUES[:, :2]
        model.fit(VALUES, targets, batch_size=12, epochs=2, shuffle=False, verbose=0)
    results = [predict(model, VALUES) for model in models]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
    models[1].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, VALUES), results[1])
    assert to_batch_norm(loaded) == 1
    loaded.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not of_class(loaded, GhostBatchNormalization)
    np.testing.assert_array_equal(predict(loaded, VALUES), results[1])


def test_any_activation_goes_where_there_is_a_place_for_it():
    block = GhostBatchNormalization(4, activation="gelu"), layers.Identity()
    model = keras.Sequential([keras.Input((6,)), *block])
    expected = predict(model, VALUES)
    to_batch_norm(model)
    assert model.layers[1].activation is keras.activations.gelu
    np.testing.assert_array_equal(predict(model, VALUES), expected)


def test_without_a_place_for_the_activation_nothing_is_changed():
    first = GhostBatchNormalization(4, activation="relu", name="first")
    second = GhostBatchNormalization(4, activation="relu", name="second")
    model = keras.Sequential([keras.Input((6,)), second, layers.Identity(), first])
    with pytest.raises(ValueError, match=r"Received: \S*first without it\. Build"):
        to_batch_norm(model)
    assert type(model.layers[1]) is layers.Identity
    assert len(of_class(model, GhostBatchNormalization)) == 2
