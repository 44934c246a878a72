"""Ghost batches where TensorFlow runs operation by operation, and the fastest kernel.

There are two kernels besides the closed form. `compiled` makes one XLA operation of its
forward pass and one of its backward pass. `fused` calls TensorFlow's fused kernel for
each ghost. Both are separate functions, traced once per shape. So a network of many
layers is traced as fast as with one operation per layer.
"""

import dataclasses
import functools

import tensorflow as tf

from gbn_keras._tensorflow_internals import is_compiled_by_xla
from gbn_keras.kernels.closed_form import ClosedForm
from gbn_keras.kernels.tensorflow_compiled import Compiled
from gbn_keras.kernels.tensorflow_gradients import with_gradient

# With more ghosts, the fused kernel's calls cost more than the passes that it saves.
_MOST_FUSED_GHOSTS = 64

# See `tensorflow_compiled`.
_KEPT = 64

_FUSED_DTYPES = ("float32", "bfloat16", "float16")


def fastest_kernel(inputs, virtual_batch_size: int, axis: int, mask) -> str:
    """The name of the kernel to use, from what is known while tracing."""
    on_cpu = _only_cpus()
    if is_compiled_by_xla():
        # Not the fused kernel: under XLA, it computes the variance as a difference of
        # squares, which loses precision, and XLA fuses better on its own.
        return "two_stages" if on_cpu else "closed_form"
    if not isinstance(inputs, tf.Tensor):
        return "closed_form"
    # XLA compiles for each new shape. A data set's last batch adds one shape, but other
    # unknown sizes (such as sequence lengths) may add many.
    if on_cpu and None not in inputs.shape[1:]:
        return "compiled"
    can_be_fused = (
        mask is None
        and inputs.shape.is_fully_defined()
        and axis == len(inputs.shape) - 1
        and 0 not in inputs.shape
        and inputs.dtype.name in _FUSED_DTYPES
        and inputs.shape[0] // virtual_batch_size <= _MOST_FUSED_GHOSTS
    )
    return "fused" if can_be_fused else "closed_form"


def compiled(form: ClosedForm, inputs, gamma, beta, mask=None):
    """`(outputs, mean, variance)` of the closed form, compiled by XLA."""
    masks = () if mask is None else (mask,)
    outputs, mean, variance = Compiled(_Forward(form))(inputs, gamma, beta, *masks)
    outputs = with_gradient(
        Compiled(ClosedFormGradient(form)),
        outputs,
        (inputs, gamma, beta),
        (mean, variance, *masks),
    )
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


@dataclasses.dataclass(frozen=True)
class _Forward:
    """The outputs and statistics of a closed form."""

    form: ClosedForm

    def __call__(self, inputs, gamma, beta, mask=None):
        mean, variance = self.form.statistics(inputs, mask)
        outputs = self.form.normalize(inputs, gamma, beta, mean, variance)
        return outputs, mean, variance


@dataclasses.dataclass(frozen=True)
class ClosedFormGradient:
    """The gradient of a closed form, whatever computed its outputs and statistics."""

    form: ClosedForm

    def __call__(self, upstream, inputs, gamma, beta, mean, variance, mask=None):
        """Gradients by inputs, gamma and beta."""
        return self.form.gradients(upstream, inputs, gamma, beta, mean, variance, mask)


def fused(form: ClosedForm, inputs, gamma, beta):
    """`(outputs, mean, variance)` of the form by fused kernels, with channels last."""
    forward, _ = _fused(tuple(inputs.shape), form)
    outputs, mean, variance, reserved = forward(inputs, gamma, beta)
    if form.relu:  # The next layer keeps the outputs, too.
        reserved = [outputs, *reserved]
    outputs = with_gradient(
        _FusedGradient(form), outputs, (inputs, gamma, beta), reserved
    )
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


@dataclasses.dataclass(frozen=True)
class _FusedGradient:
    """The gradient of `fused`."""

    form: ClosedForm

    def __call__(self, upstream, inputs, gamma, beta, *reserved):
        _, backward = _fused(tuple(inputs.shape), self.form)
        if self.form.relu:
            outputs, *reserved = reserved
            upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
        return backward(upstream, inputs, gamma, reserved)


def _only_cpus():
    return all("CPU" in d.device_type for d in tf.config.list_logical_devices())


@functools.lru_cache(_KEPT)
def _fused(shape, form):
    """The forward and the backward function for inputs of one shape."""
    batch, *_, channels = shape
    ghosts = max(1, batch // form.virtual_batch_size)
    sizes = [form.virtual_batch_size] * (ghosts - 1)
    sizes.append(batch - sum(sizes))

    def split(values):
        """Ghosts in the four dimensions that the kernel needs, without a copy."""
        return tf.split(tf.reshape(values, [batch, -1, 1, channels]), sizes)

    def join(pieces):
        return tf.reshape(tf.concat(pieces, axis=0), shape)

    @tf.function(autograph=False)
    def forward(inputs, gamma, beta):
        outputs, means, variances, reserved = [], [], [], []
        for ghost in split(inputs):
            result = tf.raw_ops.FusedBatchNormV3(
                x=ghost,
                scale=gamma,
                offset=beta,
                mean=[],
                variance=[],
                epsilon=form.epsilon,
                is_training=True,
            )
            outputs.append(tf.nn.relu(result.y) if form.relu else result.y)
            means.append(result.batch_mean)
            # The kernel applies Bessel's correction; Keras does not.
            count = ghost.shape.num_elements() // channels
            variances.append(result.batch_variance * ((count - 1) / count))
            reserved += result[3:]
        return join(outputs), tf.stack(means), tf.stack(variances), reserved

    @tf.function(autograph=False)
    def backward(upstream, inputs, gamma, reserved):
        by_inputs, by_gamma, by_beta = [], [], []
        spaces_of_ghosts = zip(*(reserved[i::3] for i in range(3)), strict=True)
        for ghost, ghost_upstream, spaces in zip(
            split(inputs), split(upstream), spaces_of_ghosts, strict=True
        ):
            result = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=ghost_upstream,
                x=ghost,
                scale=gamma,
                reserve_space_1=spaces[0],
                reserve_space_2=spaces[1],
                reserve_space_3=spaces[2],
                epsilon=form.epsilon,
                is_training=True,
            )
            by_inputs.append(result.x_backprop)
            by_gamma.append(result.scale_backprop)
            by_beta.append(result.offset_backprop)
        return join(by_inputs), tf.add_n(by_gamma), tf.add_n(by_beta)

    return forward, backward
