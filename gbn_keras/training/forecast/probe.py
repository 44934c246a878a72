"""`probe()`: a short training that measures the gradient's noise along the regime."""

import dataclasses
import pathlib

import numpy as np

from gbn_keras.analysis.noise_history import NoiseHistory
from gbn_keras.analysis.noise_scale import NOISE_SCALE, read_progress
from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.plan import Plan
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings

# The number of small-batch updates, if it is not set.
UPDATES = 400

# Only the first epoch and the last are evaluated.
_RARELY = 1_000_000


def probe_settings(settings: Settings, small: Plan) -> Settings:
    """The settings of the probe: the small batch's regime, shortened as a whole.

    An update takes two small batches, because the noise is what their gradients differ
    by. Rates change in proportion, so the probe comes through all of the regime.

    Args:
        settings: The user's settings.
        small: Plan of the small batch's training.

    Raises:
        UsageError: If the probe would be longer than the training.
    """
    wanted = settings.probe_updates
    if wanted is not None and wanted > small.small_batch_updates:
        raise UsageError(
            f"--probe_updates: got {wanted}, wanted at most the "
            f"{small.small_batch_updates:,} updates of the small batch's regime. Lower "
            "it, or leave it out."
        )
    wanted = wanted or min(UPDATES, small.small_batch_updates)
    per_epoch = small.regime.updates_per_epoch(small.examples)
    epochs = max(1, round(wanted / per_epoch))
    # Fewer examples than an epoch has, each seen once.
    examples = wanted * small.regime.small_batch_size if wanted < per_epoch else 0
    return dataclasses.replace(
        settings,
        mode="train",
        run_dir=str(pathlib.Path(settings.run_dir or "") / "probe"),
        batch_size=2 * small.regime.small_batch_size,
        batch_sizes=None,
        micro_batch_size=0,
        stretch="auto",
        gradient_noise="none",
        noise_scale=True,
        epochs=epochs,
        train_examples=examples or settings.train_examples,
        replicas=0,
        max_updates=0,
        eval_every=_RARELY,
        probe_updates=None,
    )


def probe(settings: Settings, small: Plan, data) -> NoiseHistory:
    """Trains the probe in its own folder, if it is not there, and reads its noise.

    Args:
        settings: Those of the probe.
        small: Plan of the small batch's training.
        data: The data set of that training.
    """
    if settings.train_examples != small.settings.train_examples:
        data = trainer.load_data(settings)
    trainer.train(settings, data)
    plan = Planner(data.examples).plan(settings)
    folder = pathlib.Path(settings.run_dir)
    history = read_history(folder, plan)
    return dataclasses.replace(history, small_batch_updates=small.small_batch_updates)


def read_history(run_dir: pathlib.Path, plan: Plan) -> NoiseHistory:
    """Gradient and noise along the training in a run directory.

    Args:
        run_dir: The run directory.
        plan: A plan of the same regime.

    Raises:
        UsageError: If the training did not measure them.
    """
    file, columns = run_dir / NOISE_SCALE, [[]]
    if file.exists():
        columns = read_progress(file, "gradient_square", "noise")
    if not columns[0]:
        raise UsageError(
            f"--run_dir: got {run_dir}, a training that did not measure its noise, "
            "wanted one with --noise_scale and at least two micro-batches. Choose "
            "another folder; then a short probe measures it."
        )
    updates, done, gradient_square, noise = np.array(columns)
    return NoiseHistory.of_estimates(
        updates,
        done / plan.small_batch_updates,
        gradient_square,
        noise,
        plan.regime.small_batch_size,
        plan.small_batch_updates,
    )
