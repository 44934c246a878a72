"""Limits the length of a trial, in updates or samples."""

import dataclasses
import math

from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings

# Hyperband's factor: the best third of the trials gets three times the epochs in the
# next round.
HYPERBAND_FACTOR = 3


def within_budget(settings: Settings, planner: Planner, share: float = 1.0) -> Settings:
    """The settings with a regime that fits into the budget of a trial.

    A longer regime is shortened as a whole: first its stretch, then its epochs.

    Args:
        settings: Settings with `trial_updates` or `trial_samples`. With neither, they
            are returned unchanged.
        planner: Planner of the trials.
        share: Part of the budget to spend, from 0 to 1.

    Raises:
        UsageError: If the budget is not enough for one update, or set twice.
    """
    if settings.trial_updates and settings.trial_samples:
        raise UsageError(
            f"--trial_samples: got {settings.trial_samples} together with "
            f"--trial_updates={settings.trial_updates}, wanted only one of them. Leave "
            "one out."
        )
    if not (settings.trial_updates or settings.trial_samples):
        return settings
    plan = planner.plan(settings)
    if plan.is_auto:
        name = "trial_updates" if settings.trial_updates else "trial_samples"
        raise UsageError(
            f"--{name}: got {getattr(settings, name)} with --stretch=auto, wanted 0, "
            "because such a training finds its own length. Leave one of them out."
        )
    batch_size = plan.settings.batch_size
    updates = settings.trial_updates or settings.trial_samples / batch_size
    updates = math.floor(updates * share)
    if updates < 1:
        name = "trial_updates" if settings.trial_updates else "trial_samples"
        raise UsageError(
            f"--{name}: got {getattr(settings, name)}, wanted more, because "
            f"{100 * share:.3g} % of it is less than one update of batch {batch_size}. "
            "Raise it."
        )
    if plan.updates <= updates:
        return settings
    epochs = math.ceil(updates / plan.updates_per_epoch)
    ratio = batch_size / plan.settings.small_batch_size
    # A batch below the small one has a stretch below 1.
    stretch = max(min(1.0, ratio), epochs / plan.regime.epochs)
    # Rounding up to whole epochs may exceed the regime's own stretch.
    stretch = min(stretch, plan.settings.stretch)
    return dataclasses.replace(
        settings,
        stretch=stretch,
        epochs=min(plan.regime.epochs, math.ceil(epochs / stretch)),
        max_updates=updates,
    )


def smallest_share(settings: Settings, planner: Planner) -> float:
    """The search's shortest training, as a part of a whole one."""
    if settings.tuner != "hyperband":
        return 1.0
    epochs = shortest = planner.regime(settings).epochs
    while shortest >= HYPERBAND_FACTOR:
        shortest /= HYPERBAND_FACTOR
    return math.ceil(shortest) / epochs
