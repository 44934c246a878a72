"""
Title: Your own loop and more than one device
Author: gbn-keras contributors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Ghosts, schedule and micro-batches without fit; then two devices.
Accelerator: None
"""

"""
## What you will see

You write the training loop yourself, with TensorFlow's `GradientTape`. First you cut a
batch into micro-batches of whole ghosts. Then you share it between two devices. Both
ways give the weights that the whole batch gives on one device.

You need no second device. TensorFlow can divide a processor into logical devices, if
you ask for them before it starts.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import GhostBatchNormalization, RegimeAdaptation

(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    processor, [tf.config.LogicalDeviceConfiguration()] * 2
)

"""
## Data and network

The network normalizes by ghosts of 32. Ghosts exist only in training, so call the model
with `training=True` in the loop, and with `training=False` to predict.
"""

small_batch, large_batch, micro_batch = 32, 512, 128
number_of_updates = 288  # The updates of six epochs of the small batch.

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
images, test_images, labels, test_labels = train_test_split(
    images, labels, train_size=1536, stratify=labels, random_state=1
)


def make_model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(3):
        model.add(keras.layers.Dense(128, use_bias=False))
        model.add(GhostBatchNormalization(small_batch))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10))
    return model


"""
## The rate

`RegimeAdaptation` is a schedule of Keras: give it to the optimizer. The optimizer
counts updates. The schedule inside counts updates of the small batch.
"""


def make_rate():
    schedule = keras.optimizers.schedules.CosineDecay(0.03, number_of_updates)
    return RegimeAdaptation(schedule, small_batch, large_batch)


"""
## The update

A ghost does not depend on other ghosts. So micro-batches of whole ghosts can go through
the network one after the other. Weight the loss of each one by its part of the batch,
add up the gradients, and apply the sum once. The running statistics take one step for
each ghost, in the order of the batch, whichever micro-batch the ghost is in.
"""

loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_update(model, optimizer, micro_batch):
    weights = model.trainable_variables
    optimizer.build(weights)

    @tf.function
    def update(images, labels):
        share = micro_batch / large_batch
        total, gradients = 0.0, [tf.zeros_like(weight) for weight in weights]
        for start in range(0, large_batch, micro_batch):
            part = slice(start, start + micro_batch)
            with tf.GradientTape() as tape:
                loss = share * loss_of(labels[part], model(images[part], training=True))
            total += loss
            more = tape.gradient(loss, weights)
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        optimizer.apply(gradients, weights)
        return total

    return update


"""
## The loop

Nothing else is special. Every pass over the data takes another order.
"""


def batches(number):
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(images), seed=1).batch(large_batch, drop_remainder=True)
    return data.repeat().take(number)


model, rate = make_model(), make_rate()
update = make_update(model, keras.optimizers.SGD(rate, momentum=0.9), micro_batch)
for number, (some_images, some_labels) in enumerate(batches(number_of_updates), 1):
    loss = float(update(some_images, some_labels))
    if number % 48 == 0:
        next_rate = float(rate(number))
        print(f"update {number}: loss {loss:.4f}, next rate {next_rate:.4f}")
found = np.argmax(model(test_images, training=False), axis=-1)
print(f"validation accuracy {100 * np.mean(found == test_labels):.2f} %")

"""
You should see more than 96 %. The rate starts at 0.03 times the square root of 16,
which is 0.12, and falls to 0.

## Micro-batches change nothing

Train twice from the same weights, for ten updates: once in micro-batches, once with the
whole batch at a time. Then compare all variables, running statistics included.
"""


def train(micro_batch):
    model = make_model()
    optimizer = keras.optimizers.SGD(make_rate(), momentum=0.9)
    update = make_update(model, optimizer, micro_batch)
    for some_images, some_labels in batches(10):
        update(some_images, some_labels)
    return model.get_weights()


def largest_difference(some_weights, other_weights):
    pairs = zip(some_weights, other_weights, strict=True)
    return max(np.abs(some - other).max() for some, other in pairs)


whole = train(large_batch)
difference = largest_difference(train(micro_batch), whole)
print(f"micro-batches and whole batch differ by {difference:.0e} at most")

"""
## Two devices

A strategy of `tf.distribute` runs the same step on every device. Make the model and the
optimizer in its scope. Give each device a contiguous share of the batch. If it is made
of whole ghosts, as here, the devices need not exchange their statistics. The layer
makes the running statistics agree, in the order of the whole batch. The optimizer sums
the gradients of the devices. A loss of Keras divides by their number, so the sum is the
gradient of the whole batch.
"""

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
devices = strategy.num_replicas_in_sync

with strategy.scope():
    model = make_model()
    optimizer = keras.optimizers.SGD(make_rate(), momentum=0.9)
    optimizer.build(model.trainable_variables)


def step(images, labels):
    with tf.GradientTape() as tape:
        loss = loss_of(labels, model(images, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
    return loss


@tf.function
def update_on_all_devices(images, labels):
    losses = strategy.run(step, args=(images, labels))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)


for some_images, some_labels in strategy.experimental_distribute_dataset(batches(10)):
    update_on_all_devices(some_images, some_labels)

difference = largest_difference(model.get_weights(), whole)
print(f"{devices} devices and one device differ by {difference:.0e} at most")

"""
You should see two differences below 1e-5: float32 rounds sums differently when it
adds their terms in another order.

## Let gbn-keras do it

`LargeBatchModel` does both at once in `fit`: make it in the scope of the strategy, and
it cuts the share of each device into micro-batches. It also handles what this guide
leaves out: clipping of the whole gradient, masks, sample weights, metrics, dropout. See
[Large batches in your own model](your_own_model.py).

[From a laptop to a cluster](../docs/cluster.md) explains how the program trains on
several machines.
"""
