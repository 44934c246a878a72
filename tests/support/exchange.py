"""A model file that each backend writes and all read: see `every_backend.py`."""

import keras
import numpy as np

from gbn_keras import (
    GhostBatchNormalization,
    RegimeAdaptation,
    ShardingInvariantDropout,
)

IMAGES = np.random.default_rng(0).normal(3, 2, (64, 8, 8, 3)).astype("float32")
LABELS = np.arange(64) % 10


def make_model():
    """A model with all layers of the method."""
    layers = [
        keras.layers.Conv2D(8, 3, use_bias=False),
        GhostBatchNormalization(16),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        ShardingInvariantDropout(0.5, seed=1, name="dropout"),
        keras.layers.Dense(32, use_bias=False),
        GhostBatchNormalization(None),
        keras.layers.Dense(10),
    ]
    return keras.Sequential([keras.Input(IMAGES.shape[1:]), *layers])


def train(model, updates):
    """Trains for `updates` updates, all with the same batch of all images."""
    schedule = RegimeAdaptation(0.01, 16, 64, warmup_updates=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, 0.9), loss)
    model.fit(
        *(IMAGES, LABELS), batch_size=64, epochs=updates, shuffle=False, verbose=0
    )


def write(folder):
    """Writes a trained model."""
    keras.utils.set_random_seed(0)
    model = make_model()
    train(model, 5)
    backend = keras.backend.backend()
    # The others take it as soon as it has its name.
    unfinished = folder / f"{backend}_unfinished" / "model.keras"
    unfinished.parent.mkdir()
    model.save(unfinished)
    unfinished.rename(folder / f"{backend}.keras")


def read(folder):
    """Writes what each file's model predicts, at once and after more updates."""
    for file in folder.glob("*.keras"):
        # Keras saves PyTorch's own optimizers, which other backends cannot load.
        model = keras.models.load_model(file, compile=False)
        predictions = [model.predict(IMAGES, verbose=0)]
        model.get_layer("dropout").rate = 0  # Each backend draws its own masks.
        train(model, 3)
        predictions.append(model.predict(IMAGES, verbose=0))
        np.save(folder / f"{file.stem}_on_{keras.backend.backend()}.npy", predictions)
