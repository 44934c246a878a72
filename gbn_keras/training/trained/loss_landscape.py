"""`measure_landscape()`: measures how rough the loss is around the weights."""

import contextlib
import dataclasses
import json
import os
import pathlib

import keras
import numpy as np
import pandas as pd

from gbn_keras.analysis.landscape import loss_deviation
from gbn_keras.training.data import datasets
from gbn_keras.training.errors import UsageError
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.model.network import loss_and_metrics
from gbn_keras.training.planner import Planner
from gbn_keras.training.report import pictures
from gbn_keras.training.run.circumstances import circumstances
from gbn_keras.training.run.run_directory import (
    LANDSCAPE,
    MODEL_FILE,
    open_run_directory,
    write_whole,
)
from gbn_keras.training.settings import Settings
from gbn_keras.training.trained.evaluation import load_network
from gbn_keras.training.trainer import load_data

# Distances from the weights, in the weights' units. The paper's picture ends at 10.
_DISTANCES = np.geomspace(0.1, 10, 13)

# At smaller distances, any smooth loss is nearly a plane: its deviation is proportional
# to the distance, so alpha is 2. Only larger distances show how rough the loss is.
_NEAR = 1.0


def measure_landscape(settings: Settings, data=None) -> str:
    """Measures `alpha`: at distance `r`, the loss deviates by about `r^(alpha/2)`.

    The network is the trained one in the run directory, or else a new one. The loss is
    that of one training batch, with the normalization of training (ghosts or plain).
    Writes `landscape.csv`, `landscape.json` and a picture to the run directory. Like
    `result.json`, `landscape.json` has the seed, the settings, the commit, the versions
    and the hardware.

    Args:
        settings: The user's settings.
        data: The data set. Default: the one that the settings name.

    Returns:
        The result as text.

    Raises:
        UsageError: If the settings contradict each other, the data or the directory.
    """
    if settings.strategy != "one":
        raise UsageError(
            f"--strategy: got {settings.strategy}, wanted one, because the "
            "landscape is measured on one device. Leave it out."
        )
    # Data and plan.
    data = data or load_data(settings)
    plan = Planner(data.examples).plan(settings)
    settings = plan.settings
    run_dir = pathlib.Path(settings.run_dir)

    # Network.
    with contextlib.ExitStack() as stack:
        if os.path.exists(run_dir / MODEL_FILE):
            state, network = "trained", load_network(settings, data)
        else:
            stack.enter_context(open_run_directory(settings))
            keras.utils.set_random_seed(settings.seed)
            state = "at initialization"
            network = build_model(plan, data).model
        return _measure(plan, data, network, state)


def _measure(plan, data, network, state):
    settings, made_by = plan.settings, circumstances(plan)
    run_dir = pathlib.Path(settings.run_dir)

    # Measurement.
    with datasets.one_line_if_damaged(data):
        images, labels = next(
            iter(data.training_batches(settings.batch_size, settings.seed))
        )
    result = loss_deviation(
        network,
        loss_and_metrics()["loss"],
        images,
        labels,
        _DISTANCES,
        directions=settings.directions,
        seed=settings.seed,
    )

    # Report.
    first, last = _DISTANCES[0], _DISTANCES[-1]
    fits = {
        f"distance {first:g} to {last:g}": result.fit(),
        f"distance {first:g} to {_NEAR:g}": result.fit(largest=_NEAR),
        f"distance {_NEAR:g} to {last:g}": result.fit(smallest=_NEAR),
    }
    table = {
        "distance": result.distances,
        "deviation": result.deviation,
        "mean": result.mean,
        "root_mean_square": result.root_mean_square,
    }
    title = f"{settings.model} on {settings.dataset}, {state}"
    rows = pd.DataFrame(table).to_csv(index=False)
    write_whole(run_dir / "landscape.csv", rows)
    description = {
        "network": title,
        "loss": result.loss,
        "weights_norm": result.weights_norm,
        "directions": settings.directions,
        "examples": settings.batch_size,
        "fits": {name: dataclasses.asdict(fit) for name, fit in fits.items()},
        "paper": {"alpha": 2},
        **made_by,
    }
    write_whole(run_dir / LANDSCAPE, json.dumps(description, indent=2) + "\n")
    pictures.save(
        pictures.landscape(table, fits, title, len(result.differences)),
        run_dir,
        "landscape.png",
    )
    return "\n".join(
        [
            f"{title}: loss {result.loss:.4g}, |w| = {result.weights_norm:.4g}",
            *(
                f"alpha {fit.alpha:.3f} ± {fit.error:.3f} "
                f"(R² {fit.r_squared:.4f}), {name}"
                for name, fit in fits.items()
            ),
            "the paper: alpha 2",
        ]
    )
