"""Trains a model that has batch normalization already on large batches.

    python examples/your_model.py [FILE.keras]

Here it is MobileNet of keras.applications, which learns scikit-learn's handwritten
digits with eight times the batch that its rate suits. In the end it is plain Keras
again: a file that is named gets it. Runs on every backend.
"""

import sys

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import RegimeAdaptation, to_batch_norm, to_ghost_batch_norm

SMALL_BATCH, LARGE_BATCH = 32, 256
EPOCHS = 14


def main():
    """Converts, trains, converts back."""
    keras.utils.set_random_seed(1)
    (images, labels), validation = digits()
    model = keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.5, weights=None, classes=10
    )

    changed = to_ghost_batch_norm(model, virtual_batch_size=SMALL_BATCH)
    print(f"{changed} layers normalize by ghosts of {SMALL_BATCH}")

    # The rate that suits the small batch becomes 0.02 x sqrt(8). With the full stretch,
    # the default, the small batch's training has as many updates as this one.
    updates = EPOCHS * len(images) // LARGE_BATCH
    schedule = keras.optimizers.schedules.CosineDecay(0.02, updates)
    rate = RegimeAdaptation(schedule, SMALL_BATCH, LARGE_BATCH)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # XLA's convolutions are slow on CPUs.
    )
    model.fit(images, labels, batch_size=LARGE_BATCH, epochs=EPOCHS, verbose=2)
    print(f"validation accuracy {accuracy_of(model, validation):.2f} %")

    to_batch_norm(model)
    # A file also holds the optimizer, and the schedule is not Keras's.
    model.compile(metrics=["accuracy"], jit_compile=False)
    print(f"with plain layers   {accuracy_of(model, validation):.2f} %")
    if sys.argv[1:]:
        model.save(sys.argv[1])


def accuracy_of(model, validation):
    """In percent."""
    return 100 * model.evaluate(*validation, verbose=0, return_dict=True)["accuracy"]


def digits():
    """1,536 digits for training, the rest for validation, as 32x32 colour images."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3) / 8 - 1
    parts = train_test_split(
        images, labels, train_size=1536, stratify=labels, random_state=1
    )
    return parts[0::2], parts[1::2]


if __name__ == "__main__":
    main()
