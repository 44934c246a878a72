"""Finds the features of a data set that hold the images and the labels."""

from typing import NamedTuple

import numpy as np
from tensorflow_datasets import features as tfds_features

from gbn_keras.training.errors import UsageError

_WANTED = {
    "image": "an image, or numbers of three dimensions",
    "label": "a class label, or an integer for each image",
}


class Keys(NamedTuple):
    """The names of the image feature and the label feature.

    If there were several candidates, `choice` says which one was taken, for the plan.
    """

    image: str
    label: str
    choice: str


def image_and_label(
    name: str, info, image_key: str | None = None, label_key: str | None = None
) -> Keys:
    """The image feature and the label feature, without guessing.

    Each one is the first of these that exists: the feature that you name; the one that
    the data set names as input or target of supervised learning; the one with the usual
    name, `image` or `label`; the only candidate. Candidates for images are image
    features or, if there are none, numbers of rank 3. Candidates for labels are class
    labels or, if there are none, single integers.

    Args:
        name: Name of the data set.
        info: tensorflow-datasets' description of the data set.
        image_key: Name of the image feature.
        label_key: Name of the label feature.

    Raises:
        UsageError: If the named feature is not suitable, if there is no candidate, or
            if there are several and you must name one.
    """
    supervised = info.supervised_keys or (None, None)
    image, images = _choose(name, info.features, "image", image_key, supervised[0])
    label, labels = _choose(name, info.features, "label", label_key, supervised[1])
    choices = [
        f"{flag} {taken} of {', '.join(candidates)}"
        for flag, taken, candidates in (
            ("image", image, images),
            ("label", label, labels),
        )
        if len(candidates) > 1
    ]
    return Keys(image, label, "; ".join(choices))


def _choose(name, features, usual, key, supervised):
    """The feature to take, and all candidates."""
    is_first, is_second = {
        "image": (_is_image, _are_numbers_of_rank_3),
        "label": (_is_class_label, _is_integer),
    }[usual]
    first = [key for key in sorted(features) if is_first(features[key])]
    second = [key for key in sorted(features) if is_second(features[key])]
    possible, candidates = [*first, *second], first or second
    if key:
        if key not in possible:
            raise UsageError(
                f"--{usual}_key: got {key!r}, wanted {_WANTED[usual]}. {name} has "
                f"{_kinds(features)}. Name another of these."
            )
        return key, candidates
    if isinstance(supervised, str) and supervised in possible:
        return supervised, candidates
    if usual in candidates:
        return usual, candidates
    if not candidates:
        raise UsageError(
            f"--dataset: {name} has no {usual} feature that is {_WANTED[usual]}. It "
            f"has {_kinds(features)}. Use another data set."
        )
    if len(candidates) > 1:
        raise UsageError(
            f"--{usual}_key: got none, wanted one of {', '.join(candidates)}, because "
            f"{name} does not say which one to use. Name one."
        )
    return candidates[0], candidates


def _kinds(features):
    return ", ".join(f"{key} ({_kind(features[key])})" for key in sorted(features))


def _kind(feature):
    if isinstance(feature, tfds_features.Sequence):
        return f"several of {_kind(feature.feature)}"
    return type(feature).__name__


def _is_image(feature):
    return isinstance(feature, tfds_features.Image)


def _is_class_label(feature):
    return isinstance(feature, tfds_features.ClassLabel)


def _are_numbers_of_rank_3(feature):
    return _is_tensor(feature, np.number) and len(feature.shape) == 3


def _is_integer(feature):
    return (
        _is_tensor(feature, np.integer)
        and feature.shape == ()
        and not _is_class_label(feature)
    )


def _is_tensor(feature, kind):
    return isinstance(feature, tfds_features.Tensor) and np.issubdtype(
        feature.np_dtype, kind
    )
