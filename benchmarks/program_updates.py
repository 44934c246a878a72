"""Updates as the program makes them, to be timed one by one."""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import gbn_train
from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings


def random_pixels(name: str, shape: tuple[int, ...], examples: int) -> ImageData:
    """A data set of random images and labels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (examples, *shape), np.uint8)
    labels = random.integers(0, 10, examples, np.int32)
    return ImageData(name, 10, images, labels, images[:10], labels[:10])


def update_of(data: ImageData, *flags: str) -> Callable[[], dict]:
    """A function that makes one update of a training, always with the same batch.

    Args:
        data: The data set that the batch is from.
        *flags: The program's flags.
    """
    settings = Settings(**gbn_train.parse(["train.py", *flags]))
    plan = Planner(data.examples).plan(settings)
    model = build_model(plan, data)
    batch = next(iter(data.training_batches(plan.settings.batch_size, seed=1)))
    return tf.function(
        functools.partial(model.train_step, batch),
        autograph=False,
        jit_compile=model.jit_compile,
    )
