"""Which of a data set's features are the images and the labels."""

from typing import NamedTuple

import numpy as np
from tensorflow_datasets import features as tfds_features

from gbn_keras.training.errors import UsageError

_WANTED = {
    "image": "an image, or numbers of three dimensions",
    "label": "a class label, or an integer for each image",
}


class Keys(NamedTuple):
    """The names of two features.

    `choice` says which were taken where there were several, for the plan.
    """

    image: str
    label: str
    choice: str


def image_and_label(
    name: str, info, image_key: str | None = None, label_key: str | None = None
) -> Keys:
    """The two features, of which nothing is guessed.

    Each is the one that is named; else the one that the data set itself names as input
    or target of supervised learning; else the one with the usual name, `image` or
    `label`; else the only one there is. Images are image features or, where there are
    none, numbers of rank 3; labels are class labels or, where there are none, single
    integers.

    Args:
        name: Of the data set.
        info: tensorflow-datasets' description of it.
        image_key: The image feature's name.
        label_key: The label feature's name.

    Raises:
        UsageError: If what is named is no such feature, if there is none, or if one of
            several must be named.
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
    """The feature to take, and those that there are."""
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
                f"--{usual}_key: got {key!r}, wanted {_WANTED[usual]}: {name} has "
                f"{_kinds(features)}. Name another of these."
            )
        return key, candidates
    if isinstance(supervised, str) and supervised in possible:
        return supervised, candidates
    if usual in candidates:
        return usual, candidates
    if not candidates:
        raise UsageError(
            f"--dataset: {name} has no {usual} feature that is {_WANTED[usual]}; it "
            f"has {_kinds(features)}. Choose another data set."
        )
    if len(candidates) > 1:
        raise UsageError(
            f"--{usual}_key: got none, wanted one of {', '.join(candidates)}, between "
            f"which {name} leaves the choice. Name the one that is meant."
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
