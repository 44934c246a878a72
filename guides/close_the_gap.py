"""
Title: Close the gap in five minutes
Author: gbn-keras contributors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: A large batch loses accuracy. Three remedies bring it back, one by one.
Accelerator: None
"""

"""
## What you will see

You train one small network five times on the handwritten digits of scikit-learn. The
first training uses a small batch. The second uses a batch 24 times as large and loses
accuracy. Each further training adds one remedy of Hoffer, Hubara and Soudry, ["Train
longer, generalize better"](https://arxiv.org/abs/1705.08741).

| arm | batch | learning rate | ghosts | epochs |
|---|---|---|---|---|
| SB | 32 | the small batch's | no | 6 |
| LB | 768 | the same | no | 6 |
| +LR | 768 | times the square root of 24 | no | 6 |
| +GBN | 768 | times the square root of 24 | of 32 | 6 |
| +RA | 768 | times the square root of 24 | of 32 | 144 |

The guide downloads nothing. It needs no GPU, and takes about half a minute of a CPU's
time.
"""

import pathlib

import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import L2SGD, REGIMES, GhostBatchNormalization, RegimeAdaptation

"""
## Data

The data set has 1,797 images of 8x8 pixels. You train on 1,536 of them and validate on
the others. Both batch sizes divide 1,536, so no batch is smaller than asked.
"""

images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(
    images / 16, labels, train_size=1536, stratify=labels, random_state=1
)

"""
## The regime

A regime is a recipe that somebody tuned for a small batch: a batch size, a number of
epochs, rates that fall from epoch to epoch, a penalty. gbn-keras ships one for digits.
"""

regime = REGIMES["f1_digits"]
small_batch = regime.small_batch_size
large_batch = 768
ratio = large_batch // small_batch  # M, the ratio of the two batch sizes.
print(f"small batch {small_batch}, large batch {large_batch}, M = {ratio}")

"""
## The network

The network has three hidden layers. `virtual_batch_size` is the number of examples in a
ghost. `GhostBatchNormalization(None)` is plain batch normalization, so one function
makes the network of every arm.

The momentum of the running statistics is 0.9. With Keras's default of 0.99, they would
hardly move in the few updates of a large batch.
"""


def make_network(virtual_batch_size):
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(3):
        model.add(keras.layers.Dense(128, use_bias=False))
        model.add(GhostBatchNormalization(virtual_batch_size, momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10))
    return model


"""
## One training

`RegimeAdaptation` wraps the schedule of the small batch. `lr_scaling` says how the rate
grows with M. `stretch` says how many times more epochs the training has, so it
stretches the schedule as well. `L2SGD` adds the penalty to the gradient, as the paper's
scripts do, and clips the gradient of the loss.
"""


def train(batch_size, lr_scaling="none", virtual_batch_size=None, stretch=1):
    keras.utils.set_random_seed(1)
    model = make_network(virtual_batch_size)
    schedule = regime.learning_rate_schedule(len(images))
    rate = RegimeAdaptation(schedule, small_batch, batch_size, lr_scaling, stretch)
    (_, l2), *_ = regime.l2
    model.compile(
        L2SGD(rate, l2, momentum=regime.momentum, global_clipnorm=regime.clipnorm),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA pays only for larger networks.
    )
    history = model.fit(
        images,
        labels,
        batch_size=batch_size,
        epochs=regime.epochs * stretch,
        validation_data=(test_images, test_labels),
        validation_batch_size=len(test_images),
        validation_freq=stretch,  # Six evaluations in every arm.
        verbose=0,
    )
    updates = int(model.optimizer.iterations)
    return updates, [100 * value for value in history.history["val_accuracy"]]


"""
## Five arms

The paper calls the arms SB, LB, +LR, +GBN and +RA. Each large-batch arm keeps the
changes of the one before it.
"""

arms = {
    "SB": {"batch_size": small_batch},
    "LB": {"batch_size": large_batch},
    "+LR": {"batch_size": large_batch, "lr_scaling": "sqrt"},
    "+GBN": {
        "batch_size": large_batch,
        "lr_scaling": "sqrt",
        "virtual_batch_size": small_batch,
    },
    "+RA": {
        "batch_size": large_batch,
        "lr_scaling": "sqrt",
        "virtual_batch_size": small_batch,
        "stretch": ratio,
    },
}
updates, accuracies = {}, {}
for arm, settings in arms.items():
    updates[arm], accuracies[arm] = train(**settings)
    print(f"{arm:5}{updates[arm]:4} updates  {accuracies[arm][-1]:6.2f} %")

"""
You should see this order: LB loses about ten points to SB, +LR and +GBN win back a part
of them without a single additional update, and +RA reaches SB or passes it.

Look at the column of the updates too. LB makes 12 of them where SB makes 288. That is
the paper's point: the large batch is not bad, the training is too short.

## The picture

The left panel shows the error at the end of every arm. The right panel shows the error
by update: the arms with the large batch stop after 12 updates, all but +RA.
"""

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
errors = {arm: [100 - value for value in values] for arm, values in accuracies.items()}
bars = left.bar(list(errors), [values[-1] for values in errors.values()])
left.bar_label(bars, fmt="%.1f")
left.set_ylabel("validation error, %")
for arm, values in errors.items():
    places = [updates[arm] * (n + 1) / len(values) for n in range(len(values))]
    right.plot(places, values, marker="o", label=arm)
right.set(xscale="log", yscale="log", xlabel="updates", ylabel="validation error, %")
right.legend()

folder = pathlib.Path("runs")
folder.mkdir(exist_ok=True)
figure.savefig(folder / "close_the_gap.png", dpi=100)

"""
![The error at the end of each arm, and the error by update](../docs/close_the_gap.png)

## Which remedy costs what

| remedy | costs |
|---|---|
| the square-root rule | nothing |
| ghosts | nothing; the layer is faster than Keras's own |
| regime adaptation | M times the epochs, in as many updates as the small batch makes |

An update with a large batch takes longer on one device. If many devices share the
batch, it does not have to. Then +RA takes about as long as SB. The parameter `stretch`
trades accuracy for time: with a number between 1 and M, you train fewer epochs.

## Where to go on

- [Large batches in your own model](your_own_model.py) converts a model that you have.
- [Your own loop and more than one device](your_own_loop.py) does it without `fit`.
- [The program](../docs/program.md) runs the five arms over several seeds with one
  command, and draws these pictures.
"""
