"""`lengths`: how long a training was, and how long it should have been."""

import dataclasses
import pathlib

from keras import ops

from gbn_keras.analysis.noise_scale import (
    NOISE_SCALE,
    UNKNOWN_NOISE_SCALE,
    noise_scale_advice,
    read_progress,
    updates_needed,
)
from gbn_keras.training.plan import Plan
from gbn_keras.training.run.run_directory import METRICS


def lengths(plan: Plan, model, run_dir: pathlib.Path) -> dict:
    """Entries of `result.json` for a training of a `LargeBatchModel` that has ended.

    `high_rate_updates`: see `Plan`. With `--stretch=auto` also `stretch`, which the
    training found, and `small_batch_updates`, whose work it did. With `--noise_scale`
    also `noise_scale`: the last estimate, `suitable_stretch` and `advice`.
    """
    entries = {"high_rate_updates": plan.high_rate_updates}
    if plan.is_auto:
        entries = {
            "high_rate_updates": _high_rate_updates(plan, run_dir),
            "stretch": _stretch(plan, int(model.optimizer.iterations.numpy())),
            "small_batch_updates": _done(model),
        }
    if plan.settings.noise_scale:
        entries["noise_scale"] = _noise_scale(plan, model, run_dir)
    return entries


def _high_rate_updates(plan, run_dir):
    """The updates until the regime changed the rate, to an epoch's accuracy."""
    rows = read_progress(run_dir / METRICS)
    return round(updates_needed(*rows, plan.high_rate_small_batch_updates))


def _noise_scale(plan, model, run_dir):
    estimate = model.gradient_moments.estimate()
    if estimate is None:
        return {"advice": UNKNOWN_NOISE_SCALE}
    updates, done = read_progress(run_dir / NOISE_SCALE)
    last = int(model.optimizer.iterations.numpy())
    if updates[-1] < last:  # The table's rows are spaced.
        updates, done = [*updates, last], [*done, _done(model)]
    needed = updates_needed(updates, done, plan.small_batch_updates)
    suitable = _stretch(plan, needed)
    reached = _stretch(plan, last)
    return {
        **dataclasses.asdict(estimate),
        "suitable_stretch": suitable,
        "advice": noise_scale_advice(
            reached, suitable, done[-1], plan.small_batch_updates
        ),
    }


def _stretch(plan, updates):
    """The stretch of a training of so many updates."""
    return updates * plan.batch_ratio / plan.small_batch_updates


def _done(model):
    return float(ops.convert_to_numpy(model.regime_progress.done))
