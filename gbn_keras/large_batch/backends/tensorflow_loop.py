"""The loop over micro-batches and the gradients, on TensorFlow."""

import tensorflow as tf


def reduce_in_loop(function, state, data, size, whole):
    """Applies `function(state, start, micro_batch)` to whole micro-batches in order.

    It is a TensorFlow loop, because micro-batches unrolled in the graph would run, and
    take memory, at the same time.

    Args:
        function: Gives the next state, of the same shapes.
        state: The first state, nested tensors.
        data: Nested tensors of examples.
        size: Number of examples per micro-batch.
        whole: Number of micro-batches, a tensor if it is not static.
    """

    def body(index, state):
        start = index * size
        micro_batch = tf.nest.map_structure(
            lambda values: None if values is None else part_of(values, start, size),
            data,
        )
        return index + 1, function(state, start, micro_batch)

    _, state = tf.while_loop(
        lambda index, _: index < whole,
        body,
        (tf.constant(0), state),
        parallel_iterations=1,
        maximum_iterations=whole,
    )
    return state


def part_of(values, start, size):
    """The `size` examples from place `start` on."""
    if isinstance(size, int) and values.shape[0] is None:
        # XLA knows the size and compiles the loop even if the data is smaller than a
        # micro-batch. The loop does not run then, but its indices must be valid.
        places = tf.minimum(start + tf.range(size), tf.shape(values)[0] - 1)
        return tf.gather(values, places)
    # Not `[start:end]`: XLA could not infer its size.
    rest = values.shape[1:]
    begin = [start, *(0 for _ in rest)]
    return tf.slice(values, begin, [size, *(-1 for _ in rest)])


def gradients_of(function, weights):
    """`(gradients, found)` of `function(weights) -> (loss, found)`.

    A gradient is `None` if the loss does not depend on the weight.
    """
    weights = [tf.identity(weight) for weight in weights]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss, found = function(weights)
    # A loop cannot carry sparse gradients, such as those of an embedding.
    gradients = [
        None if gradient is None else tf.convert_to_tensor(gradient)
        for gradient in tape.gradient(loss, weights)
    ]
    return gradients, found


def squares_of(tensors):
    """The sum of the squares of all entries of float32 tensors."""
    # `l2_loss` gives half of the sum of squares, in one pass over memory; `square`
    # needs two.
    return 2 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors])
