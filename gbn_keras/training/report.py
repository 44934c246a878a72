"""Tables and pictures from run directories."""

import pathlib

import numpy as np
import pandas as pd

from gbn_keras.analysis.weight_distance import fit_distance
from gbn_keras.training import paper, pictures
from gbn_keras.training.run_directory import read_flags, read_result, write_whole
from gbn_keras.training.study import ARMS, arm_directory


def report_run(run_dir: pathlib.Path) -> pathlib.Path:
    """Draws the curves of one training; returns the picture's file."""
    distances = run_dir / "weight_distance.csv"
    if distances.exists():
        result = read_result(run_dir)
        runs = {f"batch {result['settings']['batch_size']}": _distances(run_dir)}
        pictures.save(pictures.weight_distance(runs), run_dir, "weight_distance.png")
    return pictures.save(
        pictures.training(pd.read_csv(run_dir / "metrics.csv")), run_dir, "training.png"
    )


def report_study(run_dir: pathlib.Path) -> str:
    """Writes a study's `study.csv` and picture; returns its table as text."""
    directories = _arm_directories(run_dir, ARMS)
    results = _results(directories)
    table = study_table(results)
    write_whole(run_dir / "study.csv", table.to_csv())
    settings = results["+RA"][0]["settings"]
    picture = pictures.study(_all_curves(directories), settings, paper.arms(settings))
    pictures.save(picture, run_dir, "study.png")
    return _as_text(table)


def report_sweep(run_dir: pathlib.Path) -> str:
    """Writes a sweep's `sweep.csv` and pictures; returns its table as text.

    The pictures are the paper's Figures 1 (error by epoch), 3 (error by update) and, if
    the distance of the weights was logged, 2.
    """
    sizes = read_flags(run_dir)["batch_sizes"].split(",")
    directories = _arm_directories(run_dir, [f"batch {size}" for size in sizes])
    results = _results(directories)
    table = study_table(results)
    settings = results[f"batch {sizes[0]}"][0]["settings"]
    curves, wanted = _all_curves(directories), paper.arms(settings)
    for name, picture in (
        ("error_by_epoch.png", pictures.error_by_epoch(curves, settings, wanted)),
        ("error_by_update.png", pictures.error_by_update(curves, settings, wanted)),
    ):
        pictures.save(picture, run_dir, name)
    if settings["weight_distance"]:
        distances = {arm: _distances(paths[0]) for arm, paths in directories.items()}
        table = table.join(_fits_table(distances))
        picture = pictures.weight_distance(distances)
        pictures.save(picture, run_dir, "weight_distance.png")
    write_whole(run_dir / "sweep.csv", table.to_csv())
    return _as_text(table)


def study_table(results: dict[str, list[dict]]) -> pd.DataFrame:
    """A row for each arm, from the results of its seeds.

    Accuracies are in percent; the deviation is the sample's, over the seeds. The
    paper's column is there if the paper has the network and the data set.
    """
    rows = {}
    for arm, runs in results.items():
        accuracy = 100 * pd.Series([run["accuracy"] for run in runs])
        settings = runs[0]["settings"]
        rows[arm] = {
            "batch_size": settings["batch_size"],
            "accuracy_mean": accuracy.mean(),
            "accuracy_deviation": accuracy.std(),
            "seeds": len(runs),
            "updates": runs[0]["updates"],
            "samples": runs[0]["samples"],
            "wall_seconds": sum(run["wall_seconds"] for run in runs) / len(runs),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
    # The last arm's settings are the study's.
    wanted = paper.arms(settings)
    if wanted and set(rows) == set(wanted):
        table["paper_accuracy"] = pd.Series(wanted)
    return table


def _arm_directories(run_dir, arms):
    """The run directories of each arm, one for each seed."""
    flags = read_flags(run_dir)
    first = int(flags["seed"])
    seeds = range(first, first + int(flags["seeds"]))
    return {arm: [arm_directory(run_dir, arm, s) for s in seeds] for arm in arms}


def _results(directories):
    return {
        arm: [read_result(path) for path in paths] for arm, paths in directories.items()
    }


def _all_curves(directories):
    """The metrics of each arm, all seeds in one table."""
    return {
        arm: pd.concat(pd.read_csv(path / "metrics.csv") for path in paths)
        for arm, paths in directories.items()
    }


def _distances(run_dir):
    """`(table, fits, high_rate_updates)` of one run's distance of the weights."""
    table = pd.read_csv(run_dir / "weight_distance.csv")
    high_rate = read_result(run_dir)["high_rate_updates"]
    phase = table[table["updates"] <= high_rate]
    fits = fit_distance(phase["updates"], phase["total"]) if len(phase) > 2 else ()
    return table, fits, high_rate


def _fits_table(distances):
    """By arm, how well a logarithm and a power law describe its distances."""
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


def _as_text(table):
    seeds = table["seeds"].iloc[0]
    accuracy = [
        f"{row.accuracy_mean:.2f}"
        + (f" ± {row.accuracy_deviation:.2f}" if seeds > 1 else "")
        for row in table.itertuples()
    ]
    text = pd.DataFrame(
        {
            "batch": table["batch_size"],
            f"accuracy %, {seeds} seed{'s' if seeds > 1 else ''}": accuracy,
            "updates": table["updates"].map("{:,}".format),
            "samples": table["samples"].map("{:,}".format),
            "seconds": table["wall_seconds"].map("{:.1f}".format),
        }
    )
    if "paper_accuracy" in table:
        text["paper %"] = table["paper_accuracy"].map("{:.2f}".format)
    if "log_r2" in table:
        text["distance"] = [
            f"{row.log_a:.3g} + {row.log_b:.3g} log t (R² {row.log_r2:.3f}), "
            f"{row.power_a:.3g} t^{row.power_b:.3g} (R² {row.power_r2:.3f})"
            if np.isfinite(row.log_r2)
            else "too few updates"
            for row in table.itertuples()
        ]
    return text.rename_axis(None).to_string()
