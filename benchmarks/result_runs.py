"""Reads run directories of any kind, and finds the command that repeats each."""

import dataclasses
import pathlib

import as_published
import ghost_size
import result_files
import stretch_curve
import table1
import where_it_turns
from experiment import COMMAND, Experiment, arm_directory, settings_without_data

from gbn_keras.training import study
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.report.comparison import (
    WEIGHT_DISTANCE,
    fit_cells,
    read_comparison,
    weight_distance,
)
from gbn_keras.training.run.run_directory import (
    FLAGFILE,
    read_flags,
    read_landscape,
    read_outcome,
    refuse_other_flags,
)
from gbn_keras.training.settings import FREE_TO_CHANGE, Settings

ROOT = pathlib.Path(__file__).parent.parent

# For a planner. How many there are changes no flag, but a batch must fit.
_MANY_EXAMPLES = 1_000_000
_MODES = ("train", "study", "sweep", "landscape")

EXPERIMENTS = tuple(
    script.EXPERIMENT
    for script in (table1, stretch_curve, as_published, ghost_size, where_it_turns)
)


def collect(folders: list[pathlib.Path], commit: str) -> list[dict]:
    """A row for each training in these folders that has ended.

    Of a landscape, it is a row for each range of distances.

    Args:
        folders: Run directories of trainings, studies, sweeps or landscapes, or folders
            of an experiment's task; finished or not.
        commit: The commit of trainings and landscapes that do not know their own, as
            those of earlier versions.

    Raises:
        UsageError: If a folder is none of these, has nothing that has ended, has the
            same arm and seed as another one, or if some are landscapes and some not.
    """
    rows = []
    for folder in folders:
        found = _rows(folder, commit)
        if not found:
            raise UsageError(
                f"{folder}: got no training that has ended, wanted one at least. "
                "Collect it later."
            )
        rows += found
    if len({is_landscape(row) for row in rows}) > 1:
        raise UsageError(
            "got a landscape and a training, wanted one kind. Collect the folders with "
            "a --name each."
        )
    trainings = [(row["arm"], row["seed"]) for row in rows]
    for arm, seed in trainings:
        if trainings.count((arm, seed)) > 1:
            raise UsageError(
                f"got seed {seed} of {arm} twice, wanted each training once. Collect "
                "the folders with a --name each."
            )
    return rows


def is_landscape(row: dict) -> bool:
    """Whether a row is that of a landscape, and not of a training."""
    return row["alpha"] is not None


def _rows(folder, commit):
    """The rows of a folder."""
    if not (folder / FLAGFILE).is_file():
        command, arms = _read_experiment(folder)
    elif (flags := read_flags(folder))["mode"] == "landscape":
        if not (measured := read_landscape(folder)):
            return []
        command = command_of(folder)
        return result_files.landscape_records(measured, flags, command, commit)
    else:
        command, arms = _read_program(folder, flags["mode"])
    return [
        result_files.record(one, arm, command, commit)
        for arm, outcomes in arms.items()
        for one in outcomes
    ]


def _read_program(folder, mode):
    """The command of a run directory, and the outcomes of each arm."""
    if mode not in _MODES:
        raise UsageError(
            f"{folder}: got --mode={mode}, wanted one of {', '.join(_MODES)}. Leave it "
            "out."
        )
    command = command_of(folder)
    if mode == "train":
        arm = command.removeprefix("python train.py").strip() or "no flags"
        return command, {arm: _outcomes([folder])}
    directories = read_comparison(folder).directories
    return command, {arm: _outcomes(own) for arm, own in directories.items()}


def _outcomes(run_dirs):
    """How those of these trainings ended that have, with the fits of their distance."""
    outcomes = []
    for run_dir in run_dirs:
        if outcome := read_outcome(run_dir):
            if "diverged" not in outcome and (run_dir / WEIGHT_DISTANCE).exists():
                outcome |= fit_cells(weight_distance(run_dir)[1])
            outcomes.append(outcome)
    return outcomes


def _read_experiment(folder):
    """The command of an experiment's folder, and the outcomes of each arm."""
    command, experiment, task = _experiment_of(folder)
    arms = {}
    for arm in experiment.arms(task):
        found = [
            x.parent for x in arm_directory(folder, arm).glob(f"seed_*/{FLAGFILE}")
        ]
        for run_dir in found:
            own = experiment.flags(task, arm, int(read_flags(run_dir)["seed"]))
            refuse_other_flags(run_dir, resolved(own))
        if outcomes := _outcomes(found):
            arms[arm] = sorted(outcomes, key=lambda one: one["seed"])
    return command, arms


def _experiment_of(folder) -> tuple[str, Experiment, str]:
    """The command that a folder is of, its experiment and its task."""
    file = folder / COMMAND
    # Earlier versions of stretch_curve.py left no file.
    default = stretch_curve.EXPERIMENT.command(folder.resolve().name)
    command = file.read_text(encoding="utf-8").strip() if file.is_file() else default
    for experiment in EXPERIMENTS:
        for task in experiment.tasks:
            if command in experiment.commands(task) and folder.is_dir():
                return command, experiment, task
    raise UsageError(
        f"{folder}: got neither a run directory nor a folder with the {COMMAND} of an "
        f"experiment ({', '.join(one.script for one in EXPERIMENTS)}). Name one of "
        "them."
    )


def experiment_and_task(rows: list[dict]) -> tuple[Experiment, str] | None:
    """The experiment and the task that a group's rows come from, if they do."""
    for experiment in EXPERIMENTS:
        for task in experiment.tasks:
            if rows[0]["command"] in experiment.commands(task):
                return experiment, task
    return None


def experiment_of(rows: list[dict]) -> Experiment | None:
    """The experiment that a group's rows come from, if it is one."""
    found = experiment_and_task(rows)
    return found[0] if found else None


def command_of(run_dir: pathlib.Path) -> str:
    """The command that repeats a run, without its seed, its folders and its devices.

    It names a flagfile if one in `configs/` gives the run's flags, and otherwise all
    flags that are needed.
    """
    flags = read_flags(run_dir)
    for config in sorted(ROOT.glob("configs/**/*.cfg")):
        own = [f"--flagfile={config}"]
        if _gives(own, run_dir, flags["seed"]):
            named = f"--flagfile={config.relative_to(ROOT).as_posix()}"
            return " ".join(["python train.py", named, *_seeds(flags, own)])
    needed = [
        f"--{name}={value}"
        for name, value in flags.items()
        if name not in (*FREE_TO_CHANGE, "seed")
    ]
    for flag in tuple(needed):
        fewer = [other for other in needed if other != flag]
        if _gives(fewer, run_dir, flags["seed"]):
            needed = fewer
    return " ".join(["python train.py", *needed, *_seeds(flags, needed)])


def _seeds(flags, own):
    """The seeds of a study or a sweep, if its other flags have others."""
    if flags["mode"] in ("train", "landscape"):
        return []
    settings = _parsed(own)
    return [
        f"--{name}={flags[name]}"
        for name in ("seed", "seeds")
        if int(flags[name]) != getattr(settings, name)
    ]


def _gives(flags, run_dir, seed):
    """Whether these flags, with this seed, give the run in this folder."""
    try:
        refuse_other_flags(run_dir, resolved([*flags, f"--seed={seed}"]))
    except UsageError:
        return False
    return True


def resolved(flags: list[str]) -> Settings:
    """The settings that the program makes of these flags, with all values filled in.

    Raises:
        UsageError: If the program refuses the flags, or measures nothing with them.
    """
    settings = _parsed(flags)
    planner = Planner(settings.train_examples or _MANY_EXAMPLES)
    if settings.mode == "study":
        return study.prepare_study(settings, planner)[0]
    if settings.mode == "sweep":
        return study.prepare_sweep(settings, planner)[0]
    if settings.mode in ("train", "landscape"):
        return planner.plan(settings).settings
    raise UsageError(f"--mode: got {settings.mode}, wanted one of {', '.join(_MODES)}.")


def _parsed(flags):
    settings = settings_without_data(flags)
    return dataclasses.replace(settings, run_dir=settings.run_dir or "runs/any")
