"""Ghost batches on PyTorch's native batch normalization, and the fastest kernel."""

import dataclasses
import math

import torch

from gbn_keras.kernels.closed_form import ClosedForm

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Ghosts with fewer values share one call, because their calls would cost more than the
# copies that join them. Near this number, both take the same time: measured on a CPU,
# estimated for CUDA.
_SMALLEST_ALONE = {"cpu": 2**14, "cuda": 2**20}


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
    """`(outputs, mean, variance)` from PyTorch's own kernel for each ghost."""
    return _Native.apply(inputs, gamma, beta, form)


class _Native(torch.autograd.Function):
    """Forward and backward pass. Keeps the inputs and tensors per channel only.

    With ReLU it keeps the outputs, too, which takes no memory: the next layer keeps
    them as well.

    A call takes one ghost, which lies in one piece in memory and needs no copy. It goes
    over the ghost several times, and a ghost is small enough for the processor's cache,
    where the whole batch is not.
    """

    @staticmethod
    def forward(ctx, inputs, gamma, beta, form):
        values, axis = _in_memory_order(inputs, form.axis)
        outputs = torch.empty_like(values)
        ghosts = max(1, len(inputs) // form.virtual_batch_size)
        mean, inverse = gamma.new_empty((2, ghosts, len(gamma)))
        # With momentum 1, the kernel's running statistics are the ghost's own. The
        # variance would lose digits if it were computed from the inverse.
        running = gamma.new_zeros((2, ghosts, len(gamma)))
        for calls, (x, y), statistics in _pieces(
            form, axis, (values, outputs), (mean, inverse, *running)
        ):
            scale, offset = calls.per_channel(gamma), calls.per_channel(beta)
            results = calls.results(y)
            for x_i, y_i, mean_i, inverse_i, *running_i in zip(
                calls.operands(x),
                results,
                *map(calls.statistics, statistics),
                strict=True,
            ):
                torch.native_batch_norm(
                    x_i,
                    scale,
                    offset,
                    *running_i,
                    True,
                    1.0,
                    form.epsilon,
                    out=(y_i, mean_i, inverse_i),
                )
                if form.relu:
                    y_i.relu_()
            calls.keep(results, y)
            calls.biased(statistics[-1])
        outputs, variance = outputs.movedim(axis, form.axis), running[1]
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
        for calls, (x, dx, *dy_and_y), statistics in _pieces(
            form,
            axis,
            (values, by_inputs, upstream, *kept),
            (mean, inverse, by_gamma, by_beta),
        ):
            scale = calls.per_channel(gamma)
            results = calls.results(dx)
            for x_i, dy_i, dx_i, mean_i, inverse_i, by_gamma_i, by_beta_i in zip(
                calls.operands(x),
                _through_relu(*map(calls.operands, dy_and_y)),
                results,
                *map(calls.statistics, statistics),
                strict=True,
            ):
                torch.ops.aten.native_batch_norm_backward.out(
                    dy_i,
                    x_i,
                    scale,
                    None,
                    None,
                    mean_i,
                    inverse_i,
                    True,
                    form.epsilon,
                    [True, True, True],
                    out0=dx_i,
                    out1=by_gamma_i,
                    out2=by_beta_i,
                )
            calls.keep(results, dx)
        by_inputs = by_inputs.movedim(axis, form.axis)
        return by_inputs, by_gamma.sum(0), by_beta.sum(0), None


def _through_relu(upstreams, outputs=None):
    """Each call's upstream gradient, zero where ReLU's outputs are.

    Without outputs, there is no ReLU. One tensor serves all calls, so it stays in the
    processor's cache.
    """
    if outputs is None:
        yield from upstreams
        return
    passed = torch.empty_like(upstreams[0])
    for upstream, output in zip(upstreams, outputs, strict=True):
        yield torch.ops.aten.threshold_backward.grad_input(
            upstream, output, 0, grad_input=passed
        )


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


def _pieces(form, axis, tensors, statistics):
    """For ghosts of one size: how to call the kernel, and their parts of both.

    The `tensors` have the shape of the batch, the `statistics` `(ghosts, channels)`.
    """
    batch, *sizes = tensors[0].shape
    rows, columns = math.prod(sizes[: axis - 1]), math.prod(sizes[axis:])
    smallest_alone = _SMALLEST_ALONE[tensors[0].device.type]
    first = 0
    for examples, ghosts, size in form.cuts(batch):
        share_a_call = ghosts > 1 and size * math.prod(sizes) < smallest_alone
        calls = _Calls((ghosts, size * rows, sizes[axis - 1], columns), share_a_call)
        own = slice(first, first + ghosts)
        yield calls, [t[examples] for t in tensors], [s[own] for s in statistics]
        first += ghosts


@dataclasses.dataclass(frozen=True)
class _Calls:
    """What each call of the kernel takes, for ghosts of one size.

    A call takes `(rows, channels, columns)`. Either it takes one ghost, or it takes
    all: they become further channels, for which they must be copied.

    Args:
        shape: `(ghosts, rows, channels, columns)`.
        are_one: Whether one call takes all ghosts.
    """

    shape: tuple[int, int, int, int]
    are_one: bool

    def operands(self, values):
        """A batch for each call: views, or a copy for the only call."""
        if self.are_one:
            # Not `reshape`, which may give a view. Of such inputs PyTorch (2.13) does
            # not return the mean.
            return [self._by_row(values).contiguous().view(self._shape_of_all)]
        return values.view(self.shape).unbind()

    def results(self, values):
        """Where each call writes what `keep` brings into `values`."""
        if self.are_one:
            return [values.new_empty(self._shape_of_all)]
        return values.view(self.shape).unbind()

    def keep(self, results, values):
        """Copies the result of the only call. Those of others are in place already."""
        if self.are_one:
            by_row = self._by_row(values)
            by_row.copy_(results[0].view(by_row.shape))

    def statistics(self, values):
        """The statistics of each call, from `(ghosts, channels)`."""
        return [values.view(-1)] if self.are_one else values.unbind()

    def per_channel(self, parameter):
        """Gamma or beta for the channels of one call."""
        return parameter.repeat(self.shape[0]) if self.are_one else parameter

    def biased(self, variance):
        """Changes the variance from Bessel's correction, in place, to that of Keras."""
        _, rows, _, columns = self.shape
        count = rows * columns
        if count > 1:
            variance.mul_((count - 1) / count)
        else:  # The correction divided by zero.
            variance.zero_()

    @property
    def _shape_of_all(self):
        ghosts, rows, channels, columns = self.shape
        return rows, ghosts * channels, columns

    def _by_row(self, values):
        return values.view(self.shape).transpose(0, 1)
