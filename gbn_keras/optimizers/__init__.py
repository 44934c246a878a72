"""The optimizer that the paper needs and Keras lacks."""

from gbn_keras.optimizers.l2_sgd import L2SGD

__all__ = ["L2SGD"]
