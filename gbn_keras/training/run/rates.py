"""`Rates`: the learning rates of a plan's updates, for tables and curves."""

import numpy as np
import tensorflow as tf

from gbn_keras.analysis.compiled import compiled
from gbn_keras.training.plan import Plan

# Number of updates whose rates are computed at once.
_BLOCK = 1024


class Rates:
    """Gives the learning rate of an update as a number: `rates(update)`.

    A schedule takes TensorFlow as long as a small update does. So the rates of many
    updates are computed at once, except with `--stretch=auto`, where the training
    decides them one by one.

    Args:
        plan: The plan of the training.
    """

    def __init__(self, plan: Plan):
        self._is_auto = plan.is_auto
        rates = plan.learning_rate
        self._schedule = compiled(rates) if plan.is_auto else rates
        self._block, self._rates = None, np.zeros(0)

    def __call__(self, update: int) -> float:
        """The rate of an update, counted from 0; with `auto`, of the last one only."""
        if self._is_auto:
            return float(self._schedule(tf.constant(update)))
        block, place = divmod(update, _BLOCK)
        if block != self._block:
            updates = tf.range(block * _BLOCK, (block + 1) * _BLOCK)
            rates = np.asarray(self._schedule(updates))
            # A constant schedule gives one rate for all.
            self._block, self._rates = block, np.broadcast_to(rates, _BLOCK)
        return float(self._rates[place])
