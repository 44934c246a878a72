"""Large ghosts on PyTorch: its own batch normalization on one after the other.

A call goes over its ghost several times, and a ghost is small enough for the
processor's cache, where the whole batch is not.
"""

import torch

from gbn_keras.kernels.torch_relu import through_relu


def normalize(form, values, outputs, gamma, beta, mean, inverse, variance):
    """As `torch_chunks.normalize`."""
    # With momentum 1, the kernel's running variance is the ghost's own. It would lose
    # digits if it were computed from the inverse. The running mean is not needed.
    variance.zero_()
    running_mean = torch.zeros_like(gamma)
    for x, y, mean_i, inverse_i, variance_i in zip(
        values, outputs, mean, inverse, variance, strict=True
    ):
        torch.native_batch_norm(
            x,
            gamma,
            beta,
            running_mean,
            variance_i,
            True,
            1.0,
            form.epsilon,
            out=(y, mean_i, inverse_i),
        )
        if form.relu:
            y.relu_()
    # Keras's variance has no correction by Bessel.
    count = values[0].numel() // len(gamma)
    if count > 1:
        variance.mul_((count - 1) / count)
    else:  # The correction divided by zero.
        variance.zero_()


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
    """As `torch_chunks.gradients`."""
    for x, dx, dy, mean_i, inverse_i, by_gamma_i, by_beta_i in zip(
        values,
        by_values,
        through_relu(*upstream_and_outputs),
        mean,
        inverse,
        by_gamma,
        by_beta,
        strict=True,
    ):
        torch.ops.aten.native_batch_norm_backward.out(
            dy,
            x,
            gamma,
            None,
            None,
            mean_i,
            inverse_i,
            True,
            form.epsilon,
            [True, True, True],
            out0=dx,
            out1=by_gamma_i,
            out2=by_beta_i,
        )
