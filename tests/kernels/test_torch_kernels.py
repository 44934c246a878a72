"""PyTorch's own kernel computes ghosts, alone or together, and keeps only the inputs.

The tests call it directly, so they need no other Keras backend.
"""

import ghosts
import numpy as np
import pytest
import torch
from backend import NAME

from gbn_keras.ghost_normalize import ghost_normalize
from gbn_keras.kernels import torch_kernels
from gbn_keras.kernels.closed_form import ClosedForm

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


@pytest.fixture(params=["a call for each ghost", "one call"])
def calls(request, monkeypatch):
    smallest = 2**62 if request.param == "one call" else 0
    monkeypatch.setitem(torch_kernels._SMALLEST_ALONE, "cpu", smallest)


def tensors(shape, axis, mean=100):
    random = np.random.default_rng(0)
    inputs = random.normal(mean, 1, shape).astype("float32")
    gamma, beta = random.normal(1, 0.3, (2, shape[axis])).astype("float32")
    return inputs, gamma, beta


def check(inputs, arrays, upstream, axis, virtual_batch_size, relu=False):
    """Compares results and gradients for a tensor with those of numpy."""
    form = ClosedForm(virtual_batch_size, axis, 1e-3, relu)
    gamma, beta = (torch.tensor(a, requires_grad=True) for a in arrays[1:])
    results = torch_kernels.native(form, inputs, gamma, beta)
    arrays = (*arrays, virtual_batch_size, axis, 1e-3)
    outputs, *statistics = ghosts.normalize(*arrays)
    passed = upstream.numpy() * ((outputs > 0) | (not relu))
    outputs = np.maximum(outputs, 0) if relu else outputs
    for result, expected in zip(results, (outputs, *statistics), strict=True):
        np.testing.assert_allclose(
            result.detach().numpy(), expected, rtol=2e-4, atol=2e-4
        )
    gradients = torch.autograd.grad(results[0], (inputs, gamma, beta), upstream)
    arrays = (*arrays[:2], passed, *arrays[3:])
    for gradient, expected in zip(gradients, ghosts.gradients(*arrays), strict=True):
        error = np.linalg.norm(gradient.numpy() - expected)
        assert error < 2e-4 * np.linalg.norm(expected)
    return results[0]


@pytest.mark.parametrize("shape, axis, virtual_batch_size", SHAPES)
def test_ghosts_are_those_of_numpy(shape, axis, virtual_batch_size, calls):
    arrays = tensors(shape, axis)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(arrays[0], requires_grad=True)
    if min(shape[0], virtual_batch_size) * np.prod(shape[1:]) == shape[axis]:
        # A single value is its own mean, so its gradient is rounding alone.
        gamma, beta = map(torch.tensor, arrays[1:])
        form = ClosedForm(virtual_batch_size, axis, 1e-3)
        outputs, mean, variance = torch_kernels.native(form, inputs, gamma, beta)
        np.testing.assert_allclose(outputs.detach(), beta.expand(shape), atol=1e-3)
        np.testing.assert_array_equal(mean, arrays[0])
        np.testing.assert_array_equal(variance, 0)
        (gradient,) = torch.autograd.grad(outputs, inputs, upstream)
        np.testing.assert_allclose(gradient, 0, atol=1e-3)
    else:
        check(inputs, arrays, upstream, axis, virtual_batch_size)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis, order", [(3, (0, 3, 1, 2)), (1, (0, 2, 3, 1))])
def test_a_transposed_view_stays_one(axis, order, relu, calls):
    """As between a convolution with channels first and a layer with channels last."""
    arrays = tensors((6, 4, 5, 3), axis)
    upstream = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    back = np.argsort(order).tolist()
    inputs = torch.tensor(arrays[0]).permute(order).contiguous().permute(back)
    outputs = check(inputs.requires_grad_(), arrays, upstream, axis, 2, relu)
    assert outputs.stride() == inputs.stride()


@pytest.mark.parametrize("relu", [False, True])
def test_other_strides_and_upstream_gradients_are_taken_too(relu, calls):
    wide = np.random.default_rng(1).normal(100, 1, (6, 8)).astype("float32")
    inputs = torch.tensor(wide)[:, ::2].requires_grad_()
    arrays = (wide[:, ::2], np.full(4, 2, "float32"), np.zeros(4, "float32"))
    check(inputs, arrays, torch.tensor([[1.0], [2.0]] * 3).expand(6, 4), 1, 2, relu)


@pytest.mark.parametrize("relu", [False, True])
def test_nothing_is_kept_but_the_inputs_and_small_tensors(relu):
    """Of ReLU the outputs, which the next layer keeps as well."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    inputs = torch.randn(12, 4, 4, 3, requires_grad=True)
    gamma, beta = torch.ones(3), torch.zeros(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form = ClosedForm(4, 3, 1e-3, relu)
        outputs, _, _ = torch_kernels.native(form, inputs, gamma, beta)
    large = [x for x in kept if x.numel() >= inputs.numel()]
    expected = [inputs, outputs] if relu else [inputs]
    assert [x.data_ptr() for x in large] == [x.data_ptr() for x in expected]


def test_the_fastest_kernel_is_pytorchs_unless_it_cannot_take_the_inputs():
    def chosen(inputs, mask=None):
        return torch_kernels.fastest_kernel(inputs, mask)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert chosen(torch.ones(8, 3, dtype=dtype)) == "native"
    assert chosen(torch.ones(8, 3, dtype=torch.float64)) == "closed_form"
    assert chosen(torch.ones(8, 3), torch.ones(8, 3)) == "closed_form"
    assert chosen(torch.ones(0, 3)) == chosen(torch.ones(8, 0, 3)) == "closed_form"
    assert chosen(torch.ones(8, 3, device="meta")) == "closed_form"


if NAME == "torch":  # The second derivative is that of the closed form, in Keras.

    def test_it_can_be_differentiated_twice(calls):
        inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        gamma, beta = torch.tensor([1.0, 2, 3]), torch.zeros(3)

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
        inputs = torch.randn(13, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(compiled(inputs), normalize(inputs))
