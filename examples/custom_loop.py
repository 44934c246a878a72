"""A training loop of one's own, with ghosts, the rate's schedule and micro-batches.

    python examples/custom_loop.py

What `fit` does, by hand, with TensorFlow's GradientTape. Ghosts do not know of each
other, so a batch that is too large for the memory may go through the network in
micro-batches of whole ghosts: the sum of their gradients is that of the batch, and the
running statistics are too.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import GhostBatchNormalization, RegimeAdaptation

SMALL_BATCH, LARGE_BATCH, MICRO_BATCH = 32, 512, 128
UPDATES = 288  # As many as six epochs of the small batch.


def main():
    """Trains on scikit-learn's handwritten digits."""
    keras.utils.set_random_seed(1)
    images, test_images, labels, test_labels = train_test_split(
        *load_digits(return_X_y=True), train_size=1536, random_state=1
    )
    model = keras.Sequential([keras.Input((64,)), keras.layers.Rescaling(1 / 16)])
    for _ in range(3):
        model.add(keras.layers.Dense(128, use_bias=False))
        model.add(GhostBatchNormalization(SMALL_BATCH))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10))

    # Counts small-batch updates; the optimizer counts updates.
    schedule = keras.optimizers.schedules.CosineDecay(0.03, UPDATES)
    rate = RegimeAdaptation(schedule, SMALL_BATCH, LARGE_BATCH)
    update = make_update(model, keras.optimizers.SGD(rate, momentum=0.9))

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1536, seed=1)
    batches = batches.batch(LARGE_BATCH, drop_remainder=True).repeat().take(UPDATES)
    for number, (batch, batch_labels) in enumerate(batches, start=1):
        loss = update(batch, batch_labels)
        if number % 48 == 0:
            print(f"update {number}: loss {loss:.4f}, next rate {rate(number):.4f}")
    found = np.argmax(model.predict(test_images, verbose=0), axis=-1)
    print(f"validation accuracy {100 * np.mean(found == test_labels):.2f} %")


def make_update(model, optimizer):
    """A function that makes one update from a batch, and returns the batch's loss."""
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = model.trainable_variables

    @tf.function
    def update(images, labels):
        share = MICRO_BATCH / LARGE_BATCH
        total, gradients = 0.0, [tf.zeros_like(weight) for weight in weights]
        for start in range(0, LARGE_BATCH, MICRO_BATCH):
            part = slice(start, start + MICRO_BATCH)
            with tf.GradientTape() as tape:
                # Only in training there are ghosts.
                loss = share * loss_of(labels[part], model(images[part], training=True))
            total += loss
            more = tape.gradient(loss, weights)
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        optimizer.apply(gradients, weights)
        return total

    return update


if __name__ == "__main__":
    main()
