"""`Summary`: the contents of any run directory, finished or not, for a reader."""

import dataclasses
import math
import pathlib
from typing import NamedTuple

from matplotlib.figure import Figure

from gbn_keras.training.errors import UsageError
from gbn_keras.training.report import (
    auto_stretch,
    comparison,
    forecast_report,
    landscape_report,
    paper,
    pictures,
)
from gbn_keras.training.report.columns import without_gaps
from gbn_keras.training.report.comparison import Rows
from gbn_keras.training.report.environment import environment
from gbn_keras.training.run.run_directory import (
    FLAGFILE,
    LANDSCAPE,
    PLAN,
    read_flags,
    read_outcome,
)
from gbn_keras.training.run.tables import FORECAST_FACTS

_CAPTIONS = {
    "training.png": "Accuracy and loss by update.",
    "study.png": "Validation accuracy of the arms by epoch and by update: the mean "
    "over the seeds, and their range as a band.",
    "error_by_epoch.png": "Training and validation error of each batch size by epoch.",
    "error_by_update.png": "Validation error of each batch size by update.",
    "weight_distance.png": "Distance of the weights from their initial values by "
    "update, with a logarithm and a power law fitted to it.",
    "tune.png": "Validation accuracy of the trials by each searched flag. Crosses "
    "are diverged trials.",
    "landscape.png": "How much the loss changes with the distance from the weights.",
    "plan.png": "Samples and hours that a training is forecast to need, by batch size.",
}
_ARMS = (
    "SB: the small batch. LB: the large batch, same epochs, same rate. +LR: also the "
    "scaled rate. +GBN: also ghost batches. +RA: also the stretched regime."
)
# The arms that the headline of a study names.
_COMPARED = {
    "+RA": "all techniques",
    "SB": "the small batch",
    "LB": "the large batch and nothing else",
}


class Table(NamedTuple):
    """A table to show, with its caption, a note and a head for the rows' names."""

    caption: str
    rows: Rows
    note: str = ""
    corner: str = ""


@dataclasses.dataclass(kw_only=True)
class Summary:
    """What a reader wants to know about a run, study, sweep, search or landscape.

    Attributes:
        run_dir: Run directory.
        title: Network, data set, and kind of run.
        flags: Text of the flagfile that repeats it.
        unfinished: Progress so far; empty if it is finished.
        headlines: Result in sentences.
        plan: Lines of the plan for each arm; those of a single training have an empty
            name.
        tables: Numbers behind the headlines.
        pictures: Pictures by caption.
        environment: All values of commit, versions, hardware and time, by name.
    """

    run_dir: pathlib.Path
    title: str
    flags: str
    unfinished: str = ""
    headlines: list[str] = dataclasses.field(default_factory=list)
    plan: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    environment: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def summarize(run_dir: pathlib.Path) -> Summary:
    """Reads a run directory.

    Raises:
        UsageError: If the folder is not a run directory.
    """
    if not (run_dir / FLAGFILE).is_file():
        received = f"a folder without {FLAGFILE}" if run_dir.is_dir() else "no folder"
        raise UsageError(
            f"{run_dir}: got {received}, wanted the run directory of a training, "
            "study, sweep, search, plan or landscape. Name the folder of its --run_dir."
        )
    flags = read_flags(run_dir)
    kinds = {
        "train": ("a training", _add_training),
        "study": ("the paper's five arms", _add_comparison),
        "sweep": ("a sweep of batch sizes", _add_comparison),
        "tune": ("a search", _add_search),
        "landscape": ("the loss around its weights", _add_landscape),
        "plan": ("a plan", _add_forecast),
    }
    if flags.get("mode") not in kinds:
        raise UsageError(
            f"{run_dir / FLAGFILE}: got --mode={flags.get('mode')}, wanted one of "
            f"{', '.join(kinds)}. Name a folder that train.py wrote."
        )
    kind, add = kinds[flags["mode"]]
    summary = Summary(
        run_dir=run_dir,
        title=f"{flags['model']} on {flags['dataset']}: {kind}",
        flags=(run_dir / FLAGFILE).read_text(encoding="utf-8"),
    )
    add(summary)
    if add is _add_training and (run_dir / LANDSCAPE).exists():
        _add_landscape(summary)
    if add is _add_training and (run_dir / FORECAST_FACTS).exists():
        _add_forecast(summary)
    return summary


def _add_training(summary):
    run_dir = summary.run_dir
    result, metrics = read_outcome(run_dir), comparison.read_metrics(run_dir)
    summary.plan = _plans({"": run_dir})
    if metrics is not None:
        _add_pictures(summary, {"training.png": pictures.training(metrics)})
    if result is None:
        summary.unfinished = _so_far(metrics)
        return
    if "diverged" in result:
        summary.unfinished = f"{result['reason']}."
        summary.environment = environment([result])
        return
    settings = result["settings"]
    summary.headlines = [
        f"Validation accuracy {100 * result['accuracy']:.2f} %, loss "
        f"{result['loss']:.4g} after {result['updates']:,} updates and "
        f"{result['samples']:,} samples."
    ]
    if "stretch" in result:
        summary.headlines.append(auto_stretch.found(result))
        summary.pictures |= auto_stretch.pictures(metrics)
    if "noise_scale" in result:
        summary.headlines.append(result["noise_scale"]["advice"])
    table = comparison.study_table({"this training": [result]})
    summary.tables = [
        Table("Accuracy and cost", comparison.as_shown(table)),
        *_of_the_paper(settings),
    ]
    if settings["weight_distance"]:
        distance = comparison.weight_distance(run_dir)
        picture = pictures.weight_distance(
            {f"batch {settings['batch_size']}": distance}
        )
        _add_pictures(summary, {"weight_distance.png": picture})
    summary.environment = environment([result])


def _add_comparison(summary):
    arms = comparison.read_comparison(summary.run_dir)
    summary.plan = _plans({arm: paths[0] for arm, paths in arms.directories.items()})
    _add_pictures(summary, arms.pictures())
    results = [result for runs in arms.results.values() for result in runs]
    wanted = sum(map(len, arms.directories.values()))
    if len(results) < wanted:
        summary.unfinished = f"{len(results)} of {wanted} trainings are finished."
    if not results:
        return
    table = arms.table()
    shown = comparison.as_shown(table)
    diverged = [arm for arm, row in table.items() if math.isnan(row["accuracy_mean"])]
    has_difference = any("difference" in row for row in shown.values())
    if arms.is_sweep:
        summary.tables = [Table("The batch sizes", shown)]
        names = {arm: arm for arm in table}
    else:
        note = _ARMS
        if has_difference:
            note += " Difference: ours minus the paper's, in percentage points."
        summary.tables = [Table("The five arms", shown, note)]
        names = _COMPARED
    if not has_difference:
        summary.tables += _of_the_paper(arms.settings)
    means = [
        f"{comparison.accuracy_shown(table[arm])} % with {name}"
        for arm, name in names.items()
        if arm in table and arm not in diverged
    ]
    if means:
        summary.headlines = [f"Validation accuracy: {', '.join(means)}."]
    if diverged:
        summary.headlines.append(f"All trainings diverged with: {', '.join(diverged)}.")
    summary.environment = environment(results)


def _add_search(summary):
    # This imports pandas, which takes half a second, and only a search needs it.
    from gbn_keras.training.report import search_report

    run_dir = summary.run_dir
    trials = search_report.read_trials(run_dir)
    summary.plan = _plans({"": run_dir})
    if not (run_dir / search_report.TRIALS).exists():
        summary.unfinished = f"{len(trials)} trials are finished so far."
    if trials.empty:
        return
    best = trials.iloc[0]
    shown = search_report.as_shown(trials)
    has_best = not math.isnan(best["accuracy"])
    summary.headlines = [
        f"Best of {len(trials)} trials: validation accuracy {best['accuracy']:.2f} % "
        f"after {best['updates']:,} updates and {best['samples']:,} samples."
        if has_best
        else f"All {len(trials)} trials diverged."
    ]
    which = f"The best {len(shown)} of " if len(shown) < len(trials) else ""
    caption = f"{which}{len(trials)} trials, the best one first"
    summary.tables = [Table(caption, shown.to_dict("index"), corner="trial")]
    picture = search_report.search_picture(run_dir, trials)
    _add_pictures(summary, {"tune.png": picture})
    folders = [
        search_report.trial_directory(run_dir, row) for _, row in trials.iterrows()
    ]
    if has_best:
        summary.plan |= _plans({"the best trial": folders[0]})
    summary.environment = environment(map(read_outcome, folders))


def _add_landscape(summary):
    if not (summary.run_dir / LANDSCAPE).exists():
        summary.unfinished = "nothing has been measured yet."
        return
    headline, rows, note, picture = landscape_report.read(summary.run_dir)
    summary.headlines.append(headline)
    summary.tables.append(Table("Roughness of the loss", rows, note))
    _add_pictures(summary, {"landscape.png": picture})


def _add_forecast(summary):
    if not (summary.run_dir / FORECAST_FACTS).exists():
        summary.unfinished = "the probe has not ended."
        return
    facts, table = forecast_report.read(summary.run_dir)
    summary.headlines += forecast_report.sentences(facts, table)
    rows, note = forecast_report.as_shown(facts, table), forecast_report.note(facts)
    summary.tables.append(Table("Forecast by batch size", rows, note, "batch"))
    _add_pictures(summary, {"plan.png": forecast_report.picture(facts, table)})


def _add_pictures(summary, drawn):
    summary.pictures |= {_CAPTIONS[name]: figure for name, figure in drawn.items()}


def _plans(folders):
    """The lines of each training's plan, if it has started."""
    return {
        name: (folder / PLAN).read_text(encoding="utf-8").splitlines()
        for name, folder in folders.items()
        if (folder / PLAN).exists()
    }


def _so_far(metrics):
    if metrics is None:
        return "its first epoch has not ended."
    accuracy = without_gaps(metrics, "val_accuracy")["val_accuracy"][-1]
    return (
        f"{metrics['updates'].max():,.0f} updates so far, validation accuracy "
        f"{100 * accuracy:.2f} % at the last evaluation."
    )


def _of_the_paper(settings):
    """The paper's accuracy for the network and the data set, if it has them."""
    if not (wanted := paper.arms(settings)):
        return []
    rows = {"accuracy %": {arm: f"{percent:.2f}" for arm, percent in wanted.items()}}
    return [Table("The paper's training of this network", rows, _ARMS)]
