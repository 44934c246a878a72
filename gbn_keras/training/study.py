"""`run_study`: compares the paper's five arms, or several batch sizes."""

import contextlib
import dataclasses
import os
import pathlib
import time

from gbn_keras.training.callbacks.progress import Pace, RunProgress, outcome_line
from gbn_keras.training.errors import NotFinite, UsageError
from gbn_keras.training.model.traced_models import TracedModels
from gbn_keras.training.planner import Planner, model_name
from gbn_keras.training.run.run_directory import (
    open_run_directory,
    read_outcome,
    with_run_dir,
)
from gbn_keras.training.run.tables import ARMS, arm_directory
from gbn_keras.training.settings import ResolvedSettings, Settings
from gbn_keras.training.strategy import chief_says, is_chief, strategy_of
from gbn_keras.training.trainer import load_data, train

# The settings that switch techniques off. Each arm adds one technique to the last.
_NO_RA = {"stretch": 1.0}
# Plain batch normalization is one micro-batch, without a small batch's second moment.
_NO_GBN = {"virtual_batch_size": 0, "second_moment": "batch", **_NO_RA}
_NO_LR = {"lr_scaling": "none", "warmup_updates": 0, "gradient_noise": 0.0, **_NO_GBN}


def study_arms(settings: ResolvedSettings) -> dict[str, Settings]:
    """The settings of the five arms, from resolved settings.

    `SB` trains with the small batch, `LB` with the large batch and the same epochs and
    rate. Each of the other arms adds one technique: `+LR` the scaled rate (and gradient
    noise, if the settings have it), `+GBN` ghosts, `+RA` the stretched regime.
    """
    small = {"batch_size": settings.small_batch_size, **_NO_LR}
    changes = (small, _NO_LR, _NO_GBN, _NO_RA, {})
    return {
        arm: dataclasses.replace(settings, mode="train", seeds=1, **change)
        for arm, change in zip(ARMS, changes, strict=True)
    }


def sweep_arms(settings: Settings) -> dict[str, Settings]:
    """The settings of one training for each of the batch sizes.

    Values that the settings leave open are derived from each batch size.
    """
    return {
        f"batch {size}": dataclasses.replace(
            settings, mode="train", seeds=1, batch_size=size, batch_sizes=None
        )
        for size in settings.batch_sizes
    }


def run_study(settings: Settings) -> pathlib.Path | None:
    """Trains every arm with every seed. In a sweep, each batch size is an arm.

    Trainings that are finished in the run directory are not repeated, so an interrupted
    study resumes, and you can add seeds. If a training diverges, the study records it
    and continues with the next one.

    Args:
        settings: For a study, the settings of the last arm; for a sweep, those that all
            batch sizes share. `seeds` is the number of seeds, counted up from `seed`.

    Returns:
        The study's directory, from which `report` makes the table and pictures. On a
        cluster, only the chief returns it; the others return `None`.

    Raises:
        UsageError: If the settings contradict each other, the data or the directory.
    """
    strategy = strategy_of(settings)
    is_first = is_chief(strategy)
    data = load_data(settings)
    planner = Planner.of(data, strategy)
    prepare = prepare_sweep if settings.mode == "sweep" else prepare_study
    settings, plans = prepare(settings, planner)
    run_dir = pathlib.Path(settings.run_dir)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    pace = Pace()
    with open_run_directory(settings) if is_first else contextlib.nullcontext():
        to_do = [
            (arm, seed, arm_dir)
            for seed in seeds
            for arm in plans
            if (arm_dir := arm_directory(run_dir, arm, seed))
            and not chief_says(strategy, bool(read_outcome(arm_dir)))
        ]
        models = TracedModels(strategy, data, [plans[arm] for arm, *_ in to_do])
        for number, (arm, seed, arm_dir) in enumerate(to_do, 1):
            if is_first:
                print(f"\n{arm}, seed {seed}", flush=True)
            arm_settings = dataclasses.replace(
                plans[arm].settings, run_dir=os.fspath(arm_dir), seed=seed
            )
            plan, began = plans[arm], time.monotonic()
            progress = RunProgress.of(plan)
            with contextlib.suppress(NotFinite), contextlib.closing(progress):
                callbacks = (progress,) if is_first else ()
                train(arm_settings, data, callbacks, verbose=0, models=models)
            if is_first:
                outcome = read_outcome(arm_dir)
                if "diverged" not in outcome:
                    seconds = time.monotonic() - began
                    pace.add(
                        plan, outcome["updates"], seconds, progress.seconds_per_update
                    )
                left = pace.left([plans[one] for one, *_ in to_do[number:]])
                print(f"{arm}, seed {seed}: {outcome_line(outcome)}{left}", flush=True)
    return run_dir if is_first else None


def prepare_study(settings, planner):
    """The resolved settings, and a plan for each of the five arms."""
    plan = planner.plan(settings)
    # If --eval_every is not set, each arm derives it from its own stretch.
    settings = dataclasses.replace(plan.settings, eval_every=settings.eval_every)
    if settings.batch_size <= settings.small_batch_size:
        raise UsageError(
            f"--batch_size: got {settings.batch_size}, wanted more than the small "
            f"batch of {settings.small_batch_size}, because a study compares a large "
            "batch with it. Raise it."
        )
    if settings.lr_scaling == "gain":
        raise UsageError(
            "--lr_scaling: got gain, wanted sqrt, linear, none or a factor, because "
            "only a study's last arm measures the gain, and the arms before it scale "
            "the rate, too. Leave it out."
        )
    if settings.virtual_batch_size == 0:
        raise UsageError(
            "--virtual_batch_size: got 0, wanted at least 1, because a study's last "
            "two arms use ghosts. Leave it out to use the small batch's size."
        )
    return settings, _plans(study_arms(settings), planner)


def prepare_sweep(settings, planner):
    """The settings with network and run directory, and a plan for each batch size."""
    texts = settings.batch_sizes or ()
    try:
        sizes = tuple(map(int, texts))
    except ValueError:
        sizes = ()
    if not sizes:
        raise UsageError(
            f"--batch_sizes: got {','.join(map(str, texts))!r}, wanted the batch sizes "
            "of a sweep. Set them, for example to 128,1024,4096."
        )
    settings = dataclasses.replace(
        settings, batch_sizes=sizes, model=model_name(settings)
    )
    settings = with_run_dir(settings)
    return settings, _plans(sweep_arms(settings), planner)


def _plans(arms, planner):
    """Plans all arms, so that errors are reported before the first training."""
    plans = {}
    for arm, settings in arms.items():
        try:
            plans[arm] = planner.plan(settings)
        except UsageError as error:
            raise UsageError(f"{error} This is the arm {arm}.") from error
    return plans
