"""PyTorch's own training loop, in a process of its own that `train_speed.py` starts.

    python benchmarks/train_speed_torch.py NETWORK BATCH_SIZE THREADS

The networks are the program's with plain batch normalization, in channels_last. The
first line of output says what they are. Then the process waits: for each number that it
reads, it makes so many updates, and writes how many seconds they took.
"""

import json
import sys
import time

import torch
from torch import nn


def main():
    """Says what the network is, then makes updates until its input ends."""
    network, batch_size, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model = build().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, *shape).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    loss = nn.CrossEntropyLoss()

    def update():
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    parameters = sum(x.numel() for x in model.parameters())
    _say({"parameters": parameters, "torch": torch.__version__})
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            update()
        _say(time.perf_counter() - started)


def f1():
    """F1: five hidden layers of 512."""
    sizes = [28 * 28, *[512] * 5]
    layers = [nn.Flatten()]
    for fan_in, units in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(fan_in, units, bias=False), nn.BatchNorm1d(units)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(512, 10))


def c1():
    """C1: two convolutions, two dense layers with dropout."""
    layers = []
    for channels in (3, 64):
        layers += [nn.Conv2d(channels, 64, 5, padding=2, bias=False)]
        layers += [nn.MaxPool2d(3, 2), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.Flatten())
    for fan_in, units in ((64 * 7 * 7, 384), (384, 192)):
        layers += [nn.Linear(fan_in, units, bias=False), nn.BatchNorm1d(units)]
        layers += [nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(192, 10))


def resnet44():
    """ResNet-44 for CIFAR: three stages of seven blocks."""
    layers, before = _convolution(3, 16, 3, 1) + [nn.ReLU()], 16
    for channels in (16, 32, 64):
        for block in range(7):
            stride = 2 if channels > before and block == 0 else 1
            layers.append(_Block(before, channels, stride))
            before = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two convolutions, and a shortcut that has one where the shape changes."""

    def __init__(self, before, channels, stride):
        super().__init__()
        first = _convolution(before, channels, 3, stride)
        self.way = nn.Sequential(
            *first, nn.ReLU(), *_convolution(channels, channels, 3, 1)
        )
        self.shortcut = nn.Sequential()
        if before != channels:
            self.shortcut = nn.Sequential(*_convolution(before, channels, 1, stride))

    def forward(self, x):
        return torch.relu(self.way(x) + self.shortcut(x))


def _convolution(before, channels, size, stride):
    convolution = nn.Conv2d(
        before, channels, size, stride, padding=size // 2, bias=False
    )
    return [convolution, nn.BatchNorm2d(channels)]


def _say(value):
    print(json.dumps(value), flush=True)


# For each name, what builds the network, and the shape of an image.
NETWORKS = {
    "f1": (f1, (1, 28, 28)),
    "c1": (c1, (3, 32, 32)),
    "resnet44": (resnet44, (3, 32, 32)),
}

if __name__ == "__main__":
    main()
