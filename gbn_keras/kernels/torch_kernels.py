"""Ghost batches on PyTorch's native batch normalization, and the fastest kernel."""

import math

import torch

from gbn_keras.kernels import torch_chunks, torch_one_by_one
from gbn_keras.kernels.closed_form import ClosedForm

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Smaller ghosts are computed many at once, because a call of PyTorch's kernel costs
# more than the passes over memory that it saves. Near this number of values, both take
# the same time: measured on a CPU, estimated for CUDA.
_SMALLEST_ALONE = {"cpu": 2**16, "cuda": 2**23}


def fastest_kernel(inputs, mask) -> str:
    """The name of the kernel to use for inputs with a floating dtype."""
    can_be_native = (
        mask is None
        # Not a subclass, such as a tensor spread over devices.
        and type(inputs) in (torch.Tensor, torch.nn.Parameter)
        and inputs.device.type in _SMALLEST_ALONE
        and inputs.dtype in _DTYPES
        and inputs.numel() > 0
        # PyTorch's compiler fuses the closed form on its own.
        and not torch.compiler.is_compiling()
    )
    return "native" if can_be_native else "closed_form"


def native(form: ClosedForm, inputs, gamma, beta):
    """`(outputs, mean, variance)` with PyTorch's own kernels."""
    return _Native.apply(inputs, gamma, beta, form)


class _Native(torch.autograd.Function):
    """Forward and backward pass. Keeps the inputs and tensors per channel only.

    With ReLU it keeps the outputs, too, which takes no memory: the next layer keeps
    them as well.

    Nothing is copied to split the batch: ghosts are views.
    """

    @staticmethod
    def forward(ctx, inputs, gamma, beta, form):
        values, axis = _in_memory_order(inputs, form.axis)
        outputs = torch.empty_like(values)
        ghosts = max(1, len(inputs) // form.virtual_batch_size)
        mean, inverse, variance = gamma.new_empty((3, ghosts, len(gamma)))
        for how, of_piece, (x, y) in _pieces(form, axis, values, outputs):
            statistics = (s[of_piece] for s in (mean, inverse, variance))
            how.normalize(form, x, y, gamma, beta, *statistics)
        outputs = outputs.movedim(axis, form.axis)
        ctx.form = form
        kept = [outputs] if form.relu else []
        ctx.save_for_backward(inputs, gamma, beta, mean, inverse, *kept)
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    def backward(ctx, upstream, *_):
        inputs, gamma, beta, mean, inverse, *kept = ctx.saved_tensors
        form = ctx.form
        if torch.is_grad_enabled():  # For a second derivative.
            statistics = form.statistics(inputs)
            return *form.gradients(upstream, inputs, gamma, beta, *statistics), None
        values, axis = _in_memory_order(inputs, form.axis)
        upstream, *kept = (
            tensor.movedim(form.axis, axis).contiguous() for tensor in (upstream, *kept)
        )
        by_inputs = torch.empty_like(values)
        by_gamma, by_beta = gamma.new_empty((2, *mean.shape))
        for how, of_piece, (x, dx, *dy_and_y) in _pieces(
            form, axis, values, by_inputs, upstream, *kept
        ):
            statistics = (s[of_piece] for s in (mean, inverse, by_gamma, by_beta))
            how.gradients(form, x, dx, dy_and_y, gamma, *statistics)
        by_inputs = by_inputs.movedim(axis, form.axis)
        return by_inputs, by_gamma.sum(0), by_beta.sum(0), None


def _in_memory_order(values, axis):
    """`(values, axis)` with the channel axis where it is in memory.

    Between layers with channels last and first, a transposed view is passed on. There
    is a copy only if the values lie in memory in yet another way.
    """
    for place in (axis, 1, values.dim() - 1):
        moved = values.movedim(axis, place)
        if moved.is_contiguous():
            return moved, place
    return values.contiguous(), axis


def _pieces(form, axis, *tensors):
    """For ghosts of one size: how to compute them, which they are, and their parts.

    A part of a tensor has the shape `(ghosts, rows, channels, columns)`.
    """
    batch, *sizes = tensors[0].shape
    rows, columns = math.prod(sizes[: axis - 1]), math.prod(sizes[axis:])
    smallest_alone = _SMALLEST_ALONE[tensors[0].device.type]
    first = 0
    for examples, ghosts, size in form.cuts(batch):
        is_small = size * math.prod(sizes) < smallest_alone
        how = torch_chunks if is_small else torch_one_by_one
        shape = (ghosts, size * rows, sizes[axis - 1], columns)
        of_piece = slice(first, first + ghosts)
        yield how, of_piece, [tensor[examples].view(shape) for tensor in tensors]
        first += ghosts
