"""scikit-learn's handwritten digits, which need no download."""

import numpy as np

from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.splits import check_enough
from gbn_keras.training.errors import UsageError

# Of the 1,797 digits these many are for validation. It leaves 1,536 = 3 x 512 = 2 x 768
# for training, so that large batches drop none of them.
_DIGITS_FOR_VALIDATION = 261


def load_digits(train_examples: int, **choices) -> ImageData:
    """The data set.

    Args:
        train_examples: Only so many of the training examples, the first; 0: all.
        **choices: Flags that choose among what other data sets have.

    Raises:
        UsageError: If a choice is made, or there are fewer examples.
    """
    for flag, value in choices.items():
        if value:
            raise UsageError(
                f"--{flag}: got {value!r}, wanted none with digits, which have one "
                "image, one label and one division. Leave it out."
            )
    # scikit-learn takes a second to import, which the other data sets need not pay.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    train_images, validation_images, train_labels, validation_labels = train_test_split(
        digits.images[..., None].astype(np.uint8),
        digits.target.astype(np.int32),
        test_size=_DIGITS_FOR_VALIDATION,
        stratify=digits.target,
        random_state=0,
    )
    check_enough("digits", len(train_labels), train_examples)
    return ImageData(
        name="digits",
        classes=10,
        train_images=train_images[: train_examples or None],
        train_labels=train_labels[: train_examples or None],
        validation_images=validation_images,
        validation_labels=validation_labels,
    )
