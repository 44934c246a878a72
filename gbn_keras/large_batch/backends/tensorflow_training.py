"""`TensorFlowTraining`: updates and evaluation on TensorFlow, on any replicas."""

import keras
import tensorflow as tf

from gbn_keras._keras_internals import build_by_trace, skip_reduction
from gbn_keras.large_batch.backends.tensorflow_replicas import on_all_replicas
from gbn_keras.large_batch.inner_optimizer import inner_optimizer
from gbn_keras.large_batch.wrapped_model import WrappedModel


class TensorFlowTraining(WrappedModel):
    """The part of `LargeBatchModel` that Keras's TensorFlow trainer calls."""

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        self._is_distributed = tf.distribute.has_strategy()

    def train_step(self, data):
        """Makes one update from the whole batch; `data` is this replica's share."""
        gradients, logs = self._through_model(data, training=True)
        # These gradients are sums over the replicas already. Keras would clip each
        # replica's gradients and then sum them.
        skip_reduction(inner_optimizer(self.optimizer))
        self.optimizer.apply(gradients, self.trainable_weights)
        return self._with_gain(logs)

    def test_step(self, data):
        """Evaluates one batch; `data` is this replica's share."""
        _, logs = self._through_model(data, training=False)
        return logs

    def make_train_function(self, force=False):
        """The function that makes an update from a data set's iterator."""
        if not self._is_distributed:
            super().make_train_function(force)
        elif force or self.train_function is None:
            self.train_function = on_all_replicas(self, self.train_step)

    def make_test_function(self, force=False):
        """The function that evaluates a batch from a data set's iterator."""
        if not self._is_distributed:
            super().make_test_function(force)
        elif force or self.test_function is None:
            self.test_function = on_all_replicas(self, self.test_step)

    @property
    def jit_compile(self):
        """Whether XLA compiles everything that Keras runs.

        It is `False` on several replicas, because a compiled function cannot read
        variables there. XLA then compiles what a replica computes from its share.
        """
        return super().jit_compile and not self._is_distributed

    @jit_compile.setter
    def jit_compile(self, value):
        keras.Model.jit_compile.fset(self, value)

    def _scope(self):
        """Where variables must be created."""
        return self.distribute_strategy.scope()

    def _compiled(self, function, examples):
        """The function of a share, compiled by XLA if Keras does not compile it.

        TPUs always do. A data set's last batch is not compiled: a replica may get none
        of it.
        """
        is_tpu = isinstance(self.distribute_strategy, tf.distribute.TPUStrategy)
        by_us = self._is_distributed and super().jit_compile and not is_tpu
        if by_us and isinstance(examples, int):
            return tf.function(function, autograph=False, jit_compile=True)
        return function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras's own method averages the first shares of all replicas, but a machine
        # has only those of its own replicas.
        if not self._is_distributed or self._is_complete():
            return
        strategy = self.distribute_strategy
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0],
                next(batches),
            )
        with strategy.scope():
            build_by_trace(self, data_batch)
