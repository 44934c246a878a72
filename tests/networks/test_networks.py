"""Each network has the layers and the normalization that we derive here by hand."""

import functools

import keras
import pytest
from small_networks import (
    SMALL,
    layers_of,
    normalizations,
    total,
    weights_of_zeros,
)

from gbn_keras import REGIMES, GhostBatchNormalization, ShardingInvariantDropout
from gbn_keras.networks import (
    NETWORKS,
    alexnet,
    c1,
    find_network,
    resnet,
    resnet18,
    resnet50,
    vgg,
    wresnet,
)

GHOSTS = functools.partial(GhostBatchNormalization, 4)


@functools.cache
def small(name):
    """A network for 7 classes, not to be changed."""
    network, shape, _ = SMALL[name]
    return network(shape, 7, GHOSTS)


@functools.cache
def small_in_mixed_precision(name):
    """The same without normalization. All but the logits are in bfloat16."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return SMALL[name][0](SMALL[name][1], 7, None)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_drawn_and_nothing_is_left():
    """Some hundred megabytes less for the files that follow."""
    with weights_of_zeros():
        yield
    small.cache_clear()
    small_in_mixed_precision.cache_clear()


def test_layers_in_order():
    conv, dense = keras.layers.Conv2D, keras.layers.Dense
    relu = keras.layers.Identity  # The ghost layer before it computes it.
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
    model = small_in_mixed_precision(name)
    assert not normalizations(model)
    assert all(layer.use_bias for layer in layers_of(model, *kinds))
    # A bias for each beta, and no gamma.
    gammas = total(n.gamma for n in normalizations(small(name)))
    assert total(model.weights) == total(small(name).trainable_weights) - gammas


@pytest.mark.parametrize(
    "name", ["f1", "c1", "resnet8", "vgg11", "alexnet", "resnet18"]
)
def test_logits_are_float32_in_mixed_precision(name):
    model = small_in_mixed_precision(name)
    assert {layer.compute_dtype for layer in model.layers[1:-1]} == {"bfloat16"}
    assert model.layers[-1].compute_dtype == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_called_by_its_name(name):
    assert small(name).name == name


@pytest.mark.parametrize(
    "name, least",
    [
        ("c1", 7),
        ("c3", 7),
        ("vgg11", 17),
        ("alexnet", 63),
        ("resnet18", 32),
        ("resnet50", 32),
    ],
)
def test_images_that_are_too_small_are_refused(name, least):
    network, shape, _ = SMALL[name]
    for refused in ((least - 1, least, 3), (least, least - 1, 3)):
        with pytest.raises(ValueError) as error:
            network(refused, 10, GHOSTS)
        assert f"at least {least} x {least}." in str(error.value)
        assert f"Received: input_shape={refused}." in str(error.value)
    taken = (least, least, 3)
    model = small(name) if shape == taken else network(taken, 7, GHOSTS)
    assert model.output_shape == (None, 7)


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
            network((32, 32, 3), 10, GHOSTS, depth=depth)


def test_a_width_is_a_number_of_times():
    with pytest.raises(ValueError, match="width must be .* Received: width=0"):
        wresnet((32, 32, 3), 10, GHOSTS, width=0)


def test_the_networks_by_name_are_those_with_a_regime():
    assert set(NETWORKS) == set(REGIMES)
    for name, network in NETWORKS.items():
        assert find_network(name) == (network, name)


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


@pytest.mark.parametrize("name, without", [("c1", 0), ("resnet18", 8 + 3)])
def test_ghost_layers_compute_their_relu_in_the_graph_of_plain_ones(name, without):
    """All but the last of each block and those of shortcuts, which are added first."""
    plain = SMALL[name][0](SMALL[name][1], 7, keras.layers.BatchNormalization)
    for one, other in zip(plain.layers, small(name).layers, strict=True):
        if isinstance(other, keras.layers.Identity):
            assert isinstance(one, keras.layers.ReLU)
        else:
            assert isinstance(other, type(one))
        shapes = [[weight.shape for weight in layer.weights] for layer in (one, other)]
        assert shapes[0] == shapes[1]
    activations = [layer.activation for layer in normalizations(small(name))]
    assert activations.count(keras.activations.linear) == without
    assert activations.count(keras.activations.relu) == len(activations) - without
