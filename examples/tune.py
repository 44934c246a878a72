"""Searches for the best batch size, ghost size and rate of your model with keras-tuner.

    python examples/tune.py [--trials=8] [--updates=200]

To compare trials with different batch sizes fairly, all of them make the same number of
updates. With the same number of epochs, a large batch would lose because it makes fewer
updates. The trials then see different numbers of samples, and the table shows both. The
example runs on any backend of Keras.
"""

import argparse
import tempfile

import keras
import keras_tuner
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import GhostBatchNormalization, RegimeAdaptation

SMALL_BATCH = 32  # The batch size that the rates below are meant for.


class Digits(keras_tuner.HyperModel):
    """A small network for scikit-learn's digits, with hyperparameters."""

    def __init__(self, updates):
        super().__init__()
        self.updates = updates

    def build(self, hp):
        """The network, compiled."""
        batch_size = hp.Choice("batch_size", [64, 128, 256, 512])
        ghost_size = hp.Choice("virtual_batch_size", [16, 32, 64])
        first_rate = hp.Float("learning_rate", 0.01, 0.3, sampling="log")
        lr_scaling = hp.Choice("lr_scaling", ["none", "sqrt", "linear"])

        schedule = keras.optimizers.schedules.CosineDecay(first_rate, self.updates)
        rate = RegimeAdaptation(schedule, SMALL_BATCH, batch_size, lr_scaling)
        model = keras.Sequential([keras.layers.Rescaling(1 / 16)])
        for _ in range(3):
            model.add(keras.layers.Dense(128, use_bias=False))
            model.add(GhostBatchNormalization(ghost_size))
            model.add(keras.layers.ReLU())
        model.add(keras.layers.Dense(10, activation="softmax"))
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,  # XLA pays only for larger networks.
        )
        return model

    def fit(self, hp, model, images, labels, **kwargs):
        """Trains for the same number of updates with any batch size."""
        batch_size = hp.get("batch_size")
        random, examples = np.random.default_rng(1), self.updates * batch_size
        passes = -(-examples // len(images))
        order = [random.permutation(len(images)) for _ in range(passes)]
        order = np.concatenate(order)[:examples]
        return model.fit(
            images[order], labels[order], batch_size, shuffle=False, **kwargs
        )


def main():
    """Searches and prints the trials, the best one first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--updates", type=int, default=200)
    arguments = parser.parse_args()

    images, test_images, labels, test_labels = train_test_split(
        *load_digits(return_X_y=True), train_size=1536, random_state=1
    )
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.BayesianOptimization(
            Digits(arguments.updates),
            objective="val_accuracy",
            max_trials=arguments.trials,
            seed=1,
            directory=folder,
        )
        tuner.search(
            images, labels, validation_data=(test_images, test_labels), verbose=0
        )
        print("accuracy  updates  samples  batch  ghosts    rate  scaling")
        for trial in tuner.oracle.get_best_trials(arguments.trials):
            found = trial.hyperparameters.values
            print(
                f"{100 * trial.score:6.2f} %{arguments.updates:9,}"
                f"{arguments.updates * found['batch_size']:9,}{found['batch_size']:7}"
                f"{found['virtual_batch_size']:8}{found['learning_rate']:8.3f}"
                f"  {found['lr_scaling']}"
            )


if __name__ == "__main__":
    main()
