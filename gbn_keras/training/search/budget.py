"""How long a trial may be, in updates or samples."""

import dataclasses
import math

from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings

# Of Hyperband: how many times more epochs the best third gets in the next round.
HYPERBAND_FACTOR = 3


def within_budget(settings: Settings, planner: Planner, share: float = 1.0) -> Settings:
    """The settings with a regime that is no longer than the budget of a trial.

    It is shortened as a whole: first its stretch, then its epochs.

    Args:
        settings: With `trial_updates` or `trial_samples`; with neither, they are
            returned as they are.
        planner: Of the trials.
        share: Which part of the budget to spend.

    Raises:
        UsageError: If the budget is not enough for one update, or given twice.
    """
    if settings.trial_updates and settings.trial_samples:
        raise UsageError(
            f"--trial_samples: got {settings.trial_samples} together with "
            f"--trial_updates={settings.trial_updates}, wanted one of them. Choose "
            "what all trials have the same of."
        )
    if not (settings.trial_updates or settings.trial_samples):
        return settings
    plan = planner.plan(settings)
    batch_size = plan.settings.batch_size
    updates = settings.trial_updates or settings.trial_samples / batch_size
    updates = math.floor(updates * share)
    if updates < 1:
        name = "trial_updates" if settings.trial_updates else "trial_samples"
        raise UsageError(
            f"--{name}: got {getattr(settings, name)}, wanted more: with "
            f"{100 * share:.3g} % of them batch {batch_size} makes no update."
        )
    if plan.updates <= updates:
        return settings
    epochs = math.ceil(updates / plan.updates_per_epoch)
    ratio = batch_size / plan.settings.small_batch_size
    # A batch below the small one has a stretch below 1.
    stretch = max(min(1.0, ratio), epochs / plan.regime.epochs)
    # Whole epochs may be more than the regime's own stretch makes of them.
    stretch = min(stretch, plan.settings.stretch)
    return dataclasses.replace(
        settings,
        stretch=stretch,
        epochs=min(plan.regime.epochs, math.ceil(epochs / stretch)),
        max_updates=updates,
    )


def smallest_share(settings: Settings, planner: Planner) -> float:
    """Which part of a whole training the search's shortest one is."""
    if settings.tuner != "hyperband":
        return 1.0
    epochs = shortest = planner.regime(settings).epochs
    while shortest >= HYPERBAND_FACTOR:
        shortest /= HYPERBAND_FACTOR
    return math.ceil(shortest) / epochs
