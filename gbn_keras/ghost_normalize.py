"""The mathematics of ghost batch normalization: pure functions, any Keras backend.

`GhostBatchNormalization` is a thin layer on these; nothing here holds a variable.

Several kernels compute the same, the fastest is taken. `ClosedForm` runs anywhere and
is the fastest wherever XLA compiles; `tensorflow_kernels` has what is faster where
TensorFlow runs op by op.
"""

import math

import keras
from keras import backend, ops

from gbn_keras.kernels.closed_form import ClosedForm

if keras.backend.backend() == "tensorflow":
    from gbn_keras.kernels import tensorflow_gradients, tensorflow_kernels
elif keras.backend.backend() == "jax":
    import jax


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
    whole batch is. An empty batch has no ghosts.

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
        _kernel: `"closed_form"`, `"two_stages"`, `"compiled"` or `"fused"`, for tests;
            by default the fastest.

    Returns:
        `(outputs, mean, variance)`: the normalized tensor in the shape and floating
        dtype of `inputs`, and the ghosts' statistics in batch order, each `(ghosts,
        channels)` in float32, on TensorFlow float64 where the inputs are. Gradients
        flow through the outputs, not through the statistics.

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
    axis = axis % len(inputs.shape)
    dtype = backend.result_type(inputs.dtype, "float32")
    if not backend.is_float_dtype(inputs.dtype):
        inputs = ops.cast(inputs, dtype)
    if mask is not None:
        mask = ops.cast(ops.expand_dims(mask, -1), "bool")
        mask = ops.broadcast_to(mask, ops.shape(inputs))
    channels = (inputs.shape[axis],)
    gamma = ops.ones(channels, dtype) if gamma is None else ops.cast(gamma, dtype)
    beta = ops.zeros(channels, dtype) if beta is None else ops.cast(beta, dtype)

    kernel = _kernel or _fastest_kernel(inputs, virtual_batch_size, axis, mask)
    if kernel == "fused":
        return tensorflow_kernels.fused(
            inputs, gamma, beta, virtual_batch_size, epsilon
        )
    in_two_stages = kernel in ("two_stages", "compiled")
    form = ClosedForm(virtual_batch_size, axis, epsilon, in_two_stages)
    if kernel == "compiled":
        return tensorflow_kernels.compiled(form, inputs, gamma, beta, mask)
    return _with_gradient(form, inputs, gamma, beta, mask)


def ghost_moving_average(moving, statistics, momentum: float, valid=None):
    """Takes one step of the exponential moving average per ghost, in batch order.

    With momentum `m` and `G` ghosts:
    `m^G moving + sum_{i=1..G} (1 - m) m^(G-i) statistics_i`.

    The exponents are those that Algorithm 1 intends: as printed, `m` is raised to the
    small batch's size, and the weights do not sum to one.

    Args:
        moving: Tensor of shape `(channels,)`, the average so far.
        statistics: Tensor of shape `(ghosts, channels)`.
        momentum: The weight of the past at each step, from 0 to 1.
        valid: Tensor of booleans that broadcasts to the shape of `statistics`, or
            `None`. Where it is false, there is no step.

    Returns:
        The new average, shape `(channels,)`, in the dtype of `statistics`.
    """
    dtype = statistics.dtype
    if valid is None:
        ghosts = ops.shape(statistics)[0]
        steps_after = ghosts - 1 - ops.arange(ghosts)
        weights = (1 - momentum) * momentum ** ops.cast(steps_after, dtype)
        past = ops.cast(moving, dtype) * momentum ** ops.cast(ghosts, dtype)
        return past + ops.sum(ops.expand_dims(weights, -1) * statistics, axis=0)
    counted = ops.cast(valid, dtype)
    steps = ops.sum(counted, axis=0)
    steps_after = steps - ops.cumsum(counted, axis=0)
    weights = (1 - momentum) * momentum**steps_after * counted
    past = ops.cast(moving, dtype) * momentum**steps
    return past + ops.sum(weights * statistics, axis=0)


def ghosts_with_values(inputs, virtual_batch_size: int, *, axis: int = -1, mask=None):
    """Which ghosts have values to take statistics of.

    Args:
        inputs: As in `ghost_normalize`, like the others.
        virtual_batch_size: Number of examples of a ghost.
        axis: The channel axis.
        mask: Where it is false, there is no value.

    Returns:
        Tensor of booleans, `(ghosts, channels)` or, the same for all channels,
        `(ghosts, 1)`; `None` if it is known that all ghosts have values.
    """
    if mask is not None:
        axis, valid = axis % len(inputs.shape), ops.expand_dims(mask, -1)
        valid = ops.cast(valid, "bool")
    elif all(isinstance(size, int) and size for size in inputs.shape[1:]):
        return None
    else:  # All examples have values or none has: sequences of no steps, say.
        batch, *sizes = ops.shape(inputs)
        has_values = ops.convert_to_tensor(math.prod(sizes) > 0)
        axis, valid = 1, ops.broadcast_to(has_values, (batch, 1))
    return ClosedForm(virtual_batch_size, axis, 0.0).number_valid(valid) > 0


def _fastest_kernel(inputs, virtual_batch_size, axis, mask):
    """Chosen from what is known while the graph is traced."""
    if backend.backend() == "tensorflow":
        return tensorflow_kernels.fastest_kernel(inputs, virtual_batch_size, axis, mask)
    on_cpu = backend.backend() == "jax" and jax.default_backend() == "cpu"
    return "two_stages" if on_cpu else "closed_form"


def _with_gradient(form, inputs, gamma, beta, mask):
    """`(outputs, mean, variance)` of a closed form, gradient included."""
    # PyTorch's custom gradients have one output, so these stay outside.
    mean, variance = form.statistics(ops.stop_gradient(inputs), mask)
    masks = () if mask is None else (mask,)
    if backend.backend() == "tensorflow":
        outputs = form.normalize(inputs, gamma, beta, mean, variance)
        operands, saved = (inputs, gamma, beta), (mean, variance, *masks)
        rule = tensorflow_kernels.ClosedFormGradient(form)
        outputs = tensorflow_gradients.with_gradient(rule, outputs, operands, saved)
        return outputs, mean, variance

    # All tensors are arguments: JAX's custom gradients take no closures.
    @ops.custom_gradient
    def normalize(inputs, gamma, beta, mean, variance, *masks):
        def gradient(*args, upstream=None):
            (upstream,) = args if upstream is None else (upstream,)
            return (
                *form.gradients(upstream, inputs, gamma, mean, variance, *masks),
                *map(ops.zeros_like, (mean, variance, *masks)),
            )

        return form.normalize(inputs, gamma, beta, mean, variance), gradient

    return normalize(inputs, gamma, beta, mean, variance, *masks), mean, variance
