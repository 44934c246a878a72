"""The paper's networks, with the normalization as an argument.

Each network is a function of the input shape, the number of classes and
`normalization`. `normalization` is a callable that makes one normalization layer, or
`None` for a network without normalization, whose layers then have biases. So one
function builds every arm of a study:

```python
f1((28, 28, 1), 10, functools.partial(GhostBatchNormalization, 128))
f1((28, 28, 1), 10, keras.layers.BatchNormalization)
```

Where ReLU follows directly, a `GhostBatchNormalization` computes it. The ReLU layer is
then a `keras.layers.Identity`.

Images are `(height, width, channels)`. All networks return logits in float32, whatever
the precision of the layers before.
"""

from gbn_keras.networks.cifar_resnet import resnet, wresnet
from gbn_keras.networks.cifar_shallow import c1, c3
from gbn_keras.networks.cifar_vgg import vgg
from gbn_keras.networks.fully_connected import f1, f1_digits
from gbn_keras.networks.imagenet_alexnet import alexnet
from gbn_keras.networks.imagenet_resnet import resnet18, resnet50
from gbn_keras.networks.names import NETWORK_NAMES, NETWORKS, find_network

__all__ = [
    "NETWORKS",
    "NETWORK_NAMES",
    "alexnet",
    "c1",
    "c3",
    "f1",
    "f1_digits",
    "find_network",
    "resnet",
    "resnet18",
    "resnet50",
    "vgg",
    "wresnet",
]
