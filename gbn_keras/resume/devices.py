"""Which devices a training may have that resumes exactly."""

import keras


def refuse_unsupported_devices(model):
    """Raises if there are values or batches that this process does not control.

    Args:
        model: The model in training.

    Raises:
        ValueError: If it has a `tf.distribute` strategy, or JAX has several processes.
    """
    received = ""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Its iterators take batches before they are needed, across epochs.
        strategy = model.distribute_strategy
        if tf.distribute.has_strategy() or strategy is not tf.distribute.get_strategy():
            received = type(strategy).__name__
    elif keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            received = f"{jax.process_count()} processes"
    if received:
        raise ValueError(
            f"ExactResume needs one process without tf.distribute. Received: {received}"
            ". The program (train.py) resumes on replicas and on several machines."
        )
