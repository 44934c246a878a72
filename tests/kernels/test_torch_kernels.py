"""PyTorch's own kernel computes ghosts, alone or together, and keeps only the inputs.

The tests call it directly, so they need no other Keras backend.
"""

import ghosts
import numpy as np
import pytest
import torch
from backend import NAME
from torch.utils._python_dispatch import TorchDispatchMode

from gbn_keras import GhostBatchNormalization
from gbn_keras.ghost_normalize import ghost_normalize
from gbn_keras.kernels import torch_chunks, torch_kernels
from gbn_keras.kernels.closed_form import ClosedForm

# Where Keras has its tensors on PyTorch.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Operations(TorchDispatchMode):
    """Notes the names of what PyTorch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


SHAPES = [
    # shape, channel axis, virtual batch size
    ((13, 5), 1, 4),
    ((9, 3, 4, 4), 1, 4),
    ((8, 4, 4, 3), 3, 2),
    ((7, 3, 4, 5), 2, 3),
    ((6, 2, 3, 2, 4), 4, 3),
    ((5, 4), 1, 8),
    ((4, 3), 1, 1),
    ((3, 6, 1), 2, 2),
]


@pytest.fixture(params=["one by one", "chunks", "chunks of a ghost"])
def calls(request, monkeypatch):
    smallest = 0 if request.param == "one by one" else 2**62
    monkeypatch.setitem(torch_kernels._SMALLEST_ALONE, DEVICE, smallest)
    if request.param == "chunks of a ghost":
        monkeypatch.setitem(torch_chunks._CHUNK, DEVICE, 1)
    return request.param


def tensor(array, **options):
    return torch.tensor(array, device=DEVICE, **options)


def normal(*shape):
    random = np.random.default_rng(2)
    return tensor(random.normal(size=shape).astype("float32"))


def in_numpy(tensor):
    return tensor.detach().cpu().numpy()


def arrays_of(shape, axis, mean=100):
    random = np.random.default_rng(0)
    inputs = random.normal(mean, 1, shape).astype("float32")
    gamma, beta = random.normal(1, 0.3, (2, shape[axis])).astype("float32")
    return inputs, gamma, beta


def check(inputs, arrays, upstream, axis, virtual_batch_size, relu=False):
    """Compares results and gradients for a tensor with those of numpy."""
    form = ClosedForm(virtual_batch_size, axis, 1e-3, relu)
    gamma, beta = (tensor(a, requires_grad=True) for a in arrays[1:])
    results = torch_kernels.native(form, inputs, gamma, beta)
    arrays = (*arrays, virtual_batch_size, axis, 1e-3)
    outputs, *statistics = ghosts.normalize(*arrays)
    passed = in_numpy(upstream) * ((outputs > 0) | (not relu))
    outputs = np.maximum(outputs, 0) if relu else outputs
    for result, expected in zip(results, (outputs, *statistics), strict=True):
        np.testing.assert_allclose(in_numpy(result), expected, rtol=2e-4, atol=2e-4)
    gradients = torch.autograd.grad(results[0], (inputs, gamma, beta), upstream)
    arrays = (*arrays[:2], passed, *arrays[3:])
    for gradient, expected in zip(gradients, ghosts.gradients(*arrays), strict=True):
        error = np.linalg.norm(in_numpy(gradient) - expected)
        assert error < 2e-4 * np.linalg.norm(expected)
    return results[0]


@pytest.mark.parametrize("shape, axis, virtual_batch_size", SHAPES)
def test_ghosts_are_those_of_numpy(shape, axis, virtual_batch_size, calls):
    arrays = arrays_of(shape, axis)
    upstream = normal(*shape)
    inputs = tensor(arrays[0], requires_grad=True)
    if min(shape[0], virtual_batch_size) * np.prod(shape[1:]) == shape[axis]:
        # A single value is its own mean, so its gradient is rounding alone.
        gamma, beta = map(tensor, arrays[1:])
        form = ClosedForm(virtual_batch_size, axis, 1e-3)
        results = torch_kernels.native(form, inputs, gamma, beta)
        outputs, mean, variance = map(in_numpy, results)
        expected = np.broadcast_to(arrays[2], shape)
        np.testing.assert_allclose(outputs, expected, atol=1e-3)
        np.testing.assert_array_equal(mean, arrays[0])
        np.testing.assert_array_equal(variance, 0)
        (gradient,) = torch.autograd.grad(results[0], inputs, upstream)
        np.testing.assert_allclose(in_numpy(gradient), 0, atol=1e-3)
    else:
        check(inputs, arrays, upstream, axis, virtual_batch_size)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis, order", [(3, (0, 3, 1, 2)), (1, (0, 2, 3, 1))])
def test_a_transposed_view_stays_one(axis, order, relu, calls):
    """As between a convolution with channels first and a layer with channels last."""
    arrays = arrays_of((6, 4, 5, 3), axis)
    upstream = normal(6, 4, 5, 3)
    back = np.argsort(order).tolist()
    inputs = tensor(arrays[0]).permute(order).contiguous().permute(back)
    outputs = check(inputs.requires_grad_(), arrays, upstream, axis, 2, relu)
    assert outputs.stride() == inputs.stride()


@pytest.mark.parametrize("relu", [False, True])
def test_other_strides_and_upstream_gradients_are_taken_too(relu, calls):
    wide = np.random.default_rng(1).normal(100, 1, (6, 8)).astype("float32")
    inputs = tensor(wide)[:, ::2].requires_grad_()
    arrays = (wide[:, ::2], np.full(4, 2, "float32"), np.zeros(4, "float32"))
    check(inputs, arrays, tensor([[1.0], [2.0]] * 3).expand(6, 4), 1, 2, relu)


@pytest.mark.parametrize("relu", [False, True])
def test_nothing_is_kept_but_the_inputs_and_small_tensors(relu):
    """Of ReLU the outputs, which the next layer keeps as well."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    inputs = normal(12, 4, 4, 3).requires_grad_()
    gamma, beta = tensor(np.float32([[1] * 3, [0] * 3]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form = ClosedForm(4, 3, 1e-3, relu)
        outputs, _, _ = torch_kernels.native(form, inputs, gamma, beta)
    large = [x for x in kept if x.numel() >= inputs.numel()]
    expected = [inputs, outputs] if relu else [inputs]
    assert [x.data_ptr() for x in large] == [x.data_ptr() for x in expected]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, relu, calls):
    """Inputs, outputs and the inputs' gradient are rounded, and nothing else."""
    inputs, upstream = (normal(13, 5, 4).to(dtype) for _ in range(2))
    gamma, beta = tensor(np.float32([[1, 2, 3, 0.5, -1], [1, 0, -1, 0, 2]]))
    form = ClosedForm(4, 1, 1e-3, relu)

    def step(inputs, upstream):
        operands = [inputs, gamma, beta]
        operands = [operand.detach().requires_grad_() for operand in operands]
        outputs, *statistics = torch_kernels.native(form, *operands)
        return outputs, *statistics, *torch.autograd.grad(outputs, operands, upstream)

    rounded = step(inputs, upstream)
    exact = step(inputs.float(), upstream.float())
    for result, expected in zip(rounded, exact, strict=True):
        ulp = torch.finfo(result.dtype).eps
        torch.testing.assert_close(result.float(), expected, rtol=ulp, atol=1e-5)


def test_the_fastest_kernel_is_pytorchs_unless_it_cannot_take_the_inputs():
    def chosen(inputs, mask=None):
        return torch_kernels.fastest_kernel(inputs, mask)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert chosen(torch.ones(8, 3, dtype=dtype)) == "native"
    assert chosen(torch.ones(8, 3, dtype=torch.float64)) == "closed_form"
    assert chosen(torch.ones(8, 3), torch.ones(8, 3)) == "closed_form"
    assert chosen(torch.ones(0, 3)) == chosen(torch.ones(8, 0, 3)) == "closed_form"
    assert chosen(torch.ones(8, 3, device="meta")) == "closed_form"


if NAME == "torch":  # In Keras: the layer, and the closed form's second derivative.

    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_a_step_of_the_layer_never_waits_for_a_gpu(activation, calls):
        """It copies no number to the GPU, and reads none from there."""
        layer = GhostBatchNormalization(4, activation)
        inputs = normal(13, 3).requires_grad_()
        layer.build(inputs.shape)
        with Operations() as operations:
            layer(inputs, training=True).sum().backward()
        is_one_by_one = calls == "one by one"
        assert ("native_batch_norm" in operations.names) == is_one_by_one
        assert ("addcmul" in operations.names) != is_one_by_one
        assert not {"lift_fresh", "_local_scalar_dense"} & operations.names

    def test_the_layer_takes_inputs_from_the_cpu():
        layer = GhostBatchNormalization(4)
        outputs = layer(torch.eye(8, 3), training=True)
        assert outputs.device.type == DEVICE
        expected = layer(tensor(np.eye(8, 3, dtype="float32")), training=True)
        np.testing.assert_array_equal(in_numpy(outputs), in_numpy(expected))

    def test_it_can_be_differentiated_twice(calls):
        inputs = normal(6, 3)
        gamma, beta = tensor([[1.0, 2, 3], [0, 0, 0]])

        def by_kernel(x):
            return torch_kernels.native(ClosedForm(2, 1, 1e-1), x, gamma, beta)[0]

        def by_definition(x):
            x = x.view(3, 2, 3)
            variance = x.var(1, unbiased=False, keepdim=True)
            normalized = (x - x.mean(1, keepdim=True)) / torch.sqrt(variance + 1e-1)
            return (gamma * normalized).view(6, 3)

        def second(normalize):
            x = inputs.clone().requires_grad_()
            loss = (normalize(x) ** 3).sum()
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            return torch.autograd.grad((slope * inputs).sum(), x)[0]

        torch.testing.assert_close(
            second(by_kernel), second(by_definition), rtol=1e-3, atol=1e-3
        )

    # PyTorch's own, while it traces Keras's custom gradient.
    @pytest.mark.filterwarnings("ignore:.*should not be inst:DeprecationWarning")
    def test_pytorchs_compiler_takes_the_closed_form_in_one_graph():
        def normalize(x):
            return ghost_normalize(x, None, None, 4)[0]

        # The backend that traces and generates no code.
        compiled = torch.compile(normalize, backend="eager", fullgraph=True)
        inputs = normal(13, 3)
        torch.testing.assert_close(compiled(inputs), normalize(inputs))
