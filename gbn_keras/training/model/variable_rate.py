"""`VariableRate`: a learning rate that a traced update can take over from another."""

import contextlib

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from gbn_keras._keras_internals import learning_rate_of
from gbn_keras.large_batch.inner_optimizer import inner_optimizer
from gbn_keras.regime_adaptation import RegimeAdaptation
from gbn_keras.training.plan import Plan


class VariableRate(LearningRateSchedule):
    """The rates of a plan, with the numbers that a study's arms differ in as variables.

    A traced update has a schedule's numbers as constants. Here, `scale` and `M /
    stretch` of the `RegimeAdaptation` are variables, so the update also serves a
    training with other ones. The rates are those of the `RegimeAdaptation`, bit for
    bit. It cannot be saved: see `saveable`.

    Create it in the scope of the strategy.

    Args:
        plan: A plan for which `fits` is true.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._schedule = plan.learning_rate.schedule
        self._scale = keras.Variable(0.0, trainable=False, dtype="float32")
        self._small_updates_per_update = keras.Variable(0, trainable=False, dtype="int")
        self.follow(plan)

    @staticmethod
    def fits(plan: Plan) -> bool:
        """Whether two numbers decide the rates, given the schedule.

        Fractions, warm-up and measured gains need other operations. A coefficient of
        L2 that changes has a schedule of its own.
        """
        rate = plan.learning_rate
        return (
            not rate.is_auto
            and not rate.warmup_updates
            and rate.small_updates_per_update.denominator == 1
            and not plan.settings.noise_scale
            and not isinstance(plan.l2, RegimeAdaptation)
        )

    def follow(self, plan: Plan) -> None:
        """Takes the rates of a plan with the same schedule of the small batch."""
        rate = plan.learning_rate
        self._scale.assign(rate.scale)
        self._small_updates_per_update.assign(rate.small_updates_per_update.numerator)

    def __call__(self, step):
        """The rate of update number `step`, a scalar integer counted from 0."""
        rate = self._schedule
        if isinstance(rate, LearningRateSchedule):
            step = ops.convert_to_tensor(step)
            rate = rate(step * ops.cast(self._small_updates_per_update, step.dtype))
        return ops.convert_to_tensor(rate, "float32") * self._scale.value


def rate_to_follow(optimizer: keras.optimizers.Optimizer) -> VariableRate | None:
    """The `VariableRate` that an optimizer has, if it has one."""
    rate = learning_rate_of(inner_optimizer(optimizer))
    return rate if isinstance(rate, VariableRate) else None


@contextlib.contextmanager
def saveable(optimizer: keras.optimizers.Optimizer, plan: Plan):
    """A context in which an optimizer has the plan's schedule, as its file should."""
    rate = rate_to_follow(optimizer)
    if rate:
        optimizer.learning_rate = plan.learning_rate
    try:
        yield
    finally:
        if rate:
            optimizer.learning_rate = rate
