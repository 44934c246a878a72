"""The mathematics of ghost batch normalization: pure functions, any Keras backend.

`GhostBatchNormalization` is a thin layer around them. Nothing here holds a variable.

Several kernels compute the same result, and the fastest one is used. `ClosedForm` runs
anywhere, and is the fastest wherever XLA compiles. `tensorflow_kernels` has faster ones
for TensorFlow without XLA, `torch_kernels` for PyTorch.
"""

import math

import keras
from keras import backend, ops

from gbn_keras.kernels.closed_form import ClosedForm
from gbn_keras.kernels.prepared import prepared

if keras.backend.backend() == "tensorflow":
    from gbn_keras.kernels import tensorflow_gradients, tensorflow_kernels
elif keras.backend.backend() == "torch":
    from gbn_keras.kernels import torch_kernels
elif keras.backend.backend() == "jax":
    import jax

    from gbn_keras.kernels import jax_shards


def ghost_normalize(
    inputs,
    gamma,
    beta,
    virtual_batch_size: int,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask=None,
    activation=None,
    _kernel: str | None = None,
):
    """Normalizes each ghost by its own mean and biased variance.

    The batch is cut into contiguous ghosts of `virtual_batch_size` examples. The
    remainder joins the last ghost, so no ghost is smaller than `virtual_batch_size`
    unless the whole batch is. An empty batch has no ghosts.

    Args:
        inputs: Tensor of shape `(batch, ...)`, rank 2 or more. The batch size may be
            static or dynamic.
        gamma: Tensor of shape `(channels,)` that multiplies the normalized values, or
            `None`.
        beta: Tensor of shape `(channels,)` that is added after that, or `None`.
        virtual_batch_size: Number of examples per ghost, at least 1.
        axis: Channel axis, any but 0.
        epsilon: Number added to the variance before the square root.
        mask: Tensor of the shape of `inputs` without its last axis, or `None`. Values
            where it is false do not count in their ghost's statistics. They are still
            normalized, as in `keras.layers.BatchNormalization`.
        activation: Function of the outputs, or `None`. The kernels compute
            `keras.activations.relu` themselves, which saves a pass over the batch each
            way. Its gradient at 0 is 0. All others are called afterwards.
        _kernel: `"closed_form"`, `"two_stages"`, `"compiled"`, `"fused"`, `"native"` or
            `"by_example"`, for tests. The default is the fastest.

    Returns:
        `(outputs, mean, variance)`. `outputs` has the shape and floating dtype of
        `inputs`. The statistics are in batch order, each `(ghosts, channels)` in
        float32. On TensorFlow they are float64 if the inputs are. Gradients flow
        through the outputs, not through the statistics.

    Raises:
        ValueError: If `mask` does not have one dimension less than `inputs`.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", Algorithm 1,
        arXiv 1705.08741.
    """
    axis = axis % len(inputs.shape)
    inputs, gamma, beta, mask = prepared(inputs, gamma, beta, axis, mask)
    kernel = _kernel or _fastest_kernel(inputs, virtual_batch_size, axis, mask)
    relu = activation is keras.activations.relu
    what = (virtual_batch_size, axis, epsilon, relu)
    form = ClosedForm(*what, in_two_stages=kernel in ("two_stages", "compiled"))
    if kernel == "fused":
        results = tensorflow_kernels.fused(form, inputs, gamma, beta)
    elif kernel == "compiled":
        results = tensorflow_kernels.compiled(form, inputs, gamma, beta, mask)
    elif kernel == "native":
        results = torch_kernels.native(form, inputs, gamma, beta)
    elif kernel == "by_example":
        results = _with_gradient(jax_shards.ByExample(*what), inputs, gamma, beta, mask)
    else:
        results = _with_gradient(form, inputs, gamma, beta, mask)
    if activation is None or relu:
        return results
    outputs, *statistics = results
    return activation(outputs), *statistics


def ghost_moving_average(moving, statistics, momentum: float, valid=None):
    """Takes one step of the exponential moving average per ghost, in batch order.

    With momentum `m` and `G` ghosts, the result is
    `m^G moving + sum_{i=1..G} (1 - m) m^(G-i) statistics_i`.

    These are the exponents that Algorithm 1 intends. As printed, `m` is raised to the
    small batch's size, and the weights do not sum to one.

    Args:
        moving: Average so far, shape `(channels,)`.
        statistics: Statistics of the ghosts, shape `(ghosts, channels)`.
        momentum: Weight of the past at each step, from 0 to 1.
        valid: Boolean tensor that broadcasts to the shape of `statistics`, or `None`.
            Where it is false, there is no step.

    Returns:
        The new average, shape `(channels,)`, in the dtype of `statistics`.
    """
    dtype = statistics.dtype
    if valid is None:
        ghosts = ops.shape(statistics)[0]
        steps_after = ghosts - 1 - ops.arange(ghosts)
        weights = (1 - momentum) * momentum ** ops.cast(steps_after, dtype)
        past = ops.cast(moving, dtype) * fraction_kept(momentum, ghosts, dtype)
        return past + ops.sum(ops.expand_dims(weights, -1) * statistics, axis=0)
    counted = ops.cast(valid, dtype)
    steps = ops.sum(counted, axis=0)
    steps_after = steps - ops.cumsum(counted, axis=0)
    weights = (1 - momentum) * momentum**steps_after * counted
    past = ops.cast(moving, dtype) * momentum**steps
    return past + ops.sum(weights * statistics, axis=0)


def fraction_kept(momentum: float, steps, dtype: str):
    """`momentum**steps`, the part of a moving average that so many steps leave.

    It is a number if `steps` is one, otherwise a tensor of `dtype`. A number must not
    become a tensor in every update: PyTorch would wait until the GPU has copied it.

    Args:
        momentum: Weight of the past at each step.
        steps: Number of steps, an integer or a tensor.
        dtype: Of the tensor.
    """
    if isinstance(steps, int):
        return momentum**steps
    return momentum ** ops.cast(steps, dtype)


def ghosts_with_values(inputs, virtual_batch_size: int, *, axis: int = -1, mask=None):
    """Which ghosts have values for their statistics.

    Args:
        inputs: Tensor to normalize, as in `ghost_normalize`.
        virtual_batch_size: Number of examples per ghost.
        axis: Channel axis.
        mask: Mask as in `ghost_normalize`. Values where it is false do not count.

    Returns:
        Boolean tensor `(ghosts, channels)`, or `(ghosts, 1)` if it is the same for all
        channels. `None` if all ghosts are known to have values.
    """
    if mask is not None:
        axis, valid = axis % len(inputs.shape), ops.expand_dims(mask, -1)
        valid = ops.cast(valid, "bool")
    elif all(isinstance(size, int) and size for size in inputs.shape[1:]):
        return None
    else:  # Either all examples have values or none has, as sequences of length 0.
        batch, *sizes = ops.shape(inputs)
        has_values = ops.convert_to_tensor(math.prod(sizes) > 0)
        axis, valid = 1, ops.broadcast_to(has_values, (batch, 1))
    return ClosedForm(virtual_batch_size, axis, 0.0).number_valid(valid) > 0


def _fastest_kernel(inputs, virtual_batch_size, axis, mask):
    """The kernel to use, from what is known while tracing."""
    if backend.backend() == "tensorflow":
        return tensorflow_kernels.fastest_kernel(inputs, virtual_batch_size, axis, mask)
    if backend.backend() == "torch":
        return torch_kernels.fastest_kernel(inputs, mask)
    if backend.backend() == "jax":
        on_cpu = jax.default_backend() == "cpu"
        return jax_shards.fastest_kernel(inputs, virtual_batch_size, on_cpu)
    return "closed_form"


def _with_gradient(form, inputs, gamma, beta, mask):
    """`(outputs, mean, variance)` of a closed form, with its gradient."""
    # PyTorch's custom gradients have one output, so the statistics are computed
    # outside.
    mean, variance = form.statistics(ops.stop_gradient(inputs), mask)
    masks = () if mask is None else (mask,)
    if backend.backend() == "tensorflow":
        outputs = form.normalize(inputs, gamma, beta, mean, variance)
        operands, saved = (inputs, gamma, beta), (mean, variance, *masks)
        rule = tensorflow_kernels.ClosedFormGradient(form)
        outputs = tensorflow_gradients.with_gradient(rule, outputs, operands, saved)
        return outputs, mean, variance

    # JAX's custom gradients take no closures, so all tensors are arguments.
    @ops.custom_gradient
    def normalize(inputs, gamma, beta, mean, variance, *masks):
        def gradient(*args, upstream=None):
            (upstream,) = args if upstream is None else (upstream,)
            return (
                *form.gradients(upstream, inputs, gamma, beta, mean, variance, *masks),
                *map(ops.zeros_like, (mean, variance, *masks)),
            )

        return form.normalize(inputs, gamma, beta, mean, variance), gradient

    return normalize(inputs, gamma, beta, mean, variance, *masks), mean, variance
