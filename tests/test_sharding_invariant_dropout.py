"""Dropout draws the same mask wherever an example is computed."""

import keras
import numpy as np
import pytest
from backend import IS_JAX, SLOW_ON_JAX, WAYS, compiled, with_gradients
from keras import ops
from keras.src.testing import TestCase

from gbn_keras import ShardingInvariantDropout
from gbn_keras.batch_part import BatchPart

ONES = np.ones((24, 5, 3), "float32")


def drop(layer, inputs=ONES):
    return ops.convert_to_numpy(layer(inputs, training=True))


def part_drawer(way, shape):
    """A function of a part of a batch, and of the place of its first example."""
    layer = ShardingInvariantDropout(0.4, seed=2)
    state = layer.seed_generator.state
    first_seed = ops.convert_to_tensor(state.numpy())

    def draw(part, first):
        # All parts of a batch start with the same seed.
        with BatchPart(first), keras.StatelessScope([(state, first_seed)]):
            return layer(part, training=True)

    tensors = ops.zeros((8, *shape[1:])), ops.convert_to_tensor(0, "int32")
    draw = compiled(draw, way, tensors)

    def first_draw(part, first):
        first = ops.convert_to_tensor(first, "int32")
        return ops.convert_to_numpy(draw(ops.convert_to_tensor(part), first))

    return first_draw


@pytest.mark.parametrize(
    "shape",
    [
        (24, 5, 3),
        (24, 1),
        *(pytest.param(x, marks=SLOW_ON_JAX) for x in ((24, 8), (24, 2, 2, 3))),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_parts_draw_what_the_whole_draws(shape, way):
    inputs = np.ones(shape, "float32")
    whole = drop(ShardingInvariantDropout(0.4, seed=2), inputs)
    assert 0.2 < (whole == 0).mean() < 0.6
    draw = part_drawer(way, shape)
    # Each size is compiled anew.
    for size in (8,) if way in ("XLA", "jit") else (1, 6, 8):
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
    layer, other = (ShardingInvariantDropout(0.5, seed=seed) for seed in (1, 2))
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


# JAX has no float64 unless you ask it.
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"] + ["float64"] * (not IS_JAX))
def test_all_dtypes_draw_the_same_masks(dtype):
    inputs = ops.cast(ONES, dtype)
    layer = ShardingInvariantDropout(0.3, seed=4, dtype=dtype)
    outputs = layer(inputs, training=True)
    assert outputs.dtype == inputs.dtype
    expected = drop(ShardingInvariantDropout(0.3, seed=4)) == 0
    np.testing.assert_array_equal(ops.convert_to_numpy(outputs == 0), expected)


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
