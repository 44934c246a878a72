"""`Comparison`: the outcomes of a study or a sweep."""

import dataclasses
import math
import pathlib

import numpy as np
from matplotlib.figure import Figure

from gbn_keras.analysis.fits import Fit, fit_distance
from gbn_keras.training.report import paper, pictures
from gbn_keras.training.report.columns import Columns, concatenate, read_columns
from gbn_keras.training.run.run_directory import (
    METRICS,
    read_flags,
    read_outcome,
    read_result,
)
from gbn_keras.training.run.tables import ARMS, arm_directory

# Distance of the weights by update, in a run directory: see `WeightDistance`.
WEIGHT_DISTANCE = "weight_distance.csv"

# A table: for each row, its cells by column. All rows have the same columns.
Rows = dict[str, dict[str, object]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The trainings of a study or a sweep, as far as they are finished.

    Attributes:
        settings: Network, data set and batch sizes, as in the flagfile.
        directories: For each arm, the run directories of its trainings, one for each
            seed. They may not exist yet.
        results: For each arm that has any, the outcomes of its trainings that have
            ended, finished or diverged: see `read_outcome`.
        curves: For each arm that has any, one table with the metrics of its finished
            trainings; if none is finished, of those that have started.
        distances: For each arm, the distance of the weights in its first finished
            training, if it was logged: see `weight_distance`.
    """

    settings: dict
    directories: dict[str, list[pathlib.Path]]
    results: dict[str, list[dict]]
    curves: dict[str, Columns]
    distances: dict[str, tuple]

    @property
    def is_sweep(self) -> bool:
        """Whether the arms are batch sizes instead of the paper's arms."""
        return tuple(self.directories) != ARMS

    def table(self) -> Rows:
        """A row for each arm, as in `study_table`, with the fits of the distances."""
        return _with_fits(study_table(self.results), self.distances)

    def pictures(self) -> dict[str, Figure]:
        """The pictures, by the names of their files."""
        if not self.curves:
            return {}
        shown = self.curves, self.settings, paper.arms(self.settings)
        if not self.is_sweep:
            return {"study.png": pictures.study(*shown)}
        drawn = {
            "error_by_epoch.png": pictures.error_by_epoch(*shown),
            "error_by_update.png": pictures.error_by_update(*shown),
        }
        if self.distances:
            drawn["weight_distance.png"] = pictures.weight_distance(self.distances)
        return drawn


def read_comparison(run_dir: pathlib.Path) -> Comparison:
    """Reads the run directory of a study or a sweep."""
    flags = read_flags(run_dir)
    arms = ARMS
    settings = {name: flags.get(name) for name in ("model", "dataset")}
    sizes = ("batch_size", "small_batch_size", "train_examples")
    settings |= {name: int(flags[name]) for name in sizes if name in flags}
    if flags["mode"] == "sweep":
        arms = [f"batch {size}" for size in flags["batch_sizes"].split(",")]
        settings["batch_size"] = int(flags["batch_sizes"].split(",")[0])
    first = int(flags["seed"])
    seeds = range(first, first + int(flags["seeds"]))
    directories = {arm: [arm_directory(run_dir, arm, s) for s in seeds] for arm in arms}
    finished = {
        arm: [path for path in paths if read_result(path)]
        for arm, paths in directories.items()
    }
    curves = {
        arm: [
            metrics
            for path in finished[arm] or paths
            if (metrics := read_metrics(path)) is not None
        ]
        for arm, paths in directories.items()
    }
    return Comparison(
        settings,
        directories,
        {
            arm: outcomes
            for arm, paths in directories.items()
            if (outcomes := [one for path in paths if (one := read_outcome(path))])
        },
        {arm: concatenate(metrics) for arm, metrics in curves.items() if metrics},
        {
            arm: weight_distance(paths[0])
            for arm, paths in finished.items()
            if paths and (paths[0] / WEIGHT_DISTANCE).exists()
        },
    )


def read_metrics(run_dir: pathlib.Path) -> Columns | None:
    """A row for each epoch of a training; `None` if none has ended yet."""
    file = run_dir / METRICS
    if not file.exists() or not file.stat().st_size:
        return None
    # When a training starts, the file has only the names of the columns.
    metrics = read_columns(file)
    return metrics if len(metrics["epoch"]) else None


def study_table(results: dict[str, list[dict]]) -> Rows:
    """A row for each arm, from the results of its seeds.

    Accuracies are in percent. The deviation is the sample deviation over the seeds. The
    paper's column exists if the paper has the network and the data set. If trainings
    diverged, there are two more columns: `diverged`, the number of seeds that did, and
    `diverged_at`, the earliest update at which one did, or `None`. The other columns
    but `seeds` describe the trainings that did not diverge, if there are any.
    """
    rows = {}
    for arm, outcomes in results.items():
        diverged = [one["diverged"] for one in outcomes if "diverged" in one]
        runs = [one for one in outcomes if "diverged" not in one] or outcomes
        accuracy = [100 * run.get("accuracy", math.nan) for run in runs]
        settings = runs[0]["settings"]
        rows[arm] = {
            "batch_size": settings["batch_size"],
            "accuracy_mean": sum(accuracy) / len(runs),
            "accuracy_deviation": np.std(accuracy, ddof=1) if runs[1:] else math.nan,
            "seeds": len(outcomes),
            # With --stretch=auto, each seed finds its own number.
            "updates": round(sum(run["updates"] for run in runs) / len(runs)),
            "samples": round(sum(run["samples"] for run in runs) / len(runs)),
            "wall_seconds": sum(run["wall_seconds"] for run in runs) / len(runs),
            "diverged": len(diverged),
            "diverged_at": min(diverged, default=None),
        }
    if not any(row["diverged"] for row in rows.values()):
        for row in rows.values():
            del row["diverged"], row["diverged_at"]
    # The last arm's settings are the study's.
    wanted = paper.arms(settings)
    if set(rows) <= set(wanted):
        for arm, row in rows.items():
            row["paper_accuracy"] = wanted[arm]
    return rows


def as_shown(table: Rows) -> Rows:
    """A comparison's table for readers: with units, and rounded numbers."""
    seeds = {row["seeds"] for row in table.values()}
    one = min(seeds) if len(seeds) == 1 else None
    number = f", {one} seed{'s' * (one > 1)}" if one else ""
    # Whether only some seeds of an arm diverged, so that the others make its mean.
    in_part = any(
        row.get("diverged") and not math.isnan(row["accuracy_mean"])
        for row in table.values()
    )
    shown = {}
    for arm, row in table.items():
        cells = {
            "batch": f"{row['batch_size']:,}",
            f"accuracy %{number}": accuracy_shown(row),
        }
        if "paper_accuracy" in row:
            difference = row["accuracy_mean"] - row["paper_accuracy"]
            cells["paper %"] = f"{row['paper_accuracy']:.2f}"
            cells["difference"] = "" if math.isnan(difference) else f"{difference:+.2f}"
        if not number:
            cells["seeds"] = str(row["seeds"])
        if in_part:
            some = f"{row['diverged']} of {row['seeds']}"
            cells["diverged"] = some if row["diverged"] else ""
        cells["updates"] = f"{row['updates']:,}"
        cells["samples"] = f"{row['samples']:,}"
        cells["seconds"] = f"{row['wall_seconds']:,.1f}"
        if "log_r2" in row:
            cells["distance"] = _distance(row)
        shown[arm] = cells
    return shown


def accuracy_shown(row: dict) -> str:
    """An arm's accuracy as it is shown, or the update at which it diverged."""
    if math.isnan(row["accuracy_mean"]):
        return f"diverged at update {row['diverged_at']:,}"
    text = f"{row['accuracy_mean']:.2f}"
    if not math.isnan(row["accuracy_deviation"]):
        text += f" ± {row['accuracy_deviation']:.2f}"
    return text


def _distance(row):
    """The fits of an arm's distances as they are shown."""
    if not math.isfinite(row["log_r2"]):
        return "too few updates"
    return (
        f"{row['log_a']:.3g} + {row['log_b']:.3g} log t (R² {row['log_r2']:.3f}), "
        f"{row['power_a']:.3g} t^{row['power_b']:.3g} (R² {row['power_r2']:.3f})"
    )


def weight_distance(run_dir: pathlib.Path) -> tuple:
    """`(table, fits, high_rate_updates)` for a finished run's distance of the weights.

    The fits are over the phase of high rate. If it is too short, there are none.
    """
    table = read_columns(run_dir / WEIGHT_DISTANCE)
    high_rate = read_result(run_dir)["high_rate_updates"]
    updates, total = table["updates"], table["total"]
    phase = updates <= high_rate
    fits = fit_distance(updates[phase], total[phase]) if phase.sum() > 2 else ()
    return table, fits, high_rate


def fit_cells(fits: tuple[Fit, ...]) -> dict[str, float]:
    """The two fits of a distance as cells of a table, or no cells if there are none.

    They are `log_a`, `log_b`, `log_r2` and `log_residual`, for `a + b log t`, and the
    same with `power` for `a t^b`.

    Args:
        fits: From `weight_distance`.
    """
    return {
        f"{name}_{key}": value
        for name, fit in zip(("log", "power"), fits, strict=False)
        for key, value in (
            *(("a", fit.a), ("b", fit.b)),
            *(("r2", fit.r_squared), ("residual", fit.residual)),
        )
    }


def _with_fits(table, distances):
    """The table, with how well a logarithm and a power law fit the arms' distances."""
    fits = {arm: fit_cells(found) for arm, (_, found, _) in distances.items()}
    names = next((list(own) for own in fits.values() if own), [])
    missing = dict.fromkeys(names, math.nan)
    return {arm: row | missing | fits.get(arm, {}) for arm, row in table.items()}
