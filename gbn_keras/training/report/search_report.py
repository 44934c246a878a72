"""Reports on a search: its table, its picture and the flagfile of the best trial."""

import pathlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from gbn_keras.training.report import pictures
from gbn_keras.training.report.axes import panels_of, title_of
from gbn_keras.training.run.run_directory import (
    FLAGFILE,
    read_flags,
    read_outcome,
    write_whole,
)
from gbn_keras.training.run.tables import TRIALS, best_first, trial_row
from gbn_keras.training.settings import AROUND_A_TRAINING

BEST = "best.cfg"
PICTURE = "tune.png"

_SHOWN = 20
_MEASURED = (
    *("trial", "accuracy", "updates", "samples", "wall_seconds", "run_dir"),
    "diverged_at",
)


def report_search(run_dir: pathlib.Path) -> str:
    """Writes `best.cfg` and the picture of a search; returns its table as text.

    If all trials diverged, there is no best one and no `best.cfg`.
    """
    trials = read_trials(run_dir)
    if trials["accuracy"].notna().any():
        _write_best(run_dir, trials)
    pictures.save(search_picture(run_dir, trials), run_dir, PICTURE)
    return as_shown(trials).to_string()


def _write_best(run_dir, trials):
    best = trials.iloc[0]
    flags = read_flags(trial_directory(run_dir, best))
    flagfile = run_dir / BEST
    write_whole(
        flagfile,
        f"# The best of {len(trials)} trials in {run_dir}: validation accuracy\n"
        f"# {best['accuracy']:.2f} % after {best['updates']:,} updates and "
        f"{best['samples']:,} samples.\n#\n"
        f"#   python train.py --flagfile={flagfile}\n#\n"
        + "".join(
            f"--{name}={value}\n"
            for name, value in flags.items()
            if name not in AROUND_A_TRAINING
        ),
    )


def read_trials(run_dir: pathlib.Path) -> pd.DataFrame:
    """A row for each trial, the best one first, as in `tune.csv`.

    If the search is not finished, there is a row for each finished trial, which has the
    name of its folder.
    """
    file = run_dir / TRIALS
    if file.exists():
        return pd.read_csv(file)
    flags = (run_dir / FLAGFILE).read_text(encoding="utf-8").splitlines()
    searched = [
        flag.removeprefix("--search=").partition(":")[0]
        for flag in flags
        if flag.startswith("--search=")
    ]
    rows = [
        {"trial": path.name, **trial_row(outcome, searched, str(path))}
        for path in (run_dir / "trials").glob("*")
        if (outcome := read_outcome(path))
    ]
    columns = [*_MEASURED[:1], *searched, *_MEASURED[1:-1]]
    return best_first(pd.DataFrame(rows, columns=None if rows else columns))


def trial_directory(run_dir: pathlib.Path, trial: pd.Series) -> pathlib.Path:
    """The run directory of one trial, even if the search's folder was moved."""
    return run_dir / "trials" / pathlib.Path(trial["run_dir"]).name


def search_picture(run_dir: pathlib.Path, trials: pd.DataFrame) -> Figure:
    """Validation accuracy of a search's trials, by each searched flag.

    Diverged trials are crosses at the bottom.

    Args:
        run_dir: Run directory of the search.
        trials: Rows, one for each trial, the best one first. Diverged trials have no
            accuracy.
    """
    settings, searched = read_flags(run_dir), _searched(trials)
    columns = min(4, len(searched))
    rows = -(-len(searched) // columns)
    figure, panels = panels_of((3.5 * columns, 3 * rows + 0.5), rows, columns)
    accuracy, has_one = trials["accuracy"], trials["accuracy"].notna()
    shade = np.log10(trials["updates"][has_one])
    points = {"c": shade, "cmap": "Greys", "vmin": shade.min() - 0.5}
    for axes, name in zip(panels.flat, searched, strict=False):
        values = trials[name]
        if len(set(values)) <= 6:  # A list of values, shown at equal distances.
            tried = sorted(set(values))
            axes.set_xticks(range(len(tried)), tried)
            # Trials with the same value and the same accuracy are side by side.
            equal = trials.groupby([name, "accuracy"], dropna=False)[name]
            number = equal.transform("size")
            apart = np.minimum(0.08, 0.6 / number)
            place = apart * (equal.cumcount() - (number - 1) / 2)
            values = values.map(tried.index) + place
        elif values.min() > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(lambda *_: "")
        if has_one.any():
            shown = values[has_one], accuracy[has_one]
            axes.scatter(*shown, vmax=shade.max(), alpha=0.7, zorder=2, **points)
            best = values.iloc[0], accuracy.iloc[0]
            axes.plot(*best, "o", color="tab:red", fillstyle="none", markersize=12)
        at_bottom = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.scatter(
            *(values[~has_one], [0] * sum(~has_one)),
            **(at_bottom | {"marker": "x", "color": "tab:red", "zorder": 3}),
        )
        axes.set_xlabel(name)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(searched) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("validation accuracy (%)")
    title = f"{title_of(settings)}: {len(trials)} trials, the best one circled"
    if len(set(shade)) > 1:
        title += "; darker points made more updates"
    if not has_one.all():
        title += "; crosses diverged"
    figure.suptitle(title, fontsize="medium")
    return figure


def as_shown(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trials for readers: with units, and rounded numbers."""
    trials = trials.head(_SHOWN)
    accuracy = trials["accuracy"].map("{:.2f}".format)
    if "diverged_at" in trials:
        diverged = trials["accuracy"].isna()
        accuracy[diverged] = trials["diverged_at"][diverged].map(
            "diverged at update {:,.0f}".format
        )
    shown = pd.DataFrame({"accuracy %": accuracy})
    for name in ("updates", "samples"):
        shown[name] = trials[name].map("{:,}".format)
    shown["seconds"] = trials["wall_seconds"].map("{:.1f}".format)
    for name in _searched(trials):
        shown[name] = trials[name]
    return shown.set_index(trials["trial"])


def _searched(trials):
    return [name for name in trials.columns if name not in _MEASURED]
