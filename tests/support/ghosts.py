"""Ghost batches in numpy: the reference for the tests of the layer."""

import numpy as np


def split(values: np.ndarray, virtual_batch_size: int) -> list[np.ndarray]:
    """Contiguous ghosts of a batch; the remainder joins the last one."""
    ghosts = max(1, len(values) // virtual_batch_size)
    return np.split(values, [i * virtual_batch_size for i in range(1, ghosts)])


def normalize(inputs, gamma, beta, virtual_batch_size, axis, epsilon):
    """Outputs, and the mean and variance of each ghost, in float64."""
    outputs, means, variances = [], [], []
    for ghost in split(np.float64(inputs), virtual_batch_size):
        rows = np.moveaxis(ghost, axis, -1)
        axes = tuple(range(rows.ndim - 1))
        means.append(rows.mean(axes))
        variances.append(rows.var(axes))
        normalized = (rows - means[-1]) / np.sqrt(variances[-1] + epsilon)
        outputs.append(np.moveaxis(gamma * normalized + beta, -1, axis))
    return np.concatenate(outputs), np.array(means), np.array(variances)


def gradients(inputs, gamma, upstream, virtual_batch_size, axis, epsilon):
    """Closed-form gradients by the inputs, gamma and beta, in float64."""
    by_inputs, by_gamma, by_beta = [], 0, 0
    for ghost, dy in zip(
        split(np.float64(inputs), virtual_batch_size),
        split(np.float64(upstream), virtual_batch_size),
        strict=True,
    ):
        rows, dy = np.moveaxis(ghost, axis, -1), np.moveaxis(dy, axis, -1)
        axes = tuple(range(rows.ndim - 1))
        deviation = np.sqrt(rows.var(axes) + epsilon)
        normalized = (rows - rows.mean(axes)) / deviation
        by_gamma = by_gamma + (dy * normalized).sum(axes)
        by_beta = by_beta + dy.sum(axes)
        dx = dy - dy.mean(axes) - normalized * (dy * normalized).mean(axes)
        by_inputs.append(np.moveaxis(gamma / deviation * dx, -1, axis))
    return np.concatenate(by_inputs), by_gamma, by_beta
