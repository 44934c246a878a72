"""The mathematics of ghost batch normalization: pure functions, any Keras backend.

`GhostBatchNormalization` is a thin layer on these; nothing here holds a variable.
"""

from keras import backend, ops


def ghost_normalize(
    inputs,
    gamma,
    beta,
    virtual_batch_size: int,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask=None,
):
    """Normalizes each ghost batch by its own mean and biased variance.

    The batch is cut into contiguous ghosts of `virtual_batch_size` examples. What
    remains joins the last ghost, so that no ghost is smaller than asked, unless the
    whole batch is.

    Args:
        inputs: Tensor of shape `(batch, ...)`, rank 2 or more, the batch static or
            dynamic.
        gamma: Tensor of shape `(channels,)` that multiplies the normalized values,
            or `None`.
        beta: Tensor of shape `(channels,)` that is added to them, or `None`.
        virtual_batch_size: Number of examples of a ghost, at least 1.
        axis: The channel axis, any but 0.
        epsilon: Added to the variance before its square root is taken.
        mask: Tensor of the shape of `inputs` without its last axis, or `None`. Where
            it is false, a value takes no part in its ghost's statistics (it is
            normalized all the same, as `keras.layers.BatchNormalization` does).

    Returns:
        `(outputs, mean, variance)`: the normalized tensor in the shape of `inputs`,
        and the ghosts' statistics in batch order, each `(ghosts, channels)`. All are
        float32, or float64 where the inputs are.

    Raises:
        ValueError: If `mask` does not have one dimension less than `inputs`.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", Algorithm 1,
        arXiv 1705.08741.
    """
    if mask is not None:
        if len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                "mask must have one dimension less than the inputs. Received: "
                f"mask of shape {tuple(mask.shape)} for inputs of shape "
                f"{tuple(inputs.shape)}. Leave out the mask's last axis."
            )
        mask = ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(inputs))

    # Squares of float16 overflow, and sums of bfloat16 stall at 256 terms.
    inputs = ops.cast(inputs, backend.result_type(inputs.dtype, "float32"))
    axis = axis % len(inputs.shape)
    channels = inputs.shape[axis]

    pieces = _split_into_ghosts(inputs, virtual_batch_size)
    masks = [None] * len(pieces)
    if mask is not None:
        masks = _split_into_ghosts(ops.cast(mask, "bool"), virtual_batch_size)

    outputs, means, variances = [], [], []
    for ghosts, ghosts_mask in zip(pieces, masks, strict=True):
        mean, variance = _moments(ghosts, axis + 1, ghosts_mask)
        normalized = _normalize(ghosts, mean, variance, gamma, beta, axis + 1, epsilon)
        outputs.append(ops.reshape(normalized, (-1, *ops.shape(inputs)[1:])))
        means.append(ops.reshape(mean, (-1, channels)))
        variances.append(ops.reshape(variance, (-1, channels)))
    return _concatenate(outputs), _concatenate(means), _concatenate(variances)


def ghost_moving_average(moving, statistics, momentum: float):
    """Takes one step of the exponential moving average per ghost, in batch order.

    With momentum `m` and `G` ghosts:
    `m^G moving + sum_{i=1..G} (1 - m) m^(G-i) statistics_i`.

    The exponents are those that Algorithm 1 intends: as printed, `m` is raised to the
    small batch's size, and the weights do not sum to one.

    Args:
        moving: Tensor of shape `(channels,)`, the average so far.
        statistics: Tensor of shape `(ghosts, channels)`.
        momentum: The weight of the past at each step, from 0 to 1.

    Returns:
        The new average, shape `(channels,)`, in the dtype of `statistics`.
    """
    dtype = statistics.dtype
    ghosts = ops.shape(statistics)[0]
    steps_after = ghosts - 1 - ops.arange(ghosts)
    weights = (1 - momentum) * momentum ** ops.cast(steps_after, dtype)
    past = ops.cast(moving, dtype) * momentum ** ops.cast(ghosts, dtype)
    return past + ops.sum(ops.expand_dims(weights, -1) * statistics, axis=0)


def _split_into_ghosts(values, virtual_batch_size):
    """Views a batch as at most two tensors of shape `(ghosts, examples, ...)`.

    One tensor if the ghosts are known to be of one size; otherwise all ghosts but the
    last, then the last with the remainder. So the number of operations does not grow
    with the number of ghosts.
    """
    batch, *example_shape = ops.shape(values)
    if isinstance(batch, int):
        if batch < 2 * virtual_batch_size:
            return [ops.expand_dims(values, 0)]
        if batch % virtual_batch_size == 0:
            return [ops.reshape(values, (-1, virtual_batch_size, *example_shape))]
        head = (batch // virtual_batch_size - 1) * virtual_batch_size
    else:
        head = ops.maximum(batch // virtual_batch_size - 1, 0) * virtual_batch_size
    return [
        ops.reshape(values[:head], (-1, virtual_batch_size, *example_shape)),
        ops.expand_dims(values[head:], 0),
    ]


def _moments(ghosts, axis, mask):
    """Mean and biased variance of each ghost and channel, in kept dimensions."""
    axes = [a for a in range(1, len(ghosts.shape)) if a != axis]
    if mask is None:
        return ops.moments(ghosts, axes=axes, keepdims=True)
    # With the epsilon that BatchNormalization has there: a ghost that is masked
    # altogether has mean and variance 0.
    count = ops.sum(ops.cast(mask, ghosts.dtype), axis=axes, keepdims=True)
    count = count + backend.epsilon()
    # `where`, not a product: what is masked may be infinite or not a number.
    mean = ops.sum(ops.where(mask, ghosts, 0), axis=axes, keepdims=True) / count
    deviation = ops.where(mask, ghosts - mean, 0)
    return mean, ops.sum(ops.square(deviation), axis=axes, keepdims=True) / count


def _normalize(ghosts, mean, variance, gamma, beta, axis, epsilon):
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, by ghost."""
    channels = [-1 if a == axis else 1 for a in range(len(ghosts.shape))]
    scale = ops.rsqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * ops.reshape(ops.cast(gamma, ghosts.dtype), channels)
    # The difference first: `x * scale - mean * scale` would cancel for a large mean.
    outputs = (ghosts - mean) * scale
    if beta is not None:
        outputs = outputs + ops.reshape(ops.cast(beta, ghosts.dtype), channels)
    return outputs


def _concatenate(pieces):
    return pieces[0] if len(pieces) == 1 else ops.concatenate(pieces, axis=0)
