"""Whether Adam trains alike with batches of any size, per sample seen.

    python benchmarks/adam_invariance.py [--task=quadratic|digits] [--json=FILE]

Each task is trained with the small batch, then with larger ones on the same samples in
the same order, as many epochs as the small batch:

- `plain`: the small batch's Adam, as it is;
- `square root`: `scale_adam` of it (not beyond the batch that it refuses);
- `linear`: `scale_adam` of a `BatchSizeInvariantAdam`, whose second moment is that of
  the small batch, from micro-batches of the small batch's size;
- `linear, 2`: the same from two micro-batches.

The table shows how far the weights are from those of the small batch after the same
samples: the mean over the training of the distance, divided by how far the small batch
has come from its start, averaged over the seeds. 0 is the same trajectory. `other
order` is the small batch on the same samples in another order: what chance alone does.
In brackets is the mean difference of the loss on all samples, divided by the small
batch's loss.

The quadratic has 256 directions of different steepness, and each example has its
minimum elsewhere: far from the minimum, the gradient is larger than its noise. The
digits are scikit-learn's, the network is `f1_digits` with ghosts of 32.
"""

import argparse
import functools
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import result_theory
import tensorflow as tf
from side_by_side import write_json

from gbn_keras import (
    BatchSizeInvariantAdam,
    GhostBatchNormalization,
    LargeBatchModel,
    scale_adam,
)
from gbn_keras.networks import f1_digits
from gbn_keras.training.data import datasets

SMALL = 32
BATCHES = (32, 64, 128, 256, 768)
WAYS = ("plain", "square root", "linear", "linear, 2")
EPOCHS = 6
LOOKS = 768  # Samples between two looks at the weights: a multiple of all batches.
DIRECTIONS = 256


def main():
    """Trains with all batches, and prints a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    rows = []
    for task in arguments.task or TASKS:
        rows += compare(task, arguments.rate, range(1, arguments.seeds + 1))
        print(f"\n{result_theory.adam(task, rows)}", flush=True)
    write_json(arguments.json, rows)


def compare(task, rate, seeds):
    """A row for each batch and way, with the means over the seeds."""
    found = {}
    for seed in seeds:
        make, x, y = TASKS[task](seed)
        train = functools.partial(trajectory, make, x, y, seed)
        reference = train(adam(rate), SMALL, SMALL)
        found.setdefault((SMALL, "other order"), []).append(
            distance(reference, train(adam(rate), SMALL, SMALL, order=100 + seed))
        )
        for batch in BATCHES:
            for way in WAYS:
                optimizer = optimizer_of(way, rate, batch)
                if optimizer is None:
                    continue
                micro = batch // 2 if way == "linear, 2" else SMALL
                micro = micro if way.startswith("linear") else batch
                other = train(optimizer, batch, max(micro, SMALL))
                found.setdefault((batch, way), []).append(distance(reference, other))
    return [
        {
            "task": task,
            "batch": batch,
            "way": way,
            "weights": statistics.mean(weights for weights, _ in values),
            "weights_by_seed": [weights for weights, _ in values],
            "loss": statistics.mean(loss for _, loss in values),
        }
        for (batch, way), values in found.items()
    ]


def adam(rate):
    """The small batch's."""
    return keras.optimizers.Adam(rate)


def optimizer_of(way, rate, batch):
    """Adam for a batch; `None` where there is no such one."""
    ratio = batch / SMALL
    if way == "plain":
        return adam(rate)
    if way == "square root":
        try:
            return scale_adam(adam(rate), ratio)
        except ValueError:
            return None
    if way == "linear, 2" and ratio <= 2:
        return None  # The same as `linear`.
    return scale_adam(BatchSizeInvariantAdam(rate, SMALL), ratio)


def quadratic(seed):
    """A network of one weight for each direction, and samples."""
    random = np.random.default_rng(seed)
    samples = 6 * random.normal(size=(1536, DIRECTIONS)).astype("float32")

    def make():
        return keras.Sequential([keras.Input((DIRECTIONS,)), Quadratic()])

    return make, samples, np.zeros((1536, 1), "float32")


class Quadratic(keras.layers.Layer):
    """`sum(steepness * (w - x)^2) / 2` of an input, starting at `w = 3`."""

    def build(self, input_shape):
        """Makes the weights."""
        self.w = self.add_weight(shape=input_shape[1:], initializer="ones")
        self.w.assign(3.0 * self.w)

    def call(self, inputs):
        """The value for each sample."""
        steepness = np.geomspace(0.01, 10, DIRECTIONS).astype("float32")
        squares = keras.ops.square(self.w - inputs)
        return keras.ops.sum(steepness * squares / 2, axis=1, keepdims=True)


def digits(seed):
    """The network and all training images."""
    data = datasets.load("digits")
    x, y = map(np.asarray, next(iter(data.training_batches(data.examples, 1))))

    def make():
        keras.utils.set_random_seed(seed)
        ghosts = functools.partial(GhostBatchNormalization, SMALL, momentum=0.9)
        return f1_digits(data.image_shape, data.classes, ghosts)

    return make, x, y


TASKS = {"quadratic": quadratic, "digits": digits}


def trajectory(make, x, y, seed, optimizer, batch, micro, order=None):
    """Weights and loss after every `LOOKS` samples, and at the start."""
    model = LargeBatchModel(make(), micro)
    is_quadratic = y.dtype == "float32"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if is_quadratic:
        loss = mean_prediction
    model.compile(optimizer, loss, jit_compile=False)
    network = model.model
    random = np.random.default_rng(seed if order is None else order)
    places = np.concatenate([random.permutation(len(x)) for _ in range(EPOCHS)])
    weights, losses = [flat(network)], []
    data = tf.data.Dataset.from_tensor_slices((x[places], y[places]))
    data = data.batch(batch, drop_remainder=True)

    def look(number, logs):
        if (number + 1) * batch % LOOKS == 0:
            weights.append(flat(network))
            values = network(x, training=True)
            losses.append(float(np.mean(loss(y, values))))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model.fit(data, shuffle=False, verbose=0, callbacks=[callback])
    return np.array(weights), np.array(losses)


def mean_prediction(y_true, y_pred):
    """The value of the quadratic."""
    return keras.ops.mean(y_pred + 0 * y_true, axis=-1)


def flat(network):
    """All trainable weights as one vector."""
    return np.concatenate([v.numpy().ravel() for v in network.trainable_variables])


def distance(reference, other):
    """How far a trajectory is from the reference: of its weights, of its losses."""
    (weights, losses), (other_weights, other_losses) = reference, other
    moved = np.linalg.norm(weights[1:] - weights[0], axis=1)
    apart = np.linalg.norm(other_weights[1:] - weights[1:], axis=1)
    return (
        float(np.mean(apart / moved)),
        float(np.mean(np.abs(other_losses - losses) / np.abs(losses))),
    )


if __name__ == "__main__":
    main()
