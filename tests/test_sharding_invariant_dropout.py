"""Dropout draws the same mask wherever an example is computed."""

import keras
import numpy as np
import pytest
from backend import IS_TENSORFLOW, tensorflow_only, with_gradients
from keras import ops
from keras.src.testing import TestCase

from gbn_keras import ShardingInvariantDropout
from gbn_keras.batch_part import BatchPart

if IS_TENSORFLOW:
    import tensorflow as tf

ONES = np.ones((24, 5, 3), "float32")


def drop(layer, inputs=ONES):
    return ops.convert_to_numpy(layer(inputs, training=True))


def part_drawer(way, shape):
    """A function of a part of a batch, and of the place of its first example."""
    layer = ShardingInvariantDropout(0.4, seed=2)
    seed = layer.seed_generator.state
    first_seed = seed.numpy()

    def draw(part, first):
        with BatchPart(first):
            return layer(part, training=True)

    if way != "eager":
        batch = None if way == "dynamic batch" else 8
        signature = [tf.TensorSpec([batch, *shape[1:]]), tf.TensorSpec([], "int32")]
        draw = tf.function(draw, input_signature=signature, jit_compile=way == "XLA")

    def first_draw(part, first):
        seed.assign(first_seed)
        return draw(tf.constant(part), tf.constant(first)).numpy()

    return first_draw


@tensorflow_only
@pytest.mark.parametrize("shape", [(24, 5, 3), (24, 1), (24, 8), (24, 2, 2, 3)])
@pytest.mark.parametrize("way", ["eager", "dynamic batch", "XLA"])
def test_parts_draw_what_the_whole_draws(shape, way):
    inputs = np.ones(shape, "float32")
    whole = drop(ShardingInvariantDropout(0.4, seed=2), inputs)
    assert 0.2 < (whole == 0).mean() < 0.6
    draw = part_drawer(way, shape)
    for size in (8,) if way == "XLA" else (1, 6, 8):
        parts = [draw(inputs[i : i + size], i) for i in range(0, 24, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_kept_and_the_mean_too(rate):
    inputs = np.ones((1000, 100), "float32")
    outputs = drop(ShardingInvariantDropout(rate, seed=3), inputs)
    assert (outputs == 0).mean() == pytest.approx(rate, abs=0.01)
    assert outputs.mean() == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(outputs[outputs != 0], 1 / (1 - rate), rtol=1e-6)
    # Examples and entries are independent of each other.
    dropped = outputs == 0
    assert dropped.mean(0).std() < 0.03 and dropped.mean(1).std() < 0.08


def test_every_call_and_every_seed_draws_anew():
    # Far from the first seed: on PyTorch Keras adds the number of the call to it.
    layer, other = (ShardingInvariantDropout(0.5, seed=seed) for seed in (1, 1000))
    drawn = [drop(layer), drop(layer), drop(other)]
    assert len({mask.tobytes() for mask in drawn}) == 3
    again = ShardingInvariantDropout(0.5, seed=1)
    np.testing.assert_array_equal(drop(again), drawn[0])


def test_one_mask_for_whole_channels():
    inputs = np.ones((24, 4, 4, 6), "float32")
    layer = ShardingInvariantDropout(0.5, noise_shape=(None, 1, 1, 6), seed=0)
    outputs = drop(layer, inputs)
    np.testing.assert_array_equal(outputs, outputs[:, :1, :1] * inputs)
    with pytest.raises(ValueError, match=r"noise_shape.*\(24, 1\)"):
        ShardingInvariantDropout(0.5, noise_shape=(24, 1))


@tensorflow_only
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_all_dtypes_draw_the_same_masks(dtype):
    layer = ShardingInvariantDropout(0.3, seed=4, dtype=dtype)
    outputs = layer(tf.cast(ONES, dtype), training=True)
    assert outputs.dtype == dtype
    expected = drop(ShardingInvariantDropout(0.3, seed=4)) == 0
    np.testing.assert_array_equal(np.array(outputs == 0), expected)


@pytest.mark.parametrize("rate", [0, 1])
def test_all_or_nothing(rate):
    layer = ShardingInvariantDropout(rate)
    np.testing.assert_array_equal(drop(layer), (1 - rate) * ONES)


def test_in_inference_nothing_is_dropped_and_it_is_keras_dropout():
    layer = ShardingInvariantDropout(0.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(ONES)), ONES)
    assert isinstance(layer, keras.layers.Dropout)


def test_gradients_flow_where_nothing_was_dropped():
    layer = ShardingInvariantDropout(0.25, seed=0)

    def loss_and_results(inputs):
        outputs = layer(inputs, training=True)
        return ops.sum(outputs), outputs

    outputs, (gradient,) = with_gradients(loss_and_results, [ONES])
    np.testing.assert_array_equal(gradient, outputs)


def test_it_is_saved_and_loaded(tmp_path):
    layer = ShardingInvariantDropout(0.5, noise_shape=(None, 1), seed=6)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(tmp_path / "model.keras")
    (loaded,) = keras.models.load_model(tmp_path / "model.keras").layers
    assert isinstance(loaded, ShardingInvariantDropout)
    assert loaded.get_config() == layer.get_config()


class KerasStandards(TestCase):
    """Keras's own checks of a layer."""

    def test_run_layer_test(self):
        self.run_layer_test(
            ShardingInvariantDropout,
            {"rate": 0.2},
            call_kwargs={"training": True},
            input_shape=(2, 3),
            expected_output_shape=(2, 3),
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=0,
            expected_num_non_trainable_variables=1,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
            assert_built_after_instantiation=True,
            run_training_check=False,  # It has nothing to train.
        )
