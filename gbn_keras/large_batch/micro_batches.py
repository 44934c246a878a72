"""`MicroBatches`: cuts nested tensors of examples into contiguous parts."""

import keras
from keras import ops

from gbn_keras.large_batch.backends import part_of, reduce_in_loop


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
            whole = ops.maximum(examples // size - 1, 0)
        elif examples % size == 0:
            whole = examples // size
        else:
            whole = max(0, examples // size - 1)

        if not isinstance(whole, int) or whole > 1:
            state = reduce_in_loop(function, state, self._data, size, whole)
        elif whole:
            state = function(state, 0, self._cut(0, size))
        if not isinstance(examples, int) or whole * size < examples:
            start = whole * size
            state = function(state, start, self._cut(start, examples - start))
        return state

    def _cut(self, start, size):
        return keras.tree.map_structure(
            lambda values: None if values is None else part_of(values, start, size),
            self._data,
        )


def number_of_examples(data):
    """The number of examples in nested tensors, as a tensor if it is not static."""
    first = next(x for x in keras.tree.flatten(data) if x is not None)
    return ops.shape(first)[0]
