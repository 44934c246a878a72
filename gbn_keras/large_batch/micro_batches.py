"""`MicroBatches`: cuts nested tensors of examples into contiguous parts."""

import tensorflow as tf


class MicroBatches:
    """The contiguous micro-batches of nested tensors of examples.

    The remainder joins the last micro-batch. Sizes may be unknown while tracing.

    Args:
        data: Nested tensors, examples first. `None` stands for a missing tensor.
        size: Number of examples per micro-batch; `None` for all at once.
    """

    def __init__(self, data, size):
        self._data, self._size = data, size

    def equal_parts(self) -> int | None:
        """The number of micro-batches if all have the same size, else `None`."""
        size, examples = self._size, number_of_examples(self._data)
        if size is None:
            return 1
        if isinstance(examples, int):
            if examples < 2 * size:  # The remainder joins it.
                return 1
            if examples % size == 0:
                return examples // size
        return None

    def reduce(self, function, state):
        """Applies `function(state, start, micro_batch)` to all micro-batches in order.

        `start` is the place of the micro-batch's first example.
        """
        size, examples = self._size, number_of_examples(self._data)
        if size is None:
            return function(state, 0, self._data)
        if not isinstance(examples, int):
            whole = tf.maximum(examples // size - 1, 0)
        elif examples % size == 0:
            whole = examples // size
        else:
            whole = max(0, examples // size - 1)

        def body(index, state):
            return index + 1, self._next(function, state, index * size, size)

        # A TensorFlow loop, because micro-batches unrolled in the graph would run, and
        # take memory, at the same time.
        if not isinstance(whole, int) or whole > 1:
            _, state = tf.while_loop(
                lambda index, _: index < whole,
                body,
                (tf.constant(0), state),
                parallel_iterations=1,
                maximum_iterations=whole,
            )
        elif whole:
            state = self._next(function, state, 0, size)
        if not isinstance(examples, int) or whole * size < examples:
            start = whole * size
            state = self._next(function, state, start, examples - start)
        return state

    def _next(self, function, state, start, size):
        return function(state, start, self._cut(start, size))

    def _cut(self, start, size):
        def cut(values):
            if values is None:  # No sample weights.
                return None
            if isinstance(size, int) and values.shape[0] is None:
                # XLA knows the size and compiles the loop even if the data is smaller
                # than a micro-batch. The loop does not run then, but its indices must
                # be valid.
                places = tf.minimum(start + tf.range(size), tf.shape(values)[0] - 1)
                return tf.gather(values, places)
            # Not `[start:end]`: XLA could not infer its size.
            rest = values.shape[1:]
            begin = [start, *(0 for _ in rest)]
            return tf.slice(values, begin, [size, *(-1 for _ in rest)])

        return tf.nest.map_structure(cut, self._data)


def number_of_examples(data):
    """The number of examples in nested tensors, as a tensor if it is not static."""
    first = next(x for x in tf.nest.flatten(data) if x is not None)
    return tf.shape(first)[0] if first.shape[0] is None else first.shape[0]
