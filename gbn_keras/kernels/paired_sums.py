"""Two sums in one pass over memory, where XLA compiles."""

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    from gbn_keras._tensorflow_internals import is_compiled_by_xla
    from gbn_keras.kernels import tensorflow_sums
elif keras.backend.backend() == "jax":
    from gbn_keras.kernels import jax_sums


def paired_sums(first, second, axis: int):
    """The sums of two tensors over an axis.

    XLA's compilers for CPUs make a loop for each sum, and each loop reads the tensors
    that its values are computed from. A reduction of two tensors is one loop.

    Args:
        first: Tensor.
        second: Tensor of the same shape and dtype.
        axis: Axis to sum over, counted from the front. It should be short: XLA unrolls
            the loop over it.

    Returns:
        Two tensors without this axis.
    """
    if keras.backend.backend() == "jax":
        return jax_sums.reduced_together(first, second, axis)
    if keras.backend.backend() == "tensorflow" and is_compiled_by_xla():
        return tensorflow_sums.reduced_together(first, second, axis)
    return ops.sum(first, axis=axis), ops.sum(second, axis=axis)
