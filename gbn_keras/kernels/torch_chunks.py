"""Small ghosts on PyTorch: element-wise operations on many of them at once."""

import torch

from gbn_keras.kernels.torch_relu import through_relu

# Values of a chunk. On a CPU, a chunk and what is computed from it stay in the
# processor's cache (measured). On CUDA, a chunk keeps the GPU busy for longer than
# Python needs to start the next operation (estimated).
_CHUNK = {"cpu": 2**19, "cuda": 2**24}

# All axes of `(ghosts, rows, channels, columns)` but ghosts and channels.
_OF_A_GHOST = (1, 3)


def normalize(form, values, outputs, gamma, beta, mean, inverse, variance):
    """Normalizes ghosts of one size, and writes what it computes into its arguments.

    Args:
        form: The `ClosedForm` that says what to compute.
        values: Tensor of shape `(ghosts, rows, channels, columns)`.
        outputs: Where to write the outputs, in the shape of `values`.
        gamma: Factor of each channel, float32.
        beta: Addend of each channel, float32.
        mean: Where to write each ghost's mean, `(ghosts, channels)`.
        inverse: The same for `1 / sqrt(variance + epsilon)`.
        variance: The same for the biased variance.
    """
    count = _count(values)
    of_centered, of_squares = _buffers(values)
    statistics = map(_by_channel, (mean, inverse, variance))
    gamma, beta = _by_channel(gamma), _by_channel(beta)
    parts = _chunks(values, outputs, *statistics)
    for x, y, mean_i, inverse_i, variance_i in zip(*parts, strict=True):
        torch.div(_sum(x), count, out=mean_i)
        centered = torch.sub(x, mean_i, out=of_centered[: len(x)])
        squares = torch.square(centered, out=of_squares[: len(x)])
        torch.div(_sum(squares), count, out=variance_i)
        torch.rsqrt(variance_i + form.epsilon, out=inverse_i)
        torch.addcmul(beta, centered, gamma * inverse_i, out=y)
        if form.relu:
            y.relu_()


def gradients(
    form,
    values,
    by_values,
    upstream_and_outputs,
    gamma,
    mean,
    inverse,
    by_gamma,
    by_beta,
):
    """The gradients of ghosts of one size, as in `ClosedForm`.

    Args:
        form: The `ClosedForm` that says what to compute.
        values: Tensor of shape `(ghosts, rows, channels, columns)`.
        by_values: Where to write the gradient by the values, in their shape.
        upstream_and_outputs: The gradient by the outputs, and if ReLU follows, the
            outputs.
        gamma: Factor of each channel, float32.
        mean: As `normalize` wrote it.
        inverse: As `normalize` wrote it.
        by_gamma: Where to write the gradient by gamma, `(ghosts, channels)`.
        by_beta: The same for beta.
    """
    count = _count(values)
    of_centered, of_products = _buffers(values)
    statistics = map(_by_channel, (mean, inverse, by_gamma, by_beta))
    gamma = _by_channel(gamma)
    upstreams = through_relu(*_chunks(*upstream_and_outputs))
    parts = _chunks(values, by_values, *statistics)
    for dy, x, dx, mean_i, inverse_i, by_gamma_i, by_beta_i in zip(
        upstreams, *parts, strict=True
    ):
        centered = torch.sub(x, mean_i, out=of_centered[: len(x)])
        products = torch.mul(dy, centered, out=of_products[: len(x)])
        by_beta_i.copy_(_sum(dy))
        torch.mul(_sum(products), inverse_i, out=by_gamma_i)
        # dx = scale (dy - (by_beta + centered inverse by_gamma) / n), term by term.
        scale = gamma * inverse_i
        constant = scale * by_beta_i / -count
        slope = scale * inverse_i * by_gamma_i / -count
        part = torch.addcmul(constant, dy, scale, out=products)
        torch.addcmul(part, centered, slope, out=dx)


def _buffers(values):
    """Two buffers in float32 of a chunk's size, which all chunks share.

    New memory for each chunk would cost more than computing: the system hands it out
    page by page.
    """
    shape = _chunks(values)[0][0].shape
    return values.new_empty((2, *shape), dtype=torch.float32)


def _chunks(values, *others):
    """Each tensor in parts, one for each chunk of ghosts."""
    ghosts = max(1, _CHUNK[values.device.type] // values[0].numel())
    return [tensor.split(ghosts) for tensor in (values, *others)]


def _by_channel(statistics):
    """`(channels,)` or `(ghosts, channels)`, to broadcast: a view."""
    return statistics.view(-1, 1, statistics.shape[-1], 1)


def _count(values):
    _, rows, _, columns = values.shape
    return rows * columns


def _sum(values):
    # Not a product with ones, which is as fast: PyTorch may be set to round its
    # factors to bfloat16 or TF32.
    return values.sum(_OF_A_GHOST, keepdim=True, dtype=torch.float32)
