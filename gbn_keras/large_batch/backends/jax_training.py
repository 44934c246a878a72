"""`JaxTraining`: updates and evaluation on JAX."""

import contextlib

import keras

from gbn_keras.large_batch.wrapped_model import WrappedModel


class JaxTraining(WrappedModel):
    """The part of `LargeBatchModel` that Keras's JAX trainer calls.

    A step is a pure function from the values of all variables to their next values. In
    it, the common code reads and assigns variables as ever: a `StatelessScope` holds
    their values.
    """

    @property
    def metrics_variables(self):
        """The variables of the metrics, then those of what an update measures.

        Keras's trainer takes all of them through a step.
        """
        return [*super().metrics_variables, *self._measured()]

    def train_step(self, state, data):
        """`(logs, state)` after one update from a batch."""
        variables = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        weights, _, of_optimizer, _ = state
        with _holding(variables, state) as scope:
            gradients, logs = self._through_model(data, training=True)
            progress = self.regime_progress
            with progress.held() if progress else contextlib.nullcontext():
                weights, of_optimizer = self.optimizer.stateless_apply(
                    of_optimizer, gradients, weights
                )
            logs = self._with_gain(logs)
        _, others, _, of_metrics = _values_in(scope, variables)
        return logs, (weights, others, of_optimizer, of_metrics)

    def test_step(self, state, data):
        """`(logs, state)` after the evaluation of a batch."""
        variables = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.metrics_variables,
        )
        with _holding(variables, state) as scope:
            _, logs = self._through_model(data, training=False)
        return logs, _values_in(scope, variables)

    def _scope(self):
        """Where variables must be created: anywhere."""
        return contextlib.nullcontext()

    def _compiled(self, function, examples):
        """The function itself, because Keras compiles the whole step."""
        return function


def _holding(variables, state):
    """A scope in which the variables have the values of the state."""
    pairs = zip(variables, state, strict=True)
    return keras.StatelessScope(
        [pair for kind in pairs for pair in zip(*kind, strict=True)]
    )


def _values_in(scope, variables):
    return tuple([scope.get_current_value(v) for v in kind] for kind in variables)
