"""Times PyTorch's BatchNorm2d in channels_last, in a process of its own.

    python benchmarks/accelerator_torch.py 1024x32x32x16 float32 15 0.2

`accelerator.py` calls it. On a GPU the layer runs cuDNN's kernels, or PyTorch's own,
where it finds these better. The last line of output is JSON.
"""

import json
import statistics
import sys
import time

import torch


def main():
    """Measures one shape, and prints its row."""
    shape, precision, rounds, seconds = sys.argv[1:]
    batch, height, width, channels = map(int, shape.split("x"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, precision)
    layer = torch.nn.BatchNorm2d(channels).to(device)
    x, upstream = (
        torch.randn(batch, channels, height, width, device=device)
        .to(dtype)
        .to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_(True)
    # As much as a layer moves at least: a negation reads and writes each value.
    values = torch.zeros(x.numel() * 5 // 2, dtype=dtype, device=device)

    def step():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(upstream)

    calls = {"step": step, "copy": lambda: torch.neg(values)}
    times = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, int(float(seconds) / _seconds(call, 1, device)))
    for _ in range(int(rounds)):
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name], device))
    shares = [c / s for c, s in zip(times["copy"], times["step"], strict=True)]
    row = {
        "kind": f"PyTorch BatchNorm2d, {device}",
        "milliseconds": 1e3 * statistics.median(times["step"]),
        "share_of_bandwidth": statistics.median(shares),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    print(json.dumps(row))


def _seconds(call, repeats, device):
    """Seconds per call; the device queues them."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - started) / repeats


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
