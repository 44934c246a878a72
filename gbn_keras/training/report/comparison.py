"""`Comparison`: the outcomes of a study or a sweep."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gbn_keras.analysis.fits import fit_distance
from gbn_keras.training.report import paper, pictures
from gbn_keras.training.run.run_directory import (
    METRICS,
    read_flags,
    read_outcome,
    read_result,
)
from gbn_keras.training.run.tables import ARMS, arm_directory


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
    curves: dict[str, pd.DataFrame]
    distances: dict[str, tuple]

    @property
    def is_sweep(self) -> bool:
        """Whether the arms are batch sizes instead of the paper's arms."""
        return tuple(self.directories) != ARMS

    def table(self) -> pd.DataFrame:
        """A row for each arm, as in `study_table`, with the fits of the distances."""
        table = study_table(self.results)
        return table.join(_fits_table(self.distances)) if self.distances else table

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
        {arm: pd.concat(metrics) for arm, metrics in curves.items() if metrics},
        {
            arm: weight_distance(paths[0])
            for arm, paths in finished.items()
            if paths and (paths[0] / "weight_distance.csv").exists()
        },
    )


def read_metrics(run_dir: pathlib.Path) -> pd.DataFrame | None:
    """A row for each epoch of a training; `None` if none has ended yet."""
    file = run_dir / METRICS
    if not file.exists() or not file.stat().st_size:
        return None
    # When a training starts, the file has only the names of the columns.
    metrics = pd.read_csv(file)
    return None if metrics.empty else metrics


def study_table(results: dict[str, list[dict]]) -> pd.DataFrame:
    """A row for each arm, from the results of its seeds.

    Accuracies are in percent. The deviation is the sample deviation over the seeds. The
    paper's column exists if the paper has the network and the data set. If trainings
    diverged, there are two more columns: `diverged`, the number of seeds that did, and
    `diverged_at`, the earliest update at which one did. The other columns but `seeds`
    describe the trainings that did not diverge, if there are any.
    """
    rows = {}
    for arm, outcomes in results.items():
        diverged = [one["diverged"] for one in outcomes if "diverged" in one]
        runs = [one for one in outcomes if "diverged" not in one] or outcomes
        accuracy = 100 * pd.Series([run.get("accuracy", np.nan) for run in runs])
        settings = runs[0]["settings"]
        rows[arm] = {
            "batch_size": settings["batch_size"],
            "accuracy_mean": accuracy.mean(),
            "accuracy_deviation": accuracy.std(),
            "seeds": len(outcomes),
            # With --stretch=auto, each seed finds its own number.
            "updates": round(sum(run["updates"] for run in runs) / len(runs)),
            "samples": round(sum(run["samples"] for run in runs) / len(runs)),
            "wall_seconds": sum(run["wall_seconds"] for run in runs) / len(runs),
        }
        if diverged:
            rows[arm] |= {"diverged": len(diverged), "diverged_at": min(diverged)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
    if "diverged" in table:
        table["diverged"] = table["diverged"].fillna(0).astype(int)
        table["diverged_at"] = table["diverged_at"].astype("Int64")
    # The last arm's settings are the study's.
    wanted = paper.arms(settings)
    if set(rows) <= set(wanted):
        table["paper_accuracy"] = pd.Series(wanted)
    return table


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison's table for readers: with units, and rounded numbers."""
    seeds = sorted(set(table["seeds"]))
    number = f", {seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else ""
    shown = pd.DataFrame({"batch": table["batch_size"].map("{:,}".format)})
    shown[f"accuracy %{number}"] = list(map(_accuracy, table.itertuples()))
    if "paper_accuracy" in table:
        shown["paper %"] = table["paper_accuracy"].map("{:.2f}".format)
        difference = table["accuracy_mean"] - table["paper_accuracy"]
        difference = difference.map("{:+.2f}".format, na_action="ignore")
        shown["difference"] = difference.fillna("")
    if not number:
        shown["seeds"] = table["seeds"].map(str)
    if "diverged" in table and table["accuracy_mean"][table["diverged"] > 0].any():
        # Only some seeds of an arm diverged, and the others make its mean.
        shown["diverged"] = [
            f"{row.diverged} of {row.seeds}" if row.diverged else ""
            for row in table.itertuples()
        ]
    shown["updates"] = table["updates"].map("{:,}".format)
    shown["samples"] = table["samples"].map("{:,}".format)
    shown["seconds"] = table["wall_seconds"].map("{:,.1f}".format)
    if "log_r2" in table:
        shown["distance"] = [
            f"{row.log_a:.3g} + {row.log_b:.3g} log t (R² {row.log_r2:.3f}), "
            f"{row.power_a:.3g} t^{row.power_b:.3g} (R² {row.power_r2:.3f})"
            if np.isfinite(row.log_r2)
            else "too few updates"
            for row in table.itertuples()
        ]
    return shown.rename_axis(None)


def _accuracy(row):
    """An arm's accuracy as it is shown, or the update at which it diverged."""
    if np.isnan(row.accuracy_mean):
        return f"diverged at update {row.diverged_at:,}"
    text = f"{row.accuracy_mean:.2f}"
    if np.isfinite(row.accuracy_deviation):
        text += f" ± {row.accuracy_deviation:.2f}"
    return text


def weight_distance(run_dir: pathlib.Path) -> tuple:
    """`(table, fits, high_rate_updates)` for a finished run's distance of the weights.

    The fits are over the phase of high rate. If it is too short, there are none.
    """
    table = pd.read_csv(run_dir / "weight_distance.csv")
    high_rate = read_result(run_dir)["high_rate_updates"]
    phase = table[table["updates"] <= high_rate]
    fits = fit_distance(phase["updates"], phase["total"]) if len(phase) > 2 else ()
    return table, fits, high_rate


def _fits_table(distances):
    """For each arm, how well a logarithm and a power law fit its distances."""
    rows = {}
    for arm, (_, fits, _) in distances.items():
        rows[arm] = {}
        for name, fit in zip(("log", "power"), fits, strict=False):
            rows[arm] |= {
                f"{name}_a": fit.a,
                f"{name}_b": fit.b,
                f"{name}_r2": fit.r_squared,
                f"{name}_residual": fit.residual,
            }
    return pd.DataFrame.from_dict(rows, orient="index")
