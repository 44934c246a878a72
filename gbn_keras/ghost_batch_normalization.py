"""`GhostBatchNormalization`, the layer."""

import keras

from gbn_keras.arguments import integer
from gbn_keras.batch_part import BatchPart
from gbn_keras.class_name import FiledAsParent
from gbn_keras.cut_ghosts.cuts import cuts_of_share
from gbn_keras.cut_ghosts.share import normalize_share
from gbn_keras.ghost_normalize import (
    fraction_kept,
    ghost_moving_average,
    ghost_normalize,
    ghosts_with_values,
)
from gbn_keras.plain_relu import is_plain_relu
from gbn_keras.replicas import joined

# The class names of sparse and ragged inputs in TensorFlow and JAX. A sparse PyTorch
# tensor has `is_sparse`.
_SPARSE = ("SparseTensor", "RaggedTensor", "BCOO", "BCSR")


@keras.saving.register_keras_serializable("gbn_keras", "GhostBatchNormalization")
class GhostBatchNormalization(keras.layers.BatchNormalization, metaclass=FiledAsParent):
    """Batch normalization with the statistics of small virtual batches ("ghosts").

    A large batch keeps the normalization noise of the small batch that the model was
    tuned for.

    **In training**, the layer cuts the batch into contiguous ghosts of
    `virtual_batch_size` examples. The remainder joins the last ghost. Each ghost is
    normalized by its own mean and biased variance, over all axes except the channel
    axis:

    `y = gamma * (x - mean(ghost)) / sqrt(variance(ghost) + epsilon) + beta`

    All ghosts use the same `gamma` and `beta`. The running statistics take one step per
    ghost, in order. With momentum `m` and `G` ghosts:

    `moving = m^G moving + sum_{i=1..G} (1 - m) m^(G-i) statistic(ghost i)`

    **On several replicas** of a `tf.distribute` strategy, each replica takes one share
    of the batch, in replica order. Outputs, gradients and running statistics are those
    of one device with the whole batch. The share of a replica may be larger or smaller
    than a ghost, and replicas may cut ghosts anywhere: replicas that hold parts of one
    ghost exchange its statistics, in one small all-reduce forward and one backward.
    Shares of whole ghosts exchange nothing but running statistics, if their size is
    known while tracing (`dataset.batch(batch_size, drop_remainder=True)`). A share may
    be empty, as the last shares are when the data does not fill the batch.

    **On several JAX devices** of a `keras.distribution`, ghosts are those of the whole
    batch, too. Those that lie within a device's share exchange nothing but running
    statistics.

    **In inference**, and in training while `trainable` is `False`, the layer behaves as
    `keras.layers.BatchNormalization`: it uses the running statistics and takes any
    batch size. With `virtual_batch_size=None` it always does.

    Both layers have the same variables, so you can load the weights of either into the
    other with `set_weights` or from `.weights.h5` files. To make the files match, the
    class shows the name `BatchNormalization` to the Keras modules that read and write
    weights, and only to them (see `class_name.FiledAsParent`).

    Algorithm 1 of the paper averages the standard deviation. This layer averages the
    variance, as all batch normalization does, because that makes the weights
    interchangeable. The exponents printed in the algorithm give weights that do not sum
    to one; the exponents above do.

    Masks work as in the parent class, ghost by ghost. A ghost without values takes no
    step, so the running statistics stay as they are; the parent's become NaN or move
    towards 0. A ghost has no values if the batch is empty or if the mask covers all of
    it. Statistics are computed in float32 or wider, whatever the layer's dtype.

    **With an `activation`**, the layer applies it to `y`, in training and in inference.
    Training with `"relu"` then takes less time than with a ReLU layer of its own,
    because the same loops over the batch compute both. Its gradient at 0 is 0.

    Example:
    ```python
    model = keras.Sequential([
        keras.layers.Dense(512, use_bias=False),
        GhostBatchNormalization(virtual_batch_size=128, activation="relu"),
        keras.layers.Dense(10),
    ])
    ```

    Args:
        virtual_batch_size: Number of examples per ghost, at least 1, or `None` for
            plain batch normalization. A batch smaller than two ghosts is one ghost.
        activation: What `keras.layers.Activation` takes: a name, a function, or a layer
            such as `keras.layers.ReLU()`, which with its defaults is the same as
            `"relu"`. `None` for no activation.
        **kwargs: The arguments of `keras.layers.BatchNormalization`: `axis` (the
            channel axis, any but 0), `momentum`, `epsilon`, `center`, `scale`, the
            initializers, regularizers and constraints, `name`, `dtype`.

    Input shape: any of rank 2 or more, batch first. The batch size may be unknown.

    Output shape: the input shape.

    Raises:
        ValueError: If `virtual_batch_size` is neither a positive integer nor `None`; if
            you combine it with `synchronized=True` or `renorm=True`; if Keras does not
            know the `activation`; if `axis` is the batch axis; if the inputs are
            sparse; in training on a TPU, if replicas cut ghosts in pieces that differ
            in size.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the
        generalization gap in large batch training of neural networks", section 4 and
        Algorithm 1, NIPS 2017, arXiv 1705.08741.
    """

    filed_as = keras.layers.BatchNormalization.__name__

    def __init__(self, virtual_batch_size: int | None = 128, activation=None, **kwargs):
        super().__init__(**kwargs)
        if virtual_batch_size is not None:
            virtual_batch_size = integer("virtual_batch_size", virtual_batch_size, 1)
            self._refuse_other_statistics(virtual_batch_size)
        self.virtual_batch_size = virtual_batch_size
        activation = keras.activations.get(activation)
        is_relu = is_plain_relu(activation)
        self.activation = keras.activations.relu if is_relu else activation

    def build(self, input_shape):
        """Creates the variables of the parent class."""
        if self.virtual_batch_size is not None and self.axis % len(input_shape) == 0:
            raise ValueError(
                "axis must not be 0, the batch axis, because the batch is cut into "
                f"ghosts. Received: axis={self.axis} for inputs of shape "
                f"{tuple(input_shape)}. Set axis to the channel axis (-1 for channels "
                "last, 1 for channels first)."
            )
        super().build(input_shape)

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`; in training, also updates the running statistics."""
        _refuse_sparse(inputs)
        in_ghosts = training and self.trainable and self.virtual_batch_size is not None
        if not in_ghosts:
            outputs = super().call(inputs, training=training, mask=mask)
            return self.activation(outputs)
        outputs, mean, variance, valid = self._normalize(inputs, mask)
        examples = keras.ops.shape(inputs)[0]
        self._update_running_statistics(mean, variance, valid, examples)
        return keras.ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        """The parent's configuration, `virtual_batch_size` and `activation`."""
        return {
            **super().get_config(),
            "virtual_batch_size": self.virtual_batch_size,
            "activation": keras.activations.serialize(self.activation),
        }

    def __repr__(self):
        return (
            f"<{type(self).__name__} name={self.name}, built={self.built}, "
            f"virtual_batch_size={self.virtual_batch_size}>"
        )

    def _refuse_other_statistics(self, virtual_batch_size):
        for argument in ("synchronized", "renorm"):
            # Keras added `renorm` in 3.14.
            if getattr(self, argument, False):
                raise ValueError(
                    f"{argument} must be False if virtual_batch_size is set, because "
                    "each ghost is normalized by its own statistics alone. Received: "
                    f"{argument}=True, virtual_batch_size={virtual_batch_size}. "
                    "Remove one of the two."
                )

    def _normalize(self, inputs, mask):
        """Outputs, statistics of ghosts, and for which of them this device steps."""
        part = BatchPart.current()
        if not part or part.is_share:
            examples = keras.ops.shape(inputs)[0]
            cuts = cuts_of_share(examples, self.virtual_batch_size)
            if cuts:
                outputs, *results = normalize_share(
                    self._normalize_whole_ghosts,
                    inputs,
                    self.gamma,
                    self.beta,
                    cuts,
                    axis=self.axis,
                    epsilon=self.epsilon,
                    mask=mask,
                )
                return self.activation(outputs), *results
        return self._normalize_whole_ghosts(inputs, mask, self.activation)

    def _normalize_whole_ghosts(self, inputs, mask, activation=None):
        result = ghost_normalize(
            inputs,
            self.gamma,
            self.beta,
            self.virtual_batch_size,
            axis=self.axis,
            epsilon=self.epsilon,
            mask=mask,
            activation=activation,
        )
        valid = ghosts_with_values(
            inputs, self.virtual_batch_size, axis=self.axis, mask=mask
        )
        return *result, valid

    def _update_running_statistics(self, mean, variance, valid, examples):
        """Takes one step per ghost of the whole batch, on any device."""
        steps = keras.ops.shape(mean)[0]
        if valid is not None:
            steps = keras.ops.sum(keras.ops.cast(valid, mean.dtype), axis=0)
        kept = fraction_kept(self.momentum, steps, mean.dtype)
        moving = (self.moving_mean, self.moving_variance)
        values = [
            ghost_moving_average(average, statistics, self.momentum, valid)
            for average, statistics in zip(moving, (mean, variance), strict=True)
        ]
        part = BatchPart.current()
        if part:  # The caller that split the batch joins the parts.
            part.keep(self, keras.ops.convert_to_tensor(kept, mean.dtype))
        else:
            before = [average.value for average in moving]
            values = joined(values, before, kept, examples)
        for average, value in zip(moving, values, strict=True):
            average.assign(value)


def _refuse_sparse(inputs):
    kind = type(inputs).__name__
    if kind in _SPARSE or getattr(inputs, "is_sparse", False):
        raise ValueError(
            "inputs must be dense, because subtracting the mean makes almost every "
            f"value nonzero. Received: a sparse {kind} of shape "
            f"{tuple(inputs.shape)}. Convert the inputs to dense before this layer, "
            "or start with a Dense layer, which takes sparse inputs."
        )
