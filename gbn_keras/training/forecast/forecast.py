"""`forecast()`: what a training with each batch size would need, before one pays."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib

import pandas as pd

from gbn_keras.training.errors import UsageError
from gbn_keras.training.forecast import all_reduce, speed
from gbn_keras.training.forecast.choices import choices_of, fastest
from gbn_keras.training.forecast.probe import (
    probe,
    probe_settings,
    read_history,
)
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner, model_name
from gbn_keras.training.run.circumstances import circumstances
from gbn_keras.training.run.run_directory import (
    MODEL_FILE,
    open_run_directory,
    with_run_dir,
    write_whole,
)
from gbn_keras.training.run.tables import FORECAST, FORECAST_CHOICE, FORECAST_FACTS
from gbn_keras.training.settings import AROUND_A_TRAINING, Settings
from gbn_keras.training.trainer import load_data


def forecast(settings: Settings, data=None) -> pathlib.Path:
    """Forecasts updates, samples, hours and costs for each batch size.

    The gradient's noise comes from the trained run in the run directory, or else from a
    short probe. The speed of an update is measured on this device; several replicas are
    estimated from it (see `all_reduce`). Writes `plan.csv`, `plan.json` and `plan.cfg`,
    the flagfile of the fastest training, to the run directory.

    Args:
        settings: The user's settings.
        data: The data set. Default: the one that the settings name.

    Returns:
        The run directory.

    Raises:
        UsageError: If the settings contradict each other, the data or the directory.
        NotFinite: If the probe diverges.
    """
    _refuse(settings)
    data = data or load_data(settings)
    planner = Planner(data.examples, data=data.choice)
    settings = dataclasses.replace(settings, model=model_name(settings))
    settings = with_run_dir(settings)
    # The small batch's training has the regime and the ghosts.
    small = planner.plan(_alone(settings, batch_size=None, stretch="full"))
    settings = dataclasses.replace(
        settings,
        small_batch_size=small.settings.small_batch_size,
        virtual_batch_size=small.settings.virtual_batch_size,
    )
    sizes = _batch_sizes(settings, small)
    run_dir = pathlib.Path(settings.run_dir)
    with contextlib.ExitStack() as stack:
        if os.path.exists(run_dir / MODEL_FILE):
            source, history = "training", read_history(run_dir, small)
        else:
            source, short = "probe", probe_settings(settings, small)
            planner.plan(short)  # This reports mistakes before anything is written.
            stack.enter_context(open_run_directory(settings))
            history = probe(short, small, data)
        choices = _choices(settings, small, data, planner, history, sizes)
        _write(settings, small, history, choices, source)
    return run_dir


def _alone(settings, **changes):
    """The settings of one training with these changes."""
    return dataclasses.replace(
        settings,
        mode="train",
        batch_sizes=None,
        micro_batch_size=0,
        replicas=0,
        max_updates=0,
        probe_updates=None,
        **changes,
    )


def _refuse(settings):
    """Refuses settings with which no batch size but the small one could be planned."""
    if settings.strategy != "one":
        raise UsageError(
            f"--strategy: got {settings.strategy}, wanted one, because a plan is made "
            "on one device. Leave it out; --replicas is the number to plan for."
        )
    for name in ("link_gbytes", "cost_per_hour"):
        if not math.isfinite(value := getattr(settings, name) or 0):
            raise UsageError(
                f"--{name}: got {value}, wanted a finite number. Change it, or leave "
                "it out."
            )
    if settings.virtual_batch_size == 0:
        raise UsageError(
            "--virtual_batch_size: got 0, wanted at least 1, because a plan compares "
            "the gradients of micro-batches, which are made of ghosts. Leave it out."
        )
    if settings.gradient_noise not in ("none", "0", "0.0", 0):
        raise UsageError(
            f"--gradient_noise: got {settings.gradient_noise}, wanted none, because "
            "noise that is added on purpose has no place in a plan. Leave it out."
        )


def _batch_sizes(settings, small):
    """The batch sizes of the table, in increasing order, from the small one on."""
    least, most = small.settings.batch_size, small.examples
    try:
        sizes = [int(size) for size in settings.batch_sizes or ()]
    except ValueError:
        sizes = [0]
    for size in sizes:
        if not least <= size <= most:
            raise UsageError(
                f"--batch_sizes: got {','.join(map(str, settings.batch_sizes))}, "
                f"wanted numbers from the small batch, {least}, to the {most:,} "
                "training examples. Change them, or leave them out."
            )
    if not sizes:
        sizes = [least * 2**power for power in range((most // least).bit_length())]
    return sorted({least, *sizes})


def _replicas(settings):
    """The numbers of replicas to plan for: powers of two, and the largest."""
    most = max(1, settings.replicas)
    return sorted({*(2**power for power in range(most.bit_length())), most})


def _choices(settings, small, data, planner, history, sizes):
    """The choices, from the noise and the speed measured here."""

    def plan_of(size):
        ghost = min(size, settings.virtual_batch_size)
        return planner.plan(
            _alone(
                settings,
                batch_size=size,
                virtual_batch_size=ghost,
                stretch="full",
                noise_scale=True,  # As with `auto`.
            )
        )

    print("\nmeasuring the speed of updates", flush=True)
    replicas = _replicas(settings)
    measured = speed.measure(plan_of, data, sizes[0], sizes[-1])
    size = 0
    if replicas[-1] > 1:  # One replica sums nothing.
        size = all_reduce.bytes_of_update(build_model(small, data))
    summing = functools.partial(
        all_reduce.seconds_of_all_reduce,
        size=size,
        link=(settings.link_gbytes or all_reduce.LINK_GBYTES) * 1e9,
        latency=all_reduce.LATENCY_US * 1e-6,
    )
    return choices_of(
        history,
        sizes,
        replicas,
        settings.virtual_batch_size,
        measured.of,
        summing,
        settings.cost_per_hour or 0,
    )


def _write(settings, small, history, choices, source):
    run_dir = pathlib.Path(settings.run_dir)
    best, replicas = fastest(choices), _replicas(settings)
    rows = pd.DataFrame([choice.row(replicas) for choice in choices])
    write_whole(run_dir / FORECAST, rows.to_csv(index=False))
    facts = {
        "source": source,
        "small_batch_size": history.small_batch_size,
        "small_batch_updates": history.small_batch_updates,
        "critical_batch_size": history.critical_batch_size(small.examples),
        "examples": small.examples,
        "fastest": {"batch_size": best.batch_size, "replicas": best.replicas},
        "replicas": replicas[-1],
        "cost_per_hour": settings.cost_per_hour,
        **circumstances(small),
    }
    write_whole(run_dir / FORECAST_FACTS, json.dumps(facts, indent=2) + "\n")
    write_whole(run_dir / FORECAST_CHOICE, _flagfile(settings, best, run_dir))


def _flagfile(settings, best, run_dir):
    """The flagfile that trains the choice."""
    several = best.replicas > 1
    is_small = best.batch_size == settings.small_batch_size
    training = dataclasses.replace(
        _alone(
            settings,
            batch_size=best.batch_size,
            stretch="full" if is_small else "auto",
            eval_every=0,  # That of another stretch would not suit it.
        ),
        strategy="mirrored" if several else "one",
        replicas=best.replicas if several else 0,
    )
    hours = best.hours[best.replicas]
    flags = [
        line
        for line in training.flagfile().splitlines()
        if line.removeprefix("--").partition("=")[0] not in AROUND_A_TRAINING
    ]
    return (
        f"# The fastest choice of the plan in {run_dir}: about {best.updates:,}\n"
        f"# updates in {hours:.3g} hours.\n#\n"
        f"#   python train.py --flagfile={run_dir / FORECAST_CHOICE}\n#\n"
        + "".join(f"{flag}\n" for flag in flags)
    )
