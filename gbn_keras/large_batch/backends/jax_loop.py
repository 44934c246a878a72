"""The loop over micro-batches and the gradients, on JAX."""

import jax
import keras


def reduce_in_loop(function, state, data, size, whole):
    """Applies `function(state, start, micro_batch)` to whole micro-batches in order.

    It is a `scan`, which is compiled for one micro-batch, and needs its memory. If a
    `keras.distribution` is set, each micro-batch is laid out over all devices as a
    batch is.

    Args:
        function: Gives the next state, of the same shapes.
        state: The first state, nested arrays.
        data: Nested arrays of examples.
        size: Number of examples per micro-batch.
        whole: Number of micro-batches.

    Raises:
        ValueError: If the devices cannot share a micro-batch equally.
    """

    def in_rows(values):
        if values is None:  # No sample weights.
            return None
        shape = (whole, size, *values.shape[1:])
        return _over_devices(part_of(values, 0, whole * size).reshape(shape))

    def body(state, row):
        index, micro_batch = row
        return function(state, index * size, micro_batch), None

    rows = keras.tree.map_structure(in_rows, data)
    state, _ = jax.lax.scan(body, state, (jax.numpy.arange(whole), rows))
    return state


def part_of(values, start, size):
    """The `size` examples from place `start` on."""
    return jax.lax.slice_in_dim(values, start, start + size)


def gradients_of(function, weights):
    """`(gradients, found)` of `function(weights) -> (loss, found)`.

    JAX's gradient is 0 if the loss does not depend on the weight.
    """
    return jax.grad(function, has_aux=True)(weights)


def squares_of(tensors):
    """The sum of the squares of all entries of float32 arrays."""
    return sum(jax.numpy.vdot(tensor, tensor) for tensor in tensors)


def _over_devices(rows):
    """Micro-batches, one a row, each shared among the devices."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return rows
    layout = distribution.get_data_layout(rows.shape[1:])
    mesh = layout.device_mesh
    devices = mesh.shape[mesh.axis_names.index(layout.axes[0])]
    if rows.shape[1] % devices:
        raise ValueError(
            "micro_batch_size must be a multiple of the number of devices that share "
            f"a batch. Received: micro_batch_size={rows.shape[1]} on {devices} "
            "devices. Choose a multiple of it."
        )
    layout = keras.distribution.TensorLayout((None, *layout.axes), mesh)
    return keras.distribution.distribute_tensor(rows, layout)
