"""Optimizers that Keras lacks, and how its Adam goes to another batch size."""

from gbn_keras.optimizers.batch_size_invariant_adam import BatchSizeInvariantAdam
from gbn_keras.optimizers.l2_sgd import L2SGD
from gbn_keras.optimizers.scale_adam import scale_adam

__all__ = ["L2SGD", "BatchSizeInvariantAdam", "scale_adam"]
