"""Networks of other packages are converted to ghosts, train, and are converted back."""

import keras
import numpy as np
import pytest
from backend import SLOW_ON_JAX
from convertible import (
    compiled,
    leave_kernels_to_slow_tests,
    of_class,
    predict,
)

from gbn_keras import GhostBatchNormalization
from gbn_keras.convert import to_batch_norm, to_ghost_batch_norm

nothing_to_compile = pytest.fixture(autouse=True)(leave_kernels_to_slow_tests)

# Sides of images, and layers of batch normalization as Keras 3.15 has them.
FAMILIES = {
    "ResNet50": (32, 53, {}),
    "ResNet50V2": (32, 49, {}),
    "MobileNetV2": (32, 52, {"alpha": 0.35}),
    "MobileNetV3Small": (32, 34, {}),
    "EfficientNetB0": (32, 49, {}),
    "EfficientNetV2B0": (32, 59, {}),
    "DenseNet121": (32, 121, {}),
    "InceptionV3": (75, 94, {}),
    "Xception": (71, 40, {}),
    "NASNetMobile": (32, 192, {}),
}


def assert_round_trip(model, images, count):
    """There and back, and one update between, in which every ghost layer moves."""
    compiled(model, traced=False)
    expected, names = predict(model, images), [x.name for x in model._flatten_layers()]
    assert to_ghost_batch_norm(model, 2) == count
    np.testing.assert_array_equal(predict(model, images), expected)
    before = [x.get_weights() for x in of_class(model, GhostBatchNormalization)]
    model.train_on_batch(images, np.arange(len(images)))
    for layer, old in zip(
        of_class(model, GhostBatchNormalization), before, strict=True
    ):
        for variable, value in zip(layer.weights, old, strict=True):
            new = keras.ops.convert_to_numpy(variable)
            assert np.isfinite(new).all() and (new != value).any(), variable.path
    updated = predict(model, images)
    assert to_batch_norm(model) == count
    np.testing.assert_array_equal(predict(model, images), updated)
    assert [x.name for x in model._flatten_layers()] == names


def of_keras_applications(family):
    side, count, arguments = FAMILIES[family]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, family)(
        weights=None,
        input_shape=(side, side, 3),
        classes=10,
        classifier_activation=None,
        **arguments,
    )
    images = np.random.default_rng(0).uniform(-1, 1, (4, side, side, 3))
    return model, images.astype("float32"), count


@pytest.mark.parametrize(
    "family", [pytest.param("MobileNetV3Small", marks=SLOW_ON_JAX)]
)
def test_a_network_of_keras_applications_is_converted_and_back(family):
    assert_round_trip(*of_keras_applications(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_families_of_keras_applications_are_converted_and_back(family):
    assert_round_trip(*of_keras_applications(family))


@pytest.mark.slow
def test_a_backbone_of_keras_hub_is_converted_and_back():
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )
    model = hub.models.ImageClassifier(
        backbone=backbone, preprocessor=None, num_classes=10
    )
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3))
    assert_round_trip(model, images.astype("float32"), 10)
    # What it is, it still is.
    assert type(model.backbone) is hub.models.ResNetBackbone
