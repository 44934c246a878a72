"""scikit-learn's handwritten digits, which need no download."""

import numpy as np

from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.splits import check_enough
from gbn_keras.training.errors import UsageError

# This leaves 1,536 of the 1,797 digits for training: 3 x 512 = 2 x 768, so that large
# batches do not leave any out.
_DIGITS_FOR_VALIDATION = 261


def load_digits(train_examples: int, **choices) -> ImageData:
    """The handwritten digits, in memory.

    Args:
        train_examples: Number of training examples to use, from the first on. 0: all.
        **choices: Flags that choose splits and features of other data sets. Digits
            accept none of them.

    Raises:
        UsageError: If a choice is set, or there are fewer training examples.
    """
    for flag, value in choices.items():
        if value:
            raise UsageError(
                f"--{flag}: got {value!r}, wanted none with digits, which have only "
                "one image, one label and one split. Leave it out."
            )
    # Importing scikit-learn takes a second, and other data sets do not need it.
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
