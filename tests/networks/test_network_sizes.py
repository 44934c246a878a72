"""Each network has the sizes that we derive here by hand."""

import functools

import keras
import pytest
from small_networks import layers_of, total, weights_of_zeros

from gbn_keras import REGIMES, GhostBatchNormalization
from gbn_keras.networks import alexnet, f1, find_network, resnet18, resnet50, vgg

GHOSTS = functools.partial(GhostBatchNormalization, 4)

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


@functools.cache
def on_cifar(name):
    """A network by its name, for 100 classes, not to be changed."""
    return find_network(name)[0](CIFAR, 100, GHOSTS)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_drawn_and_nothing_is_left():
    """Some hundred megabytes less for the files that follow."""
    with weights_of_zeros():
        yield
    on_cifar.cache_clear()


def resolutions(model):
    """The sizes of the feature maps at the ReLUs, repetitions left out.

    A ghost layer that computes its ReLU leaves an `Identity` in its place.
    """
    kinds = keras.layers.ReLU, keras.layers.Identity
    sizes = [relu.output.shape[1:] for relu in layers_of(model, *kinds)]
    return [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]


# Sizes of each network, as (kernels, normalized channels).


def cifar_residual(blocks, width=1):
    """Of a stage's blocks: two 3x3 each, and 1x1 where 16 becomes 32 becomes 64."""
    a, b, c = (channels * width for channels in (16, 32, 64))
    kernels = 9 * 3 * a
    kernels += 2 * blocks * 9 * a * a
    kernels += 9 * a * b + (2 * blocks - 1) * 9 * b * b + a * b
    kernels += 9 * b * c + (2 * blocks - 1) * 9 * c * c + b * c
    return kernels, a + 2 * blocks * (a + b + c) + b + c


def shallow():
    kernels = 25 * 3 * 64 + 25 * 64 * 64 + 7 * 7 * 64 * 384 + 384 * 192
    return kernels, 64 + 64 + 384 + 192


def very_deep(*channels):
    kernels = sum(9 * i * o for i, o in zip((3, *channels[:-1]), channels, strict=True))
    return kernels, sum(channels)


def imagenet_alexnet():
    kernels = 121 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 256 + 256 * 256)
    kernels += 6 * 6 * 256 * 4096 + 4096 * 4096
    return kernels, 64 + 192 + 384 + 256 + 256 + 4096 + 4096


def imagenet_basic():
    kernels, channels = 49 * 3 * 64 + 4 * 9 * 64 * 64, 64 + 4 * 64
    for i, o in ((64, 128), (128, 256), (256, 512)):
        kernels += 9 * i * o + 3 * 9 * o * o + i * o
        channels += 5 * o
    return kernels, channels


def imagenet_bottleneck():
    kernels, channels = 49 * 3 * 64, 64
    for i, f, blocks in ((64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3)):
        # The first block's 1x1 from another width, all others', 3x3, 1x1, shortcut.
        kernels += i * f + (blocks - 1) * 4 * f * f
        kernels += blocks * (9 * f * f + 4 * f * f) + i * 4 * f
        channels += blocks * 6 * f + 4 * f
    return kernels, channels


VGG_11 = (64, 128, 256, 256, 512, 512, 512, 512)
VGG_13 = (64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
VGG_16 = (64, 64, 128, 128) + 3 * (256,) + 6 * (512,)
VGG_19 = (64, 64, 128, 128) + 4 * (256,) + 8 * (512,)


@pytest.mark.parametrize(
    "name, sizes, features",
    [
        ("f1", (32 * 32 * 3 * 512 + 4 * 512 * 512, 5 * 512), 512),
        ("f1_digits", (32 * 32 * 3 * 128 + 3 * 128 * 128, 4 * 128), 128),
        ("c1", shallow(), 192),
        ("c3", shallow(), 192),
        ("resnet8", cifar_residual(1), 64),
        ("resnet20", cifar_residual(3), 64),
        ("resnet44", cifar_residual(7), 64),
        ("wresnet16_4", cifar_residual(2, 4), 256),
        ("wresnet10_2", cifar_residual(1, 2), 128),
        ("vgg", very_deep(*VGG_16), 512),
        ("vgg11", very_deep(*VGG_11), 512),
        ("vgg13", very_deep(*VGG_13), 512),
        ("vgg16", very_deep(*VGG_16), 512),
        ("vgg19", very_deep(*VGG_19), 512),
    ],
)
def test_sizes_on_cifar(name, sizes, features):
    model = on_cifar(name)
    kernels, normalized = sizes
    trainable = kernels + 2 * normalized + (features + 1) * 100
    assert total(model.trainable_weights) == trainable
    assert model.count_params() == trainable + 2 * normalized
    assert model.output_shape == (None, 100)


def test_f1_on_mnist_is_five_hidden_layers_of_512():
    model = f1((28, 28, 1), 10, GHOSTS)
    kernels = 784 * 512 + 4 * 512 * 512 + 512 * 10
    assert total(model.trainable_weights) == kernels + 10 + 5 * 2 * 512


def test_the_known_size_of_vgg16():
    """A common one for CIFAR has biases before its normalizations, one a channel."""
    without = total(on_cifar("vgg").trainable_weights) - 513 * (100 - 10)
    assert without + sum(VGG_16) == 14_728_266


# Sizes, features, and the parameters that torchvision's has.
ON_IMAGENET = {
    alexnet: (imagenet_alexnet(), 4096, 61_100_840),
    resnet18: (imagenet_basic(), 512, 11_689_512),
    resnet50: (imagenet_bottleneck(), 2048, 25_557_032),
}


@pytest.fixture(scope="module", params=ON_IMAGENET)
def imagenet(request):
    """A network for ImageNet, of which memory holds one at a time, and the model."""
    return request.param, request.param(IMAGENET, 1000, GHOSTS)


def test_sizes_on_imagenet(imagenet):
    network, model = imagenet
    (kernels, normalized), features, known = ON_IMAGENET[network]
    trainable = kernels + 2 * normalized + (features + 1) * 1000
    assert total(model.trainable_weights) == trainable
    assert model.count_params() == trainable + 2 * normalized
    assert model.output_shape == (None, 1000)
    # AlexNet was not normalized: it has a bias a channel, and no gamma.
    assert trainable - normalized * (network is alexnet) == known


def test_resolution_by_stage_on_imagenet(imagenet):
    network, model = imagenet
    expected = {
        alexnet: [
            *((27, 27, 64), (13, 13, 192), (13, 13, 384), (13, 13, 256), (6, 6, 256)),
            (4096,),
        ],
        resnet18: [
            *((112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)),
        ],
        resnet50: [(112, 112, 64), *3 * [(56, 56, 64), (56, 56, 256)]],
    }
    for size, filters, blocks in ((28, 128, 4), (14, 256, 6), (7, 512, 3)):
        narrow, wide = (size, size, filters), (size, size, 4 * filters)
        # The first block halves the resolution in its 3x3 convolution, after the 1x1.
        expected[resnet50] += [(2 * size, 2 * size, filters), *blocks * [narrow, wide]]
    assert resolutions(model) == expected[network]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("c1", [(15, 15, 64), (7, 7, 64), (384,), (192,)]),
        ("resnet44", [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        ("wresnet16_4", [(32, 32, 64), (16, 16, 128), (8, 8, 256)]),
        (
            "vgg",
            [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512)],
        ),
    ],
)
def test_resolution_by_stage(name, expected):
    assert resolutions(on_cifar(name)) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet8", [(28, 28, 16), (14, 14, 32), (7, 7, 64)]),
        (
            "vgg11",
            [(28, 28, 64), (14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 512)],
        ),
    ],
)
def test_resolution_by_stage_on_mnist(name, expected):
    assert resolutions(find_network(name)[0]((28, 28, 1), 10, GHOSTS)) == expected


def test_vgg_of_32_pixels_comes_down_to_one_and_of_64_to_four():
    of_17, of_64 = (vgg((n, n, 3), 10, GHOSTS, depth=11) for n in (17, 64))
    for model, features in (
        (of_17, 512),
        (on_cifar("vgg11"), 512),
        (of_64, 4 * 512),
    ):
        assert model.layers[-1].kernel.shape[0] == features


@pytest.mark.parametrize(
    "name, model, regime",
    [
        ("resnet8", "resnet8", "resnet44"),
        ("resnet14", "resnet14", "resnet44"),
        ("wresnet10_1", "wresnet10_1", "wresnet16_4"),
        ("vgg11", "vgg11", "vgg"),
        ("vgg16", "vgg16", "vgg"),
    ],
)
def test_a_name_finds_network_and_regime(name, model, regime):
    _, found = find_network(name)
    assert found == regime and found in REGIMES
    assert on_cifar(name).name == model
