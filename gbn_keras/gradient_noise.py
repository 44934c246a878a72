"""`GradientNoise`, multiplicative gradient noise as random sample weights."""

import math

from gbn_keras.arguments import integer, positive_number
from gbn_keras.shares import WHOLE_BATCH, Shares


class GradientNoise:
    """Gives every training example a random weight: multiplicative gradient noise.

    The gradient of the batch becomes

    `g = 1 / B * sum_n z_n * g_n`, with independent `z_n ~ N(1, variance)`.

    Its mean is that of the plain gradient. With `M = batch_size / small_batch_size` and
    `1 + variance = M`, its covariance is that of the small batch's gradient, up to the
    square of the mean gradient. So the noise keeps the covariance of an update, as a
    larger learning rate does.

    To scale the gradient of an example is to scale its loss, so the noise is a sample
    weight. It transforms a `tf.data.Dataset` of batches, for any model and any Keras
    backend. Compile with `metrics=` and not with `weighted_metrics=`, which the noise
    would weight. Leave the loss's reduction at its default, the sum over the batch
    divided by its number of examples.

    Each example has one weight, for all its steps, pixels and outputs. If the data set
    has sample weights, the noise multiplies them. If it has none, the noise has the
    rank of the target, with sizes of 1 after the batch axis. That fits losses of the
    target's rank and of one less. Several outputs get one tensor if it fits all of
    them, and otherwise one tensor each, in the structure of the targets.

    Example:
    ```python
    noise = GradientNoise(batch_size=4096, small_batch_size=128, seed=1)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(dataset.batch(4096).apply(noise))
    ```

    The weights depend on the seed, on the update's number and on the example's place in
    its batch. A data set that starts over in every epoch repeats them every epoch. To
    avoid that, use `dataset.repeat()` and pass `steps_per_epoch`.

    Args:
        batch_size: Number of examples per update, over all devices.
        small_batch_size: Batch size whose noise you want.
        variance: Variance of the weights; by default `M - 1`.
        seed: Seed of the weights, an integer of at least 0.

    Raises:
        ValueError: If an argument is not as described above, or if you leave out
            `variance` and `batch_size` is below `small_batch_size`: such a batch has
            more noise already.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 4,
        arXiv 1705.08741.
    """

    def __init__(
        self,
        batch_size: int,
        small_batch_size: int,
        variance: float | None = None,
        seed: int = 0,
    ):
        self.batch_size = integer("batch_size", batch_size, 1)
        self.small_batch_size = integer("small_batch_size", small_batch_size, 1)
        self.seed = integer("seed", seed, 0)
        if variance is None:
            variance = self.batch_size / self.small_batch_size - 1
            if variance < 0:
                raise ValueError(
                    "batch_size must be at least small_batch_size if variance is not "
                    f"given. Received: batch_size={batch_size}, "
                    f"small_batch_size={small_batch_size}."
                )
        elif variance != 0:
            variance = positive_number("variance", variance)
        self.variance = float(variance)

    def __call__(
        self,
        dataset,
        first_update: int = 0,
        shares: Shares = WHOLE_BATCH,
    ):
        """The data set with a weight for each example.

        Args:
            dataset: A `tf.data.Dataset` of batches `(x, y)` or `(x, y, weights)`.
                Targets and weights are dense, of any rank and structure, examples
                first. A batch may be smaller than `batch_size`.
            first_update: Number of the update that the data set starts with.
            shares: Which shares of each batch the data set holds, one after the other.

        Raises:
            ValueError: If the elements are neither pairs nor triples, or if a target or
                weight is not a dense tensor of known rank, examples first.
        """
        # `tf.data` serves every Keras backend.
        import tensorflow as tf

        parts = dataset.element_spec
        if not isinstance(parts, tuple) or len(parts) not in (2, 3):
            raise ValueError(
                "dataset must hold pairs (x, y) or triples (x, y, sample_weight). "
                f"Received: dataset={dataset}."
            )
        for name, part in zip(("y", "sample_weight"), parts[1:], strict=False):
            _refuse_without_examples(name, part)

        def weigh(index, batch):
            x, y, given = batch if len(batch) == 3 else (*batch, None)
            update = first_update + index // shares.number
            share = shares.first + index % shares.number
            noise = tf.random.stateless_normal(
                [self.batch_size],
                seed=tf.stack([tf.constant(self.seed, tf.int64), update]),
                mean=1.0,
                stddev=math.sqrt(self.variance),
                alg="philox",  # The default algorithm depends on the device.
            )
            noise = tf.reshape(noise, [shares.replicas, -1])[share]
            first = next(part for part in tf.nest.flatten((y, x)) if part is not None)
            noise = noise[: tf.shape(first)[0]]
            return x, y, _weights(noise, y, given)

        return dataset.enumerate().map(
            weigh,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )


def _weights(noise, y, given):
    """The noise, one number per example, as new weights or times given ones."""
    import tensorflow as tf

    def of_rank(rank):
        return tf.reshape(noise, [-1, *(1 for _ in range(rank - 1))])

    def in_weights(weights):
        return tf.cast(weights, noise.dtype) * of_rank(weights.shape.rank)

    def of_target(target, weights=None):
        if weights is not None:
            return in_weights(weights)
        return None if target is None else of_rank(target.shape.rank)

    if given is not None and not tf.nest.is_nested(given):
        return in_weights(given)
    if given is not None:
        if any(weights is None for weights in tf.nest.flatten(given)):
            tf.nest.assert_same_structure(y, given, check_types=False)
            pairs = zip(tf.nest.flatten(y), tf.nest.flatten(given), strict=True)
            return tf.nest.pack_sequence_as(given, [of_target(*pair) for pair in pairs])
        return tf.nest.map_structure(in_weights, given)
    ranks = {part.shape.rank for part in tf.nest.flatten(y) if part is not None}
    # A loss has the rank of its target or one less, but at least 1. Weights may have
    # the rank of the loss or one more.
    if len(ranks) < 2 or ranks == {1, 2}:
        return of_rank(max(ranks, default=1))
    return tf.nest.map_structure(of_target, y)


def _refuse_without_examples(name, part):
    """Raises unless all parts are dense tensors with a first axis."""
    import tensorflow as tf

    for spec in tf.nest.flatten(part):
        if spec is None or isinstance(spec, tf.NoneTensorSpec):
            continue
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
            raise ValueError(
                f"{name} must be dense tensors of known rank, examples first, because "
                f"each example gets one weight. Received: {spec}. Make them dense "
                "(`to_tensor()`, `tf.sparse.to_dense`), batch them, or set their "
                "shape (`tf.ensure_shape`)."
            )
