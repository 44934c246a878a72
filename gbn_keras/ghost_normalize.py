"""The mathematics of ghost batch normalization: pure functions, any Keras backend.

`GhostBatchNormalization` is a thin layer on these; nothing here holds a variable.

Two kernels compute the same. The closed form has a constant number of operations,
whatever the number of ghosts, and a gradient of its own that saves only the input and
the ghosts' statistics: it is the fastest wherever XLA compiles. `fused_ghosts` calls a
fused kernel for each ghost: it is the fastest where TensorFlow runs op by op.
"""

import math

import keras
from keras import backend, ops

if keras.backend.backend() == "tensorflow":
    from gbn_keras import fused_ghosts
else:
    fused_ghosts = None


def ghost_normalize(
    inputs,
    gamma,
    beta,
    virtual_batch_size: int,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask=None,
    _kernel: str | None = None,
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
        _kernel: `"closed_form"` or `"fused"`, for tests; by default the faster one.

    Returns:
        `(outputs, mean, variance)`: the normalized tensor in the shape and floating
        dtype of `inputs`, and the ghosts' statistics in batch order, each `(ghosts,
        channels)` in float32, or float64 where the inputs are. Gradients flow through
        the outputs, not through the statistics.

    Raises:
        ValueError: If `mask` does not have one dimension less than `inputs`.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", Algorithm 1,
        arXiv 1705.08741.
    """
    if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
        raise ValueError(
            "mask must have one dimension less than the inputs. Received: "
            f"mask of shape {tuple(mask.shape)} for inputs of shape "
            f"{tuple(inputs.shape)}. Leave out the mask's last axis."
        )
    # Squares of float16 overflow, and sums of bfloat16 stall at 256 terms.
    dtype = backend.result_type(inputs.dtype, "float32")
    if not backend.is_float_dtype(inputs.dtype):
        inputs = ops.cast(inputs, dtype)
    axis = axis % len(inputs.shape)
    channels = (inputs.shape[axis],)
    gamma = ops.ones(channels, dtype) if gamma is None else ops.cast(gamma, dtype)
    beta = ops.zeros(channels, dtype) if beta is None else ops.cast(beta, dtype)

    if _kernel is None:
        _kernel = _fastest_kernel(inputs, virtual_batch_size, axis, mask)
    if _kernel == "fused":
        return fused_ghosts.normalize(inputs, gamma, beta, virtual_batch_size, epsilon)
    return _closed_form(inputs, gamma, beta, virtual_batch_size, axis, epsilon, mask)


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


def _fastest_kernel(inputs, virtual_batch_size, axis, mask):
    """Chosen from what is known while the graph is traced."""
    is_fused = (
        fused_ghosts is not None
        and mask is None
        and axis == len(inputs.shape) - 1
        and fused_ghosts.can_take(inputs, virtual_batch_size)
    )
    return "fused" if is_fused else "closed_form"


def _closed_form(inputs, gamma, beta, virtual_batch_size, axis, epsilon, mask):
    pieces = _split_into_ghosts(inputs, virtual_batch_size)
    masks = [None] * len(pieces)
    if mask is not None:
        mask = ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(inputs))
        masks = _split_into_ghosts(ops.cast(mask, "bool"), virtual_batch_size)

    outputs, means, variances = [], [], []
    for ghosts, ghosts_mask in zip(pieces, masks, strict=True):
        piece, mean, variance = _normalize_ghosts(
            ghosts, gamma, beta, axis + 1, epsilon, ghosts_mask
        )
        outputs.append(ops.reshape(piece, (-1, *ops.shape(inputs)[1:])))
        means.append(ops.reshape(mean, (-1, *gamma.shape)))
        variances.append(ops.reshape(variance, (-1, *gamma.shape)))
    return _concatenate(outputs), _concatenate(means), _concatenate(variances)


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


def _normalize_ghosts(ghosts, gamma, beta, axis, epsilon, mask):
    """Normalizes `(ghosts, examples, ...)`, with the gradient in closed form.

    The gradient is that of batch normalization, by ghost: with `d = x - mean`,
    `s = 1 / sqrt(variance + epsilon)` and sums over the ghost's `n` values,
    `dx = gamma s (dy - (sum(dy) + d s^2 sum(dy d)) / n)`. Autodiff would instead save
    and read several tensors of the size of the input.
    """
    dtype = gamma.dtype
    axes = [a for a in range(1, len(ghosts.shape)) if a != axis]
    per_channel = [-1 if a == axis else 1 for a in range(len(ghosts.shape))]
    count = _count(ghosts, axes, mask, dtype)

    def in_sums(values):
        # `where`, not a product: what is masked may be infinite or not a number.
        return values if mask is None else ops.where(mask, values, 0)

    def total(values):
        return ops.sum(values, axis=axes, keepdims=True)

    values = ops.cast(ops.stop_gradient(ghosts), dtype)
    mean = total(in_sums(values)) / count
    variance = total(in_sums(ops.square(values - mean))) / count

    # The statistics are arguments too, since JAX's custom gradients take no closures.
    @ops.custom_gradient
    def normalize(ghosts, gamma, beta, mean, variance):
        inverse = ops.rsqrt(variance + epsilon)
        scale = inverse * ops.reshape(gamma, per_channel)
        # The difference first: `x * scale - mean * scale` cancels for a large mean.
        centered = ops.cast(ghosts, dtype) - mean
        outputs = centered * scale + ops.reshape(beta, per_channel)

        def gradient(*args, upstream=None):
            (upstream,) = args if upstream is None else (upstream,)
            upstream = ops.cast(upstream, dtype)
            centered = ops.cast(ghosts, dtype) - mean
            by_beta = total(upstream)
            by_scale = total(upstream * centered)
            by_statistics = by_beta + centered * (inverse * inverse * by_scale)
            by_ghosts = scale * (upstream - in_sums(by_statistics / count))
            over_ghosts = [0, *axes]
            return (
                ops.cast(by_ghosts, ghosts.dtype),
                ops.sum(inverse * by_scale, axis=over_ghosts),
                ops.sum(by_beta, axis=over_ghosts),
                ops.zeros_like(mean),
                ops.zeros_like(variance),
            )

        return ops.cast(outputs, ghosts.dtype), gradient

    return normalize(ghosts, gamma, beta, mean, variance), mean, variance


def _count(ghosts, axes, mask, dtype):
    """How many values each ghost's statistics have, by channel if there is a mask."""
    if mask is not None:
        # With the epsilon that BatchNormalization has there: a ghost that is masked
        # altogether has mean and variance 0.
        count = ops.sum(ops.cast(mask, dtype), axis=axes, keepdims=True)
        return count + backend.epsilon()
    sizes = [ops.shape(ghosts)[a] for a in axes]
    return math.prod(
        size if isinstance(size, int) else ops.cast(size, dtype) for size in sizes
    )


def _concatenate(pieces):
    return pieces[0] if len(pieces) == 1 else ops.concatenate(pieces, axis=0)
