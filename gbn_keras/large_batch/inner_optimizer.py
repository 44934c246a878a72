"""The optimizer that a model's loss scaling may wrap, and the schedule in it."""

from gbn_keras._keras_internals import learning_rate_of
from gbn_keras.regime_adaptation import RegimeAdaptation


def inner_optimizer(optimizer):
    """The optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def refuse_accumulation(optimizer) -> None:
    """Raises a `ValueError` if the optimizer accumulates gradients itself."""
    steps = getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None)
    if steps:
        raise ValueError(
            "optimizer must not accumulate gradients, because its schedule would "
            f"count micro-batches. Received: gradient_accumulation_steps={steps}. "
            "Remove it; micro_batch_size does the same."
        )


def adapted_schedule(optimizer) -> RegimeAdaptation | None:
    """The optimizer's schedule, if it is a `RegimeAdaptation`."""
    schedule = learning_rate_of(inner_optimizer(optimizer))
    return schedule if isinstance(schedule, RegimeAdaptation) else None
