"""`on_all_replicas`: what `fit` and `evaluate` call for their next update or batch."""

import tensorflow as tf


def on_all_replicas(model, step):
    """A function that runs a step on all replicas, for each batch of an iterator.

    As Keras's own, but for any strategy and number of steps per execution.

    Args:
        model: A Keras model, built under a strategy.
        step: Its training or test step. Takes a replica's share; returns logs, the same
            on all replicas.
    """
    strategy = model.distribute_strategy

    def once(data):
        logs = strategy.run(step, args=(data,))
        return tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], logs
        )

    if not model.run_eagerly:
        once = tf.function(once, autograph=False, reduce_retracing=True)

    def function(iterator):
        logs = once(next(iterator))
        for _ in range(model.steps_per_execution - 1):
            try:
                data = next(iterator)
            except StopIteration:
                break
            logs = once(data)
        return logs

    return function
