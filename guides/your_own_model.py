"""
Title: Large batches in your own model
Author: gbn-keras contributors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Convert a model, train it in micro-batches, serve it without gbn-keras.
Accelerator: None
"""

"""
## What you will do

You have a Keras model with batch normalization, and a learning rate that suits a batch
of 32. You want to train with a batch of 512, which does not fit into memory. This guide
takes four steps:

1. It converts the model to ghost batch normalization.
2. It adapts the learning rate.
3. It trains with one update for each 512 examples, 128 of them in memory at a time.
4. It converts the model back, saves it, and serves it in a process without gbn-keras.

Every step works on every backend of Keras.
"""

import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gbn_keras import (
    LargeBatchModel,
    RegimeAdaptation,
    to_batch_norm,
    to_ghost_batch_norm,
)

"""
## A model that you already have

Here it is a small convolutional network for the handwritten digits of scikit-learn. It
can be any model: functional, Sequential or subclassed, with weights or without.
"""

keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1) / 16
images, test_images, labels, test_labels = train_test_split(
    images, labels, train_size=1536, stratify=labels, random_state=1
)

model = keras.Sequential([keras.Input((8, 8, 1))])
for filters in (16, 32):
    model.add(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False))
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.ReLU())
    model.add(keras.layers.MaxPooling2D())
model.add(keras.layers.Flatten())
model.add(keras.layers.Dense(10, activation="softmax"))

"""
## Convert it

`to_ghost_batch_norm` changes the model in place. Each layer keeps its name, its weights
and its place, so the predictions stay the same bit for bit. Only training differs.
"""

small_batch, large_batch, micro_batch = 32, 512, 128

before = model.predict(test_images, verbose=0)
changed = to_ghost_batch_norm(model, virtual_batch_size=small_batch)
after = model.predict(test_images, verbose=0)
print(f"{changed} layers normalize by ghosts of {small_batch}")
print(f"same predictions: {np.array_equal(before, after)}")

"""
## Adapt the learning rate

The schedule below was tuned for the small batch, and counts its updates.
`RegimeAdaptation` multiplies the rate by the square root of 512 / 32 = 16, which is 4.
It keeps the number of updates, so the training takes 16 times as many epochs.
"""

small_epochs = 3
ratio = large_batch // small_batch
small_updates = small_epochs * len(images) // small_batch
schedule = keras.optimizers.schedules.CosineDecay(0.05, small_updates)
rate = RegimeAdaptation(schedule, small_batch, large_batch)
print(f"first rate {float(rate(0)):.3f}, {small_updates} updates")

"""
## Train in micro-batches

`LargeBatchModel` wraps the model and shares its weights. It takes a batch of 512
through the network in 4 micro-batches of 128, and makes one update from all of them.
The weights are those of the whole batch, up to rounding, because no ghost is cut: 128
is a multiple of 32.
"""

trainer = LargeBatchModel(model, micro_batch_size=micro_batch)
trainer.compile(
    keras.optimizers.SGD(rate, momentum=0.9),
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
    jit_compile=False,  # XLA's convolutions are slow on processors.
)
trainer.fit(
    images, labels, batch_size=large_batch, epochs=small_epochs * ratio, verbose=0
)
updates = int(trainer.optimizer.iterations)
_, accuracy = trainer.evaluate(test_images, test_labels, verbose=0)
print(f"validation accuracy {100 * accuracy:.2f} % after {updates} updates")

"""
You should see an accuracy of more than 95 %, after the number of updates in three
epochs of the small batch.

## Save it as plain Keras

`to_batch_norm` converts it back. The layers become `keras.layers.BatchNormalization`,
bit for bit the same in inference. You trained the wrapper, so the model itself holds no
optimizer and no schedule of gbn-keras. You can save it as it is.
"""

to_batch_norm(model)
expected = model.predict(test_images, verbose=0)
folder = pathlib.Path(tempfile.mkdtemp())
model.save(folder / "model.keras")
np.save(folder / "images.npy", test_images)

"""
## Serve it without gbn-keras

Another process loads the file. Its first line makes every import of gbn-keras fail, as
on a server where nobody has installed it.
"""

SERVER = """
import sys
sys.modules["gbn_keras"] = None
import keras, numpy as np
model = keras.saving.load_model("model.keras")
np.save("served.npy", model.predict(np.load("images.npy"), verbose=0))
print("layers:", *(type(layer).__name__ for layer in model.layers))
"""
served = subprocess.run(
    [sys.executable, "-c", SERVER], cwd=folder, capture_output=True, text=True
)
print(served.stdout or served.stderr)
difference = np.abs(np.load(folder / "served.npy") - expected).max()
print(f"largest difference of a served prediction {difference:.0e}")

"""
You should see `BatchNormalization` among the layers, nothing of gbn-keras, and a
difference of 0 or a rounding error.

## Where to go on

- [Your model](../docs/your_model.md) says what conversion and `LargeBatchModel` accept.
- [Your own loop and more than one device](your_own_loop.py) shares a batch among
  devices.
- [How it works](../docs/how_it_works.md) explains why micro-batches give the same
  weights.
"""
