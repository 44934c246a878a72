"""`prepared()`: the arguments of a layer in the form that kernels take."""

from keras import backend, ops


def prepared(inputs, gamma, beta, axis: int, mask):
    """`(inputs, gamma, beta, mask)` as the kernels take them.

    Inputs have a floating dtype, `gamma` and `beta` are tensors in the dtype of the
    statistics, and the mask, unless it is `None`, is boolean and of the inputs' shape.

    Args:
        inputs: Tensor to normalize, as in `ghost_normalize`.
        gamma: Factor of each channel, or `None` for 1.
        beta: Addend of each channel, or `None` for 0.
        axis: Channel axis, counted from the front.
        mask: Mask as in `ghost_normalize`, or `None`.

    Raises:
        ValueError: If `mask` does not have one dimension less than `inputs`.
    """
    if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
        raise ValueError(
            "mask must have one dimension less than the inputs. Received: mask of "
            f"shape {tuple(mask.shape)} for inputs of shape {tuple(inputs.shape)}. "
            "Remove the mask's last axis."
        )
    # On PyTorch, this also moves them to Keras's device, as Keras's own layers do.
    inputs = ops.convert_to_tensor(inputs)
    dtype = backend.result_type(inputs.dtype, "float32")
    if not backend.is_float_dtype(inputs.dtype):
        inputs = ops.cast(inputs, dtype)
    if mask is not None:
        mask = ops.cast(ops.expand_dims(mask, -1), "bool")
        mask = ops.broadcast_to(mask, ops.shape(inputs))
    channels = (inputs.shape[axis],)
    gamma = ops.ones(channels, dtype) if gamma is None else ops.cast(gamma, dtype)
    beta = ops.zeros(channels, dtype) if beta is None else ops.cast(beta, dtype)
    return inputs, gamma, beta, mask
