"""Networks by name."""

import functools
import re
from collections.abc import Callable

import keras

from gbn_keras.networks.cifar_resnet import (
    is_resnet_depth,
    is_wresnet_depth,
    resnet,
    wresnet,
)
from gbn_keras.networks.cifar_shallow import c1, c3
from gbn_keras.networks.cifar_vgg import CONVOLUTIONS, vgg
from gbn_keras.networks.fully_connected import f1, f1_digits
from gbn_keras.networks.imagenet_alexnet import alexnet
from gbn_keras.networks.imagenet_resnet import resnet18, resnet50

# Networks with a regime of their own, by its name in `REGIMES`.
NETWORKS = {
    "f1": f1,
    "f1_digits": f1_digits,
    "c1": c1,
    "c3": c3,
    "resnet44": resnet,
    "vgg": vgg,
    "wresnet16_4": wresnet,
    "alexnet": alexnet,
    "resnet50": resnet50,
}

# What `find_network` finds, for messages.
NETWORK_NAMES = (
    "f1, f1_digits, c1, c3, resnet20 (any 6 n + 2, for CIFAR), wresnet16_4 (any "
    f"6 n + 4, any width), vgg, {', '.join(f'vgg{depth}' for depth in CONVOLUTIONS)}, "
    "alexnet, resnet18, resnet50 (both for ImageNet)"
)


def find_network(name: str) -> tuple[Callable[..., keras.Model], str]:
    """The network with the given name, and the name of the regime to train it with.

    It finds the networks in `NETWORKS` and their relatives of other sizes:

    | name | network |
    |---|---|
    | `resnet20` | for CIFAR; any depth `6 n + 2` |
    | `wresnet28_10` | any depth `6 n + 4`, any width |
    | `vgg11`, `vgg13`, `vgg16`, `vgg19` | `vgg16` is `vgg` |
    | `resnet18`, `resnet50` | for ImageNet |

    For 50 layers on CIFAR, call `resnet` with `depth=50`.

    Returns:
        A function of the input shape, the number of classes and the normalization; and
        a key of `REGIMES`, that of the nearest relative with a regime.

    Raises:
        ValueError: If there is no network of that name.
    """
    if name in NETWORKS:
        return NETWORKS[name], name
    if name == "resnet18":
        return resnet18, "resnet50"
    family, depth, width = _sizes(name)
    if family == "resnet" and width is None and is_resnet_depth(depth):
        return functools.partial(resnet, depth=depth), "resnet44"
    if family == "wresnet" and width is not None and is_wresnet_depth(depth):
        return functools.partial(wresnet, depth=depth, width=width), "wresnet16_4"
    if family == "vgg" and width is None and depth in CONVOLUTIONS:
        return functools.partial(vgg, depth=depth), "vgg"
    raise ValueError(f"model must be one of {NETWORK_NAMES}. Received: model={name!r}.")


def _sizes(name):
    """`wresnet28_10` as `("wresnet", 28, 10)`; three `None` for any other form."""
    number = "([1-9][0-9]{0,3})"
    match = re.fullmatch(f"([a-z]+){number}(?:_{number})?", str(name))
    if not match:
        return None, None, None
    family, depth, width = match.groups()
    return family, int(depth), width and int(width)
