"""`GradientNoise`, the multiplicative gradient noise, as random sample weights."""

import math

from gbn_keras.arguments import integer, positive_number


class GradientNoise:
    """Gives every training example a random weight: multiplicative gradient noise.

    The gradient of the batch becomes

    `g = 1 / B * sum_n z_n * g_n`, with independent `z_n ~ N(1, variance)`,

    which has the mean of the plain one. With `1 + variance = M`, where
    `M = batch_size / small_batch_size`, the large batch's gradient also has the
    covariance of the small batch's, up to the mean gradient's own square: the noise
    is another way than a larger learning rate to keep the covariance of an update.

    Scaling the gradient of an example is scaling its loss, so the noise is a sample
    weight. It is a transformation of a `tf.data.Dataset` of batches, for any model and
    any Keras backend. Compile with `metrics=` rather than `weighted_metrics=`, which
    would be weighted by the noise, and leave the loss's reduction at its default, a sum
    over the batch divided by its number of examples.

    Example:
    ```python
    noise = GradientNoise(batch_size=4096, small_batch_size=128, seed=1)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(dataset.batch(4096).apply(noise))
    ```

    The weights depend on the seed, on which update it is and on the example's place in
    its batch. So each epoch of a data set that starts anew in every epoch repeats them:
    `dataset.repeat()` it, and give `steps_per_epoch`.

    Args:
        batch_size: Examples per update, over all devices.
        small_batch_size: The batch size whose noise is wanted.
        variance: Of the weights; by default `M - 1`.
        seed: An integer.

    Raises:
        ValueError: If an argument is not as said, or `variance` is left out with a
            batch that is smaller than the small batch: it has more noise already.

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
                    "batch_size must be at least small_batch_size where variance is "
                    f"left out. Received: batch_size={batch_size}, "
                    f"small_batch_size={small_batch_size}."
                )
        elif variance != 0:
            variance = positive_number("variance", variance)
        self.variance = float(variance)

    def __call__(
        self,
        dataset,
        first_update: int = 0,
        replicas: int = 1,
        shares: range = range(1),
    ):
        """The data set with a weight for each example.

        Args:
            dataset: A `tf.data.Dataset` of batches `(x, y)` or `(x, y, weights)`, the
                latter's weights `(examples,)`. A batch may be smaller than
                `batch_size`.
            first_update: Number of the update that the data set starts with.
            replicas: Into how many contiguous shares each batch is cut.
            shares: Which of them the data set holds, one after the other.

        Raises:
            ValueError: If the elements are not pairs or triples.
        """
        # The data set is TensorFlow's on every backend.
        import tensorflow as tf

        parts = dataset.element_spec
        if not isinstance(parts, tuple) or len(parts) not in (2, 3):
            raise ValueError(
                "dataset must hold pairs (x, y) or triples (x, y, sample_weight). "
                f"Received: dataset={dataset}."
            )

        def weigh(index, batch):
            x, y, *weights = batch
            update = first_update + index // len(shares)
            share = shares.start + index % len(shares)
            noise = tf.random.stateless_normal(
                [self.batch_size],
                seed=tf.stack([tf.constant(self.seed, tf.int64), update]),
                mean=1.0,
                stddev=math.sqrt(self.variance),
                alg="philox",  # Elsewhere the default is another: the same there.
            )
            noise = tf.reshape(noise, [replicas, -1])[share]
            noise = noise[: tf.shape(tf.nest.flatten(y)[0])[0]]
            for given in weights:
                noise *= tf.cast(given, noise.dtype)
            return x, y, noise

        return dataset.enumerate().map(
            weigh,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
