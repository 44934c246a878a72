"""Tables and pictures from run directories."""

import pathlib

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gbn_keras.training.run_directory import read_flags, read_result, write_whole
from gbn_keras.training.study import ARMS, arm_directory

# The paper's Table 1: validation accuracy (%) of each arm by network and data set.
_PAPER = {
    ("f1", "mnist"): (98.27, 97.05, 97.55, 97.60, 98.53),
}

# Told apart in grey too, by marker and dashes.
_ARM_STYLES = {
    "SB": {"color": "black", "marker": "o", "linestyle": "-"},
    "LB": {"color": "tab:red", "marker": "x", "linestyle": ":"},
    "+LR": {"color": "tab:orange", "marker": "^", "linestyle": "-."},
    "+GBN": {"color": "tab:green", "marker": "s", "linestyle": "--"},
    "+RA": {"color": "tab:blue", "marker": "D", "linestyle": "-"},
}


def report_run(run_dir: pathlib.Path) -> pathlib.Path:
    """Draws the curves of one training; returns the picture's file."""
    metrics = pd.read_csv(run_dir / "metrics.csv")
    evaluated = metrics.dropna(subset=["val_accuracy"])
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for axes, name, factor, unit in (
        (accuracy, "accuracy", 100, " (%)"),
        (loss, "loss", 1, " (nats)"),
    ):
        axes.plot(metrics["updates"], factor * metrics[name], "--", label="training")
        axes.plot(
            evaluated["updates"],
            factor * evaluated[f"val_{name}"],
            "o-",
            markersize=3,
            label="validation",
        )
        axes.set(xlabel="updates", ylabel=f"{name}{unit}")
        axes.grid(alpha=0.3)
        axes.legend()
    return _save(figure, run_dir, "training.png")


def report_study(run_dir: pathlib.Path) -> str:
    """Writes a study's `study.csv` and picture; returns its table as text."""
    directories = _arm_directories(run_dir)
    results = {
        arm: [read_result(path) for path in paths] for arm, paths in directories.items()
    }
    table = study_table(results)
    write_whole(run_dir / "study.csv", table.to_csv())
    _plot_study(run_dir, directories, results["+RA"][0]["settings"])
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
        paper = _PAPER.get((settings["model"], settings["dataset"]))
        if paper:
            rows[arm]["paper_accuracy"] = paper[ARMS.index(arm)]
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def _arm_directories(run_dir):
    """The run directories of each arm, one for each seed."""
    flags = read_flags(run_dir)
    first = int(flags["seed"])
    seeds = range(first, first + int(flags["seeds"]))
    return {arm: [arm_directory(run_dir, arm, s) for s in seeds] for arm in ARMS}


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
    return text.rename_axis(None).to_string()


def _plot_study(run_dir, directories, settings):
    """Validation accuracy of all arms, by epoch and by update."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for arm, paths in directories.items():
        curves = pd.concat(pd.read_csv(path / "metrics.csv") for path in paths)
        curves = curves.dropna(subset=["val_accuracy"])
        curves["epochs"] = curves["epoch"] + 1
        for axes, x in zip(panels, ("epochs", "updates"), strict=True):
            accuracy = 100 * curves.groupby(x)["val_accuracy"].agg(
                ["mean", "min", "max"]
            )
            style = _ARM_STYLES[arm]
            axes.plot(
                accuracy.index, accuracy["mean"], **style, markersize=4, label=arm
            )
            axes.fill_between(
                accuracy.index,
                accuracy["min"],
                accuracy["max"],
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
            axes.set(xlabel=x, xscale="log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("validation accuracy (%), mean and range over seeds")
    panels[1].legend(loc="lower right")
    figure.suptitle(
        f"{settings['model']} on {settings['dataset']}: small batch "
        f"{settings['small_batch_size']}, large batch {settings['batch_size']}"
    )
    return _save(figure, run_dir, "study.png")


def _save(figure, run_dir, name):
    file = run_dir / "plots" / name
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=150)
    return file
