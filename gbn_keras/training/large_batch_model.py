"""`LargeBatchModel`: a batch of any size in the memory of a micro-batch."""

import keras
import tensorflow as tf

from gbn_keras.arguments import integer
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization


@keras.saving.register_keras_serializable("gbn_keras")
class LargeBatchModel(keras.Model):
    """Trains a model on batches that would not fit into memory at once.

    The batch of an update is cut into contiguous micro-batches. Each goes through the
    model by itself, their gradients are averaged, and then there is **one** update: the
    learning-rate schedule, `optimizer.iterations` and callbacks count updates, loss and
    metrics are those of the whole batch. What remains of a batch joins its last
    micro-batch. Memory depends on the micro-batch.

    Where all that looks at several examples at once is `GhostBatchNormalization`, and a
    micro-batch is made of whole ghosts, an update is that of the whole batch, running
    statistics included, up to rounding. Plain batch normalization would see
    micro-batches, and dropout draws a mask for each.

    Example:
    ```python
    model = LargeBatchModel(your_model, micro_batch_size=512)
    model.compile(keras.optimizers.SGD(0.1, 0.9), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=8192)
    your_model.save("model.keras")
    ```

    Args:
        model: Any Keras model: functional, Sequential or subclassed. The weights are
            its own.
        micro_batch_size: Number of examples that go through the model at once, a
            multiple of every virtual batch size in it.
        **kwargs: The arguments of `keras.Model`: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: If `micro_batch_size` is not a positive integer, or would cut a
            ghost.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 4,
        arXiv 1705.08741: ghosts are independent of each other until the update.
    """

    def __init__(self, model: keras.Model, micro_batch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.micro_batch_size = integer("micro_batch_size", micro_batch_size, 1)
        self.model = model
        for size in sorted(_virtual_batch_sizes(model)):
            _refuse_cut_ghosts(self.micro_batch_size, size)
        # There are no variables but the model's.
        self.built = model.built

    def call(self, inputs, training=None):
        """What the model itself returns."""
        return self.model(inputs, training=training)

    def train_step(self, data):
        """One update from the whole batch."""
        if not self.built:
            self._build_for(data)
        micro_batches = _MicroBatches(data, self.micro_batch_size)
        variables = self.trainable_weights
        unused = set()

        def accumulate(sums, micro_batch):
            size, gradients = self._gradients(micro_batch)
            unused.update(i for i, g in enumerate(gradients) if g is None)
            # By their number of examples, since the last micro-batch may be larger.
            weight = tf.cast(size, tf.float32) / tf.cast(
                micro_batches.examples, tf.float32
            )
            return [
                s if g is None else s + g * tf.cast(weight, s.dtype)
                for s, g in zip(sums, gradients, strict=True)
            ]

        sums = [tf.zeros(v.shape, v.dtype) for v in variables]
        gradients = micro_batches.reduce(accumulate, sums)
        gradients = [None if i in unused else g for i, g in enumerate(gradients)]
        self.optimizer.apply(gradients, variables)
        return self.get_metrics_result()

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "micro_batch_size": self.micro_batch_size,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})

    def _build_for(self, data):
        """Creates the variables, whose gradients the loop is to carry."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self(
            tf.nest.map_structure(
                lambda t: keras.KerasTensor((None, *t.shape[1:]), t.dtype.name), x
            )
        )

    def _gradients(self, micro_batch):
        """Of a micro-batch's own mean loss; also its size, and the metrics move."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        size = tf.shape(tf.nest.flatten(x)[0])[0]
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = self.compute_loss(
                x=x,
                y=y,
                y_pred=predictions,
                sample_weight=sample_weight,
                training=True,
            )
            scaled = self.optimizer.scale_loss(loss)
        self._loss_tracker.update_state(loss, sample_weight=size)
        self.compute_metrics(x, y, predictions, sample_weight=sample_weight)
        gradients = tape.gradient(scaled, [v.value for v in self.trainable_weights])
        # The rows that an embedding looked up, say: a loop cannot carry them.
        return size, [g if g is None else tf.convert_to_tensor(g) for g in gradients]


class _MicroBatches:
    """The contiguous micro-batches of nested tensors of examples."""

    def __init__(self, data, size):
        self._data, self._size = data, size
        first = tf.nest.flatten(data)[0]
        self.examples = first.shape[0]
        if self.examples is None:
            self.examples = tf.shape(first)[0]

    def reduce(self, function, state):
        """`function(state, micro_batch)` over all of them, one after the other."""
        size, examples = self._size, self.examples
        if not isinstance(examples, int):
            whole = tf.maximum(examples // size - 1, 0)
        elif examples % size == 0:
            whole = examples // size
        else:
            whole = max(0, examples // size - 1)

        def body(index, state):
            return index + 1, function(state, self._cut(index * size, size))

        # A loop of TensorFlow's, since micro-batches that were laid out one after the
        # other in the graph would run, and need memory, at the same time.
        if not isinstance(whole, int) or whole > 1:
            _, state = tf.while_loop(
                lambda index, _: index < whole,
                body,
                (tf.constant(0), state),
                parallel_iterations=1,
                maximum_iterations=whole,
            )
        elif whole:
            state = function(state, self._cut(0, size))
        if not isinstance(examples, int) or whole * size < examples:
            state = function(state, self._cut(whole * size, examples - whole * size))
        return state

    def _cut(self, start, size):
        # Not by `[start:end]`, of which XLA could not tell the size.
        def cut(values):
            if values is None:  # No sample weights.
                return None
            rest = values.shape[1:]
            begin = [start, *(0 for _ in rest)]
            return tf.slice(values, begin, [size, *(-1 for _ in rest)])

        return tf.nest.map_structure(cut, self._data)


def _virtual_batch_sizes(model):
    layers = model._flatten_layers()
    return {
        layer.virtual_batch_size
        for layer in layers
        if isinstance(layer, GhostBatchNormalization) and layer.virtual_batch_size
    }


def _refuse_cut_ghosts(micro_batch_size, virtual_batch_size):
    if micro_batch_size % virtual_batch_size:
        below = micro_batch_size // virtual_batch_size * virtual_batch_size
        sizes = [size for size in (below, below + virtual_batch_size) if size]
        raise ValueError(
            "micro_batch_size must be made of whole ghosts. Received: "
            f"micro_batch_size={micro_batch_size} with ghosts of {virtual_batch_size}. "
            f"Choose {' or '.join(map(str, sizes))}."
        )
