"""Ghost batches that do not fit the shares of JAX's devices.

JAX computes with the whole batch, and its compiler divides the work among the devices.
If each ghost lies on one device, or on several whole ones, the compiler sees that from
the shapes of `ClosedForm`. Other ghosts begin or end inside of a device's share. Their
shapes fit no division, so the compiler would send examples from device to device.
"""

import dataclasses
import math

import jax.numpy as jnp
import keras
from keras import backend, ops

from gbn_keras.kernels.closed_form import where_valid


def fastest_kernel(inputs, virtual_batch_size: int, on_cpu: bool) -> str:
    """The name of the kernel to use, from the shapes and Keras's distribution.

    Args:
        inputs: Tensor to normalize.
        virtual_batch_size: Number of examples per ghost.
        on_cpu: Whether XLA compiles for CPUs.
    """
    batch, shares = inputs.shape[0], _number_of_shares()
    on_one_device = "two_stages" if on_cpu else "closed_form"
    if shares == 1 or not isinstance(batch, int) or batch % shares:
        return on_one_device
    share = batch // shares
    if share % virtual_batch_size == 0:
        return on_one_device
    # A sum in two stages has slices of a ghost, which are not those of devices.
    lies_on_whole_shares = batch % virtual_batch_size == 0 == virtual_batch_size % share
    return "closed_form" if lies_on_whole_shares else "by_example"


def _number_of_shares():
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


@dataclasses.dataclass(frozen=True)
class ByExample:
    """As `ClosedForm`, but sums each example, and then the examples of each ghost.

    The first sum needs no other device. The second one is a small matrix product,
    `(ghosts, examples)` by `(examples, channels)`: the compiler makes it a product on
    each device and one all-reduce of `(ghosts, channels)`.

    Args:
        virtual_batch_size: Number of examples per ghost. The remainder of a batch joins
            the last ghost.
        axis: Channel axis, counted from the front.
        epsilon: Number added to the variance.
        relu: Whether ReLU follows.
    """

    virtual_batch_size: int
    axis: int
    epsilon: float
    relu: bool = False

    def statistics(self, inputs, mask=None):
        """Each ghost's mean and biased variance, `(ghosts, channels)`.

        `mask` has the shape of `inputs`. Values where it is false do not count.
        """
        dtype = backend.result_type(inputs.dtype, "float32")
        values = ops.cast(inputs, dtype)
        count = self._counts(inputs, mask, dtype)
        mean = self._sums(where_valid(mask, values)) / count
        squares = ops.square(values - self._by_example(mean, inputs))
        return mean, self._sums(where_valid(mask, squares)) / count

    def normalize(self, inputs, gamma, beta, mean, variance):
        """The outputs, in the shape and dtype of `inputs`."""
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        centered = ops.cast(inputs, mean.dtype) - self._by_example(mean, inputs)
        outputs = centered * self._by_example(scale, inputs)
        outputs = outputs + self._by_channel(beta, inputs)
        return ops.cast(ops.relu(outputs) if self.relu else outputs, inputs.dtype)

    def gradients(self, upstream, inputs, gamma, beta, mean, variance, mask=None):
        """Gradients by inputs, gamma and beta, from the gradient by the outputs."""
        dtype = mean.dtype
        inverse = ops.rsqrt(variance + self.epsilon)
        centered = ops.cast(inputs, dtype) - self._by_example(mean, inputs)
        scale = self._by_example(gamma * inverse, inputs)
        dy = ops.cast(upstream, dtype)
        if self.relu:
            positive = centered * scale + self._by_channel(beta, inputs) > 0
            dy = where_valid(positive, dy)
        sum_dy = self._sums(dy)
        sum_scaled = inverse * self._sums(dy * centered)
        count = self._counts(inputs, mask, dtype)
        constant, slope = sum_dy / count, inverse * sum_scaled / count
        by_statistics = self._by_example(constant, inputs)
        by_statistics = by_statistics + centered * self._by_example(slope, inputs)
        dx = scale * (dy - where_valid(mask, by_statistics))
        by_gamma, by_beta = (ops.sum(x, axis=0) for x in (sum_scaled, sum_dy))
        return ops.cast(dx, inputs.dtype), by_gamma, by_beta

    def _ghosts(self, batch):
        return max(batch // self.virtual_batch_size, min(batch, 1))

    def _ghost_of_example(self, batch):
        ghosts = jnp.arange(batch) // self.virtual_batch_size
        return jnp.minimum(ghosts, max(self._ghosts(batch) - 1, 0))

    def _sums(self, values):
        """The sum for each ghost and channel."""
        batch = values.shape[0]
        others = [a for a in range(1, len(values.shape)) if a != self.axis]
        rows = ops.sum(values, axis=others)
        ghosts = jnp.arange(self._ghosts(batch))
        members = ghosts[:, None] == self._ghost_of_example(batch)
        # TPUs would round the factors to bfloat16.
        return jnp.matmul(members.astype(rows.dtype), rows, precision="highest")

    def _counts(self, inputs, mask, dtype):
        """The number of values in such a sum, at least 1."""
        if mask is None:
            batch, *sizes = inputs.shape
            values = math.prod(sizes) // inputs.shape[self.axis]
            ghosts = self._ghosts(batch)
            examples = jnp.full((ghosts, 1), self.virtual_batch_size)
            # The remainder joins the last ghost.
            rest = batch - (ghosts - 1) * self.virtual_batch_size
            examples = examples.at[-1:].set(rest)
            return ops.cast(ops.maximum(examples * values, 1), dtype)
        # As `ClosedForm`.
        return self._sums(ops.cast(mask, dtype)) + backend.epsilon()

    def _by_example(self, statistics, inputs):
        """The statistics of each example's ghost, to broadcast over `inputs`."""
        rows = statistics[self._ghost_of_example(inputs.shape[0])]
        return self._by_channel(rows, inputs)

    def _by_channel(self, rows, inputs):
        """`(channels,)` or `(examples, channels)`, to broadcast over `inputs`."""
        shape = [1] * len(inputs.shape)
        shape[0], shape[self.axis] = -1, inputs.shape[self.axis]
        return ops.reshape(rows, shape)
