"""Each network has the layers, sizes and normalization that we derive here by hand."""

import functools
import math

import keras
import numpy as np
import pytest
from backend import IS_JAX, SLOW_ON_JAX
from keras import ops

from gbn_keras import REGIMES, GhostBatchNormalization, ShardingInvariantDropout
from gbn_keras.networks import (
    NETWORKS,
    alexnet,
    c1,
    c3,
    f1,
    f1_digits,
    find_network,
    resnet,
    resnet18,
    resnet50,
    vgg,
    wresnet,
)
from gbn_keras.networks.residual import basic_block, bottleneck_block

GHOSTS = functools.partial(GhostBatchNormalization, 4)

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)

# By name: the network, the smallest example that it takes here, and how many layers are
# normalized, counted on the paper's drawings.
SMALL = {
    "f1": (f1, (5,), 5),
    "f1_digits": (f1_digits, (8, 8, 1), 4),
    "c1": (c1, (8, 8, 1), 4),
    "c3": (c3, (7, 7, 3), 4),
    "resnet8": (functools.partial(resnet, depth=8), (8, 8, 1), 1 + 3 * 2 + 2),
    "wresnet10_2": (
        functools.partial(wresnet, depth=10, width=2),
        (8, 8, 3),
        1 + 3 * 2 + 2,
    ),
    "vgg11": (functools.partial(vgg, depth=11), (28, 28, 1), 8),
    "alexnet": (alexnet, (63, 63, 3), 5 + 2),
    "resnet18": (resnet18, (32, 32, 3), 1 + 8 * 2 + 3),
    "resnet50": (resnet50, (32, 32, 3), 1 + 16 * 3 + 4),
}
# JAX takes long to compile these. And one network of a family is enough by default: a
# basic block and a bottleneck have tests of their own.
LARGE = ("c3", "wresnet10_2", "vgg11", "alexnet", "resnet18", "resnet50")
RELATIVES = ("f1_digits", "c3", "wresnet10_2", "resnet50")


@functools.cache
def built(network, input_shape=CIFAR, classes=10, normalization=GHOSTS):
    """A network, not to be changed."""
    return network(input_shape, classes, normalization)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_built():
    """Half a gigabyte less for the files that follow."""
    yield
    built.cache_clear()


def small(name, normalization=GHOSTS):
    network, shape, _ = SMALL[name]
    return built(network, shape, 7, normalization)


def total(weights):
    return sum(math.prod(weight.shape) for weight in weights)


def layers_of(model, *kinds):
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def normalizations(model):
    return layers_of(model, keras.layers.BatchNormalization)


def resolutions(model):
    """The sizes of the feature maps at the ReLUs, repetitions left out."""
    sizes = [r.output.shape[1:] for r in layers_of(model, keras.layers.ReLU)]
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


@pytest.mark.parametrize("classes", [10, 100])
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
def test_sizes_on_cifar(name, sizes, features, classes):
    model = find_network(name)[0](CIFAR, classes, GHOSTS)
    kernels, normalized = sizes
    trainable = kernels + 2 * normalized + (features + 1) * classes
    assert total(model.trainable_weights) == trainable
    assert model.count_params() == trainable + 2 * normalized
    assert model.output_shape == (None, classes)


def test_f1_on_mnist_is_five_hidden_layers_of_512():
    model = f1((28, 28, 1), 10, GHOSTS)
    kernels = 784 * 512 + 4 * 512 * 512 + 512 * 10
    assert total(model.trainable_weights) == kernels + 10 + 5 * 2 * 512


def test_the_known_size_of_vgg16():
    """A common one for CIFAR has biases before its normalizations, one a channel."""
    without = total(built(vgg).trainable_weights)
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
    "network, input_shape, expected",
    [
        (c1, CIFAR, [(15, 15, 64), (7, 7, 64), (384,), (192,)]),
        (resnet, CIFAR, [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        (wresnet, CIFAR, [(32, 32, 64), (16, 16, 128), (8, 8, 256)]),
        (SMALL["resnet8"][0], (28, 28, 1), [(28, 28, 16), (14, 14, 32), (7, 7, 64)]),
        (
            vgg,
            CIFAR,
            [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512)],
        ),
        (
            vgg,
            (28, 28, 1),
            [(28, 28, 64), (14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 512)],
        ),
    ],
)
def test_resolution_by_stage(network, input_shape, expected):
    assert resolutions(built(network, input_shape)) == expected


def test_vgg_of_32_pixels_comes_down_to_one_and_of_64_to_four():
    for pixels, features in ((17, 512), (32, 512), (64, 4 * 512)):
        model = vgg((pixels, pixels, 3), 10, GHOSTS, depth=11)
        assert model.layers[-1].kernel.shape == (features, 10)


def test_layers_in_order():
    conv, dense, relu = keras.layers.Conv2D, keras.layers.Dense, keras.layers.ReLU
    pool, flatten = keras.layers.MaxPooling2D, keras.layers.Flatten
    ghost, dropout = GhostBatchNormalization, ShardingInvariantDropout
    start = keras.layers.InputLayer

    def kinds(model):
        return [type(layer) for layer in model.layers]

    last = [flatten, *2 * [dense, ghost, relu, dropout], dense]
    for name in ("c1", "c3"):
        assert kinds(small(name)) == [start, *2 * [conv, pool, ghost, relu], *last]
    pooled, plain = [conv, pool, ghost, relu], [conv, ghost, relu]
    convolutions = [*2 * pooled, *2 * plain, *pooled]
    padded = [start, keras.layers.ZeroPadding2D]
    assert kinds(small("alexnet")) == [*padded, *convolutions, *last]
    stages = [*2 * [*plain, pool], *3 * [*2 * plain, pool]]
    assert kinds(small("vgg11")) == [start, *stages, flatten, dense]
    hidden = [dense, ghost, relu]
    assert kinds(small("f1")) == [start, flatten, *5 * hidden, dense]
    for name in ("c1", "alexnet"):
        rates = [layer.rate for layer in layers_of(small(name), dropout)]
        assert rates == [0.5, 0.5]


@pytest.mark.parametrize("strides, inputs", [(1, 6), (1, 4), (2, 6), (2, 4)])
def test_a_basic_block_is_two_convolutions_added_to_its_input(strides, inputs):
    x, block = random_block(basic_block, inputs, 4, strides)
    k = kernels_by_shape(block)
    first, second = k[(3, 3, inputs, 4)][0], k[(3, 3, 4, 4)][-1]
    expected = conv(ops.relu(conv(x, first, strides)), second)
    expected += shortcut(x, k, inputs, 4, strides)
    assert_allclose(block(x), ops.relu(expected))


@pytest.mark.parametrize("strides, inputs", [(1, 6), (1, 12), (2, 6), (2, 12)])
def test_a_bottleneck_is_three_convolutions_added_to_its_input(strides, inputs):
    x, block = random_block(bottleneck_block, inputs, 3, strides)
    k = kernels_by_shape(block)
    narrow = ops.relu(conv(x, k[(1, 1, inputs, 3)][0]))
    narrow = ops.relu(conv(narrow, k[(3, 3, 3, 3)][0], strides))
    expected = conv(narrow, k[(1, 1, 3, 12)][0])
    expected += shortcut(x, k, inputs, 12, strides)
    assert_allclose(block(x), ops.relu(expected))


def assert_allclose(*tensors):
    arrays = map(ops.convert_to_numpy, tensors)
    np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-5)


def random_block(block, inputs, filters, strides):
    """Examples, and a block of random kernels, without normalization."""
    keras.utils.set_random_seed(0)
    start = keras.Input((6, 6, inputs))
    model = keras.Model(start, block(start, filters, strides, None))
    return keras.random.normal((2, 6, 6, inputs)), model


def kernels_by_shape(model):
    kernels = {}
    for layer in layers_of(model, keras.layers.Conv2D):
        kernels.setdefault(tuple(layer.kernel.shape), []).append(layer.kernel.value)
    return kernels


def conv(x, kernel, strides=1):
    return ops.conv(x, kernel, strides, "same")


def shortcut(x, kernels, inputs, outputs, strides):
    kernel = kernels.get((1, 1, inputs, outputs))
    assert (kernel is None) == (strides == 1 and inputs == outputs)
    return x if kernel is None else conv(x, kernel[0], strides)


@pytest.mark.parametrize("name", SMALL)
def test_every_normalization_layer_is_the_argument_s(name):
    expected = SMALL[name][2]
    assert [type(n) for n in normalizations(small(name))] == (
        expected * [GhostBatchNormalization]
    )
    assert all(n.virtual_batch_size == 4 for n in normalizations(small(name)))


@pytest.mark.parametrize("name", SMALL)
def test_a_layer_has_a_bias_where_no_normalization_follows(name):
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    *hidden, last = layers_of(small(name), *kinds)
    assert last.use_bias and not any(layer.use_bias for layer in hidden)
    model = small(name, None)
    assert not normalizations(model)
    assert all(layer.use_bias for layer in layers_of(model, *kinds))
    # A bias for each beta, and no gamma.
    gammas = total(n.gamma for n in normalizations(small(name)))
    assert total(model.weights) == total(small(name).trainable_weights) - gammas


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in RELATIVES
            else SLOW_ON_JAX * (name in LARGE),
        )
        for name in SMALL
    ],
)
def test_an_update_moves_every_weight(name):
    network, shape, _ = SMALL[name]
    keras.utils.set_random_seed(0)
    # Ghosts take seconds to trace, and their gradient is tested where they are.
    model = network(shape, 7, keras.layers.BatchNormalization)
    assert model.output_shape == (None, 7)
    before = [weight.numpy() for weight in model.trainable_weights]
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=not IS_JAX)
    model.train_on_batch(x, np.arange(8) % 7)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all(), weight.path
        assert not np.array_equal(weight.numpy(), old), weight.path
    # And every running mean: no normalization is at inference.
    plain = normalizations(model)
    assert {type(n) for n in plain} == {keras.layers.BatchNormalization}
    assert all(np.any(n.moving_mean.numpy()) for n in plain)


@pytest.mark.parametrize("name", ["c1", "resnet8", "vgg11", "alexnet", "resnet18"])
def test_convolutions_start_from_he_normal_weights_each_of_its_own(name):
    keras.utils.set_random_seed(0)
    network, shape, _ = SMALL[name]
    kernels = [
        layer.kernel.numpy()
        for layer in layers_of(network(shape, 7, GHOSTS), keras.layers.Conv2D)
    ]
    for kernel in kernels:
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        deviations = kernel * (fan_out / 2) ** 0.5
        assert deviations.std() == pytest.approx(1, abs=4 / kernel.size**0.5)
        # Not cut off at two deviations, as truncated ones are.
        assert kernel.size < 1000 or np.abs(deviations).max() > 2.5
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize(
    "name", ["f1", "c1", "resnet8", "vgg11", "alexnet", "resnet18"]
)
def test_logits_are_float32_in_mixed_precision(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = SMALL[name][0](SMALL[name][1], 7, None)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in model.layers[1:-1]} == {"bfloat16"}
    assert model.layers[-1].compute_dtype == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_called_by_its_name(name):
    assert small(name).name == name


@pytest.mark.parametrize("name", ["c1", "wresnet10_2"])
def test_a_saved_network_predicts_the_same(name, tmp_path):
    model = small(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, *SMALL[name][1]))
    outputs = (ops.convert_to_numpy(one(x)) for one in (loaded, model))
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(
    "network, least",
    [(c1, 7), (c3, 7), (vgg, 17), (alexnet, 63), (resnet18, 32), (resnet50, 32)],
)
def test_images_that_are_too_small_are_refused(network, least):
    for shape in ((least - 1, least, 3), (least, least - 1, 3)):
        with pytest.raises(ValueError) as error:
            network(shape, 10, GHOSTS)
        assert f"at least {least} x {least}." in str(error.value)
        assert f"Received: input_shape={shape}." in str(error.value)
    assert network((least, least, 3), 7, GHOSTS).output_shape == (None, 7)


@pytest.mark.parametrize("network", [c1, resnet, wresnet, vgg, alexnet, resnet50])
@pytest.mark.parametrize("shape", [(64,), (64, 64), (64, 64, 3, 1), (None, 64, 3)])
def test_what_is_no_image_is_refused(network, shape):
    with pytest.raises(ValueError) as error:
        network(shape, 10, GHOSTS)
    assert "input_shape must be (height, width, channels)" in str(error.value)
    assert f"Received: input_shape={shape}." in str(error.value)


@pytest.mark.parametrize(
    "network, depths",
    [(resnet, (2, 18, 45, 20.0)), (wresnet, (4, 17, 18)), (vgg, (12, "16", None))],
)
def test_a_network_of_another_depth_is_refused(network, depths):
    for depth in depths:
        with pytest.raises(ValueError, match=f"Received: depth={depth!r}"):
            network(CIFAR, 10, GHOSTS, depth=depth)


def test_a_width_is_a_number_of_times():
    with pytest.raises(ValueError, match="width must be .* Received: width=0"):
        wresnet(CIFAR, 10, GHOSTS, width=0)


def test_the_networks_by_name_are_those_with_a_regime():
    assert set(NETWORKS) == set(REGIMES)
    for name, network in NETWORKS.items():
        assert find_network(name) == (network, name)


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
    network, found = find_network(name)
    assert found == regime and found in REGIMES
    assert network((32, 32, 3), 10, None).name == model


def test_resnet18_and_resnet50_by_name_are_imagenet_s():
    assert find_network("resnet18") == (resnet18, "resnet50")
    assert find_network("resnet50") == (resnet50, "resnet50")


@pytest.mark.parametrize(
    "name",
    [
        "resnet",
        "resnet45",
        "resnet2",
        "resnet020",
        "resnet20_4",
        "resnet50 ",
        "resnet8\n",
        "F1",
    ]
    + ["wresnet16", "wresnet16_0", "wresnet18_4", "wresnet4_4", "vgg12", "vgg16_2"]
    + ["resnet99999999", "", None],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError) as error:
        find_network(name)
    message = str(error.value)
    assert message.startswith("model must be one of f1, f1_digits, c1, c3, resnet20 (")
    assert message.endswith(f"Received: model={name!r}.")
    assert all(known in message for known in NETWORKS if known != "resnet44")
