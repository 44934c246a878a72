"""`GhostBatchNormalization`, the layer."""

import keras

from gbn_keras.arguments import integer
from gbn_keras.batch_part import BatchPart
from gbn_keras.class_name import FiledAsParent
from gbn_keras.ghost_normalize import (
    ghost_moving_average,
    ghost_normalize,
    ghosts_with_values,
)
from gbn_keras.replicas import joined, refuse_cut_shares

# What is no array: of TensorFlow, and of JAX. PyTorch's tensors tell themselves.
_SPARSE = ("SparseTensor", "RaggedTensor", "BCOO", "BCSR")


@keras.saving.register_keras_serializable("gbn_keras", "GhostBatchNormalization")
class GhostBatchNormalization(keras.layers.BatchNormalization, metaclass=FiledAsParent):
    """Batch normalization by the statistics of small virtual batches ("ghosts").

    **In training** the batch is cut into contiguous ghosts of `virtual_batch_size`
    examples, what remains joins the last one, and each ghost is normalized by its own
    mean and biased variance over all axes but the channel axis:

    `y = gamma * (x - mean(ghost)) / sqrt(variance(ghost) + epsilon) + beta`

    A large batch so keeps the noise that normalization had at the small batch for
    which the model was tuned. `gamma` and `beta` are shared by all ghosts. The running
    statistics take one step per ghost, in order; with momentum `m` and `G` ghosts:

    `moving = m^G moving + sum_{i=1..G} (1 - m) m^(G-i) statistic(ghost i)`

    **On several replicas** of a `tf.distribute` strategy the ghosts are those of the
    whole batch, whose shares the replicas hold in their order: the running statistics
    are those of one device, the same on all replicas. Each share must be whole ghosts,
    or empty, as the last ones of a batch that the data did not fill.

    **In inference**, and in training while `trainable` is `False`, this is
    `keras.layers.BatchNormalization`: running statistics, any batch size. The
    variables are the same too, so weights load from either layer into the other, by
    `set_weights` and from `.weights.h5` files. For that the class is called
    `BatchNormalization` to Keras's readers and writers of weights, and to nobody else
    (see `class_name.FiledAsParent`). With `virtual_batch_size=None` the layer is its
    parent in all things but name.

    The paper's Algorithm 1 averages the standard deviation; this layer averages the
    variance, as every batch normalization does, which is what makes the weights
    interchangeable. As printed, the algorithm's exponents do not give weights that sum
    to one; these do.

    Masks work as in the parent, ghost by ghost. A ghost without values, of an empty
    batch or masked altogether, takes no step: the running statistics stay what they
    are, where the parent's become nan or are drawn to 0. Statistics are computed in
    float32 at least, whatever the layer's dtype.

    Example:
    ```python
    model = keras.Sequential([
        keras.layers.Dense(512, use_bias=False),
        GhostBatchNormalization(virtual_batch_size=128),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ])
    ```

    Args:
        virtual_batch_size: Number of examples of a ghost, at least 1, or `None` for
            plain batch normalization. A batch smaller than two ghosts is one ghost.
        **kwargs: The arguments of `keras.layers.BatchNormalization`: `axis` (the
            channels, any axis but 0), `momentum`, `epsilon`, `center`, `scale`, the
            initializers, regularizers and constraints, `name`, `dtype`.

    Input shape: any of rank 2 or more, batch first; the batch size may be unknown.

    Output shape: that of the input.

    Raises:
        ValueError: If `virtual_batch_size` is not a positive integer or `None`; if it
            comes with `synchronized=True` or `renorm=True`; if `axis` is the batch; if
            the inputs are sparse; in training, if a ghost would lie on two replicas.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the
        generalization gap in large batch training of neural networks", section 4 and
        Algorithm 1, NIPS 2017, arXiv 1705.08741.
    """

    filed_as = keras.layers.BatchNormalization.__name__

    def __init__(self, virtual_batch_size: int | None = 128, **kwargs):
        super().__init__(**kwargs)
        if virtual_batch_size is not None:
            virtual_batch_size = integer("virtual_batch_size", virtual_batch_size, 1)
            self._refuse_other_statistics(virtual_batch_size)
        self.virtual_batch_size = virtual_batch_size

    def build(self, input_shape):
        """Creates the parent's variables."""
        if self.virtual_batch_size is not None and self.axis % len(input_shape) == 0:
            raise ValueError(
                "axis must not be 0, the batch, which ghosts divide. Received: "
                f"axis={self.axis} for inputs of shape {tuple(input_shape)}. Name the "
                "channel axis (-1 for channels last, 1 for channels first)."
            )
        super().build(input_shape)

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`; in training also moves the running statistics."""
        _refuse_sparse(inputs)
        in_ghosts = training and self.trainable and self.virtual_batch_size is not None
        if not in_ghosts:
            return super().call(inputs, training=training, mask=mask)
        if not BatchPart.current():
            examples = keras.ops.shape(inputs)[0]
            refuse_cut_shares(examples, self.virtual_batch_size)
        outputs, mean, variance = ghost_normalize(
            inputs,
            self.gamma,
            self.beta,
            self.virtual_batch_size,
            axis=self.axis,
            epsilon=self.epsilon,
            mask=mask,
        )
        valid = ghosts_with_values(
            inputs, self.virtual_batch_size, axis=self.axis, mask=mask
        )
        self._update_running_statistics(mean, variance, valid)
        return keras.ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        """The parent's configuration and `virtual_batch_size`."""
        return {**super().get_config(), "virtual_batch_size": self.virtual_batch_size}

    def __repr__(self):
        return (
            f"<{type(self).__name__} name={self.name}, built={self.built}, "
            f"virtual_batch_size={self.virtual_batch_size}>"
        )

    def _refuse_other_statistics(self, virtual_batch_size):
        for argument in ("synchronized", "renorm"):
            # `renorm` came with Keras 3.14.
            if getattr(self, argument, False):
                raise ValueError(
                    f"{argument} must be False together with a virtual batch size: a "
                    "ghost is normalized by its own statistics alone. Received: "
                    f"{argument}=True, virtual_batch_size={virtual_batch_size}. Leave "
                    "out one of the two."
                )

    def _update_running_statistics(self, mean, variance, valid):
        """One step per ghost of the whole batch, wherever its other ghosts are."""
        ghosts = keras.ops.cast(keras.ops.shape(mean)[0], mean.dtype)
        steps = ghosts
        if valid is not None:
            steps = keras.ops.sum(keras.ops.cast(valid, mean.dtype), axis=0)
        kept = self.momentum**steps
        moving = (self.moving_mean, self.moving_variance)
        values = [
            ghost_moving_average(average, statistics, self.momentum, valid)
            for average, statistics in zip(moving, (mean, variance), strict=True)
        ]
        part = BatchPart.current()
        if part:  # Whoever cut the batch into parts joins them.
            part.keep(self, kept)
        else:
            before = [average.value for average in moving]
            values = joined(values, before, kept, ghosts)
        for average, value in zip(moving, values, strict=True):
            average.assign(value)


def _refuse_sparse(inputs):
    kind = type(inputs).__name__
    if kind in _SPARSE or getattr(inputs, "is_sparse", False):
        raise ValueError(
            "inputs must be dense: without its mean, hardly a value is zero. Received: "
            f"a sparse {kind} of shape {tuple(inputs.shape)}. Make it dense before the "
            "layer, or begin with a Dense layer, which takes it."
        )
