"""Converts the batch normalization of any model to ghosts, and back."""

from gbn_keras.convert.batch_norm import to_batch_norm, to_ghost_batch_norm

__all__ = ["to_batch_norm", "to_ghost_batch_norm"]
