"""A ghost layer is saved, exported and copied as any layer is."""

import copy

import keras
import numpy as np
from backend import tensorflow_only
from ghost_layers import predict

from gbn_keras import GhostBatchNormalization


def small_model(normalization):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, use_bias=False),
            normalization,
            keras.layers.Dense(2),
        ]
    )


def test_saved_models_come_back(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model = small_model(GhostBatchNormalization(4, axis=-1, momentum=0.7))
    model(inputs, training=True)
    expected = predict(model, inputs)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, inputs), expected)
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(
        predict(loaded, inputs, training=True), predict(model, inputs, training=True)
    )


@tensorflow_only
def test_an_exported_model_serves_the_same(tmp_path):
    import tensorflow as tf

    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model = small_model(GhostBatchNormalization(4))
    model(inputs, training=True)
    model.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    np.testing.assert_allclose(
        served.serve(inputs), model(inputs), rtol=1e-5, atol=1e-6
    )


def test_a_cloned_layer_is_a_ghost_layer():
    model = small_model(GhostBatchNormalization(4, momentum=0.7))
    for clone in (keras.models.clone_model(model), copy.deepcopy(model)):
        assert type(clone.layers[1]) is GhostBatchNormalization
        assert clone.layers[1].get_config() == model.layers[1].get_config()


def test_weights_are_interchangeable_with_plain_batch_normalization(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    ghost = small_model(GhostBatchNormalization(4))
    plain = small_model(keras.layers.BatchNormalization())
    ghost(inputs, training=True)
    for source, target in ((ghost, plain), (plain, ghost)):
        source.save_weights(tmp_path / "model.weights.h5")
        expected = predict(source, inputs)
        target.set_weights([np.zeros_like(w) for w in target.get_weights()])
        target.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_array_equal(predict(target, inputs), expected)
