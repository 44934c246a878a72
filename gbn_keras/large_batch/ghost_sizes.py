"""The sizes of a model's ghosts, which micro-batches must not cut."""

import math

import keras

from gbn_keras._keras_internals import layers_of
from gbn_keras.arguments import nearest_multiples
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization


def smallest_micro_batch(model: keras.Model) -> int:
    """The smallest micro-batch that every virtual batch size in the model divides."""
    return math.lcm(*ghost_sizes(model))


def ghost_sizes(model: keras.Model) -> list[int]:
    """The different virtual batch sizes in the model, in ascending order."""
    sizes = {
        layer.virtual_batch_size
        for layer in layers_of(model)
        if isinstance(layer, GhostBatchNormalization)
    }
    return sorted(size for size in sizes if size is not None)


def refuse_cut_ghosts(micro_batch_size: int, model: keras.Model) -> None:
    """Raises a ValueError if micro-batches are not made of whole ghosts."""
    for virtual_batch_size in ghost_sizes(model):
        if micro_batch_size % virtual_batch_size:
            raise ValueError(
                "micro_batch_size must be made of whole ghosts. Received: "
                f"micro_batch_size={micro_batch_size} with ghosts of "
                f"{virtual_batch_size}. Choose "
                f"{nearest_multiples(micro_batch_size, virtual_batch_size)}."
            )
