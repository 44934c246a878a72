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
from gbn_keras.training.report.comparison import read_comparison
from gbn_keras.training.run.run_directory import (
    FLAGFILE,
    read_flags,
    read_outcome,
    refuse_other_flags,
)
from gbn_keras.training.settings import FREE_TO_CHANGE, Settings

ROOT = pathlib.Path(__file__).parent.parent

# For a planner. How many there are changes no flag, but a batch must fit.
_MANY_EXAMPLES = 1_000_000
_MODES = ("train", "study", "sweep")

EXPERIMENTS = tuple(
    script.EXPERIMENT
    for script in (table1, stretch_curve, as_published, ghost_size, where_it_turns)
)


def collect(folders: list[pathlib.Path], commit: str) -> list[dict]:
    """A row for each training in these folders that has ended.

    Args:
        folders: Run directories of trainings, studies or sweeps, or folders of
            an experiment's task; finished or not.
        commit: The commit of trainings that do not know their own, as those of earlier
            versions.

    Raises:
        UsageError: If a folder is none of these, has no training that has ended, or
            has the same arm and seed as another one.
    """
    rows = []
    for folder in folders:
        command, arms = _read(folder)
        if not any(arms.values()):
            raise UsageError(
                f"{folder}: got no training that has ended, wanted one at least. "
                "Collect it later."
            )
        for arm, outcomes in arms.items():
            rows += [result_files.record(one, arm, command, commit) for one in outcomes]
    trainings = [(row["arm"], row["seed"]) for row in rows]
    for arm, seed in trainings:
        if trainings.count((arm, seed)) > 1:
            raise UsageError(
                f"got seed {seed} of {arm} twice, wanted each training once. Collect "
                "the folders with a --name each."
            )
    return rows


def _read(folder):
    """The command of a folder, and the outcomes of each arm."""
    if not (folder / FLAGFILE).is_file():
        return _read_experiment(folder)
    mode = read_flags(folder)["mode"]
    if mode not in _MODES:
        raise UsageError(
            f"{folder}: got --mode={mode}, wanted one of {', '.join(_MODES)}. Leave it "
            "out."
        )
    command = command_of(folder)
    if mode == "train":
        result = read_outcome(folder)
        arm = command.removeprefix("python train.py").strip() or "no flags"
        return command, {arm: [result] * bool(result)}
    return command, read_comparison(folder).results


def _read_experiment(folder):
    command, experiment, task = _experiment_of(folder)
    arms = {}
    for arm in experiment.arms(task):
        found = [
            x.parent for x in arm_directory(folder, arm).glob(f"seed_*/{FLAGFILE}")
        ]
        for run_dir in found:
            own = experiment.flags(task, arm, int(read_flags(run_dir)["seed"]))
            refuse_other_flags(run_dir, resolved(own))
        outcomes = [one for x in found if (one := read_outcome(x))]
        if outcomes:
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
    if flags["mode"] == "train":
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
        UsageError: If the program refuses the flags, or trains nothing with them.
    """
    settings = _parsed(flags)
    planner = Planner(settings.train_examples or _MANY_EXAMPLES)
    if settings.mode == "study":
        return study.prepare_study(settings, planner)[0]
    if settings.mode == "sweep":
        return study.prepare_sweep(settings, planner)[0]
    if settings.mode == "train":
        return planner.plan(settings).settings
    raise UsageError(f"--mode: got {settings.mode}, wanted one of {', '.join(_MODES)}.")


def _parsed(flags):
    settings = settings_without_data(flags)
    return dataclasses.replace(settings, run_dir=settings.run_dir or "runs/any")
