"""The gradient of ReLU on PyTorch, for one part of a batch after the other."""

import torch


def through_relu(upstreams, outputs=None):
    """Each part's upstream gradient, zero where ReLU's outputs are.

    One tensor serves all parts, so it stays in the processor's cache. Use each gradient
    before you ask for the next one.

    Args:
        upstreams: The gradients by the outputs of each part. None is larger than the
            first.
        outputs: The outputs of each part; `None` without ReLU.
    """
    if outputs is None:
        yield from upstreams
        return
    passed = torch.empty_like(upstreams[0])
    for upstream, output in zip(upstreams, outputs, strict=True):
        yield torch.ops.aten.threshold_backward.grad_input(
            upstream, output, 0, grad_input=passed[: len(upstream)]
        )
