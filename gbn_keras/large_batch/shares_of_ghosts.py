"""`micro_batch_of_share`: replicas may cut ghosts, micro-batches must not."""

import keras

from gbn_keras.large_batch.ghost_sizes import (
    ghost_sizes,
    refuse_cut_ghosts,
    smallest_micro_batch,
)
from gbn_keras.large_batch.inner_optimizer import inner_optimizer
from gbn_keras.replicas import this_replica

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def micro_batch_of_share(model, training: bool, examples) -> int | None:
    """In which micro-batches a replica's share goes through a model.

    `None` stands for the whole share at once, because other replicas hold the rest of
    its ghosts. A share of unknown size is taken to be made of whole ghosts if
    `micro_batch_size` is, and otherwise to go through at once.

    Args:
        model: A `LargeBatchModel`.
        training: Whether to train. In inference, ghosts do not matter.
        examples: Number of examples of the share, a tensor if it is not known while
            tracing.

    Raises:
        ValueError: If micro-batches would cut a ghost; if replicas do, and the model
            was compiled with `jit_compile=True` or measures the gradient noise.
        tf.errors.InvalidArgumentError: When the model runs, if a share of unknown size
            is not as it was taken to be.
    """
    size, ghosts = model.micro_batch_size, ghost_sizes(model.model)
    if not training:
        return size
    _, replicas = this_replica()
    if replicas == 1:
        # `to_ghost_batch_norm` may have changed the model after it was wrapped.
        refuse_cut_ghosts(size, model.model)
        return size
    is_known = isinstance(examples, int)
    cut = [ghost for ghost in ghosts if (examples if is_known else size) % ghost]
    fits = examples < 2 * size  # The remainder of a share joins its last micro-batch.
    message = _cut_twice(size, examples if is_known else "?", cut or ghosts, replicas)
    if cut:
        _demand(fits, message)
        _refuse_what_needs_whole_ghosts(model, cut, replicas)
        return None
    if not is_known:
        _demand(examples % smallest_micro_batch(model.model) == 0, message)
    elif not fits:
        refuse_cut_ghosts(size, model.model)
    return size


def _demand(condition, message):
    if not isinstance(condition, bool):
        tf.debugging.Assert(condition, [message])
    elif not condition:
        raise ValueError(message)


def _cut_twice(micro_batch_size, examples, ghosts, replicas):
    return (
        "micro_batch_size must be a replica's whole share, because a ghost can be cut "
        f"by replicas, not by micro-batches. Received: micro_batch_size="
        f"{micro_batch_size} for shares of {examples} examples on {replicas} replicas, "
        f"with ghosts of {_listed(ghosts)}. Set it to the size of a share, or choose a "
        "batch size that gives each replica whole ghosts."
    )


def _refuse_what_needs_whole_ghosts(model, ghosts, replicas):
    received = f"Received: ghosts of {_listed(ghosts)} that {replicas} replicas cut."
    if model.must_compile:
        raise ValueError(
            "jit_compile must not be True if replicas cut ghosts, because they cannot "
            f"communicate inside a compiled function. {received} Leave it out."
        )
    optimizer = inner_optimizer(model.optimizer)
    if model.gradient_moments or hasattr(optimizer, "with_squares"):
        raise ValueError(
            "noise_scale, stretch='auto' and BatchSizeInvariantAdam must have whole "
            "ghosts on each replica, because they compare its gradient with that of "
            f"the batch. {received} Choose smaller ghosts, a larger batch or fewer "
            "replicas."
        )


def _listed(ghosts):
    return ", ".join(map(str, ghosts))
