"""Every example is in exactly one micro-batch."""

import numpy as np
import pytest
import tensorflow as tf

from gbn_keras.large_batch.micro_batches import MicroBatches, number_of_examples


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("examples", [40, 64, 100, 128, 160, 192, 200, 300])
def test_every_example_is_in_one_micro_batch(examples, is_known):
    @tf.function(input_signature=[tf.TensorSpec([examples if is_known else None])])
    def seen(values):
        def add(state, start, part):
            tf.debugging.assert_equal(part[0], tf.cast(start, part.dtype))
            # Squares, so that one too many is not made up for by one too few.
            return [state[0] + tf.size(part), state[1] + tf.reduce_sum(part**2)]

        state = [tf.constant(0), tf.constant(0.0)]
        return MicroBatches(values, 64).reduce(add, state)

    count, total = seen(tf.range(examples, dtype="float32"))
    assert count == examples
    np.testing.assert_allclose(total, np.square(np.arange(examples)).sum(), rtol=1e-6)


def test_nested_data_is_cut_alike_and_none_stays_none():
    data = {"x": (tf.range(12), tf.ones([12, 2, 3])), "weights": None}
    assert number_of_examples(data) == 12

    def collect(state, start, part):
        assert part["weights"] is None
        return [*state, (part["x"][0].numpy().tolist(), part["x"][1].shape)]

    (cut,) = MicroBatches(data, 12).reduce(collect, [])
    assert cut == (list(range(12)), (12, 2, 3))
