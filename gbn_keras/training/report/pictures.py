"""The pictures of `report`: the paper's Figures 1, 2 and 3, studies and landscapes.

Markers, dashes and lightness also distinguish the lines without color.
"""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from gbn_keras.training.report.axes import (
    logarithmic,
    mark_paper,
    panels_of,
    percents,
    style_of,
    title_of,
)
from gbn_keras.training.report.columns import Columns, without_gaps
from gbn_keras.whole_file import whole_file

_ARM_STYLES = {
    "SB": {"color": "black", "marker": "o", "linestyle": "-"},
    "LB": {"color": "tab:red", "marker": "x", "linestyle": ":"},
    "+LR": {"color": "tab:orange", "marker": "^", "linestyle": "-."},
    "+GBN": {"color": "tab:green", "marker": "s", "linestyle": "--"},
    "+RA": {"color": "tab:blue", "marker": "D", "linestyle": "-"},
}


def training(metrics: Columns) -> Figure:
    """Accuracy and loss of one training, by update."""
    evaluated = without_gaps(metrics, "val_accuracy")
    figure, [[accuracy, loss]] = panels_of(
        (10, 4), 1, 2, titles=0, sharey=False, beside=0.7
    )
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
    return figure


def study(
    curves: dict[str, Columns], settings: dict, paper: dict[str, float]
) -> Figure:
    """Validation accuracy of all arms, by epoch and by update.

    Args:
        curves: Metrics of all seeds, for each arm.
        settings: Settings of the last arm.
        paper: Accuracy (%) of each arm in the paper, if it has the training.
    """
    figure, [panels] = panels_of((11, 4.5), 1, 2)
    for arm, metrics in curves.items():
        for axes, x in zip(panels, ("epochs", "updates"), strict=True):
            label = arm + (f" (paper {paper[arm]:.2f} %)" if arm in paper else "")
            _plot_range(axes, metrics, x, _accuracy, _ARM_STYLES[arm], label)
    for axes, x in zip(panels, ("epochs", "updates"), strict=True):
        logarithmic(axes, x)
    panels[0].set_ylabel("validation accuracy (%), mean and range over seeds")
    panels[1].legend(loc="lower right")
    figure.suptitle(
        f"{title_of(settings)}: small batch {settings['small_batch_size']}, "
        f"large batch {settings['batch_size']}"
    )
    return figure


def error_by_epoch(
    curves: dict[str, Columns], settings: dict, paper: dict[str, float]
) -> Figure:
    """The paper's Figure 1: training and validation error of each batch size."""
    figure, [panels] = panels_of((11, 4.5), 1, 2, beside=0.4)
    for axes, error in zip(panels, (_training_error, _error), strict=True):
        for place, (arm, metrics) in enumerate(curves.items()):
            style = style_of(place, len(curves))
            _plot_range(axes, metrics, "epochs", error, style, arm)
        axes.set(xlabel="epochs", yscale="log")
        axes.grid(alpha=0.3, which="both")
    percents(panels[0])
    panels[0].set_ylabel("training error (%)")
    panels[1].set_ylabel("validation error (%)")
    mark_paper(panels[1], paper, ("SB", "LB"))
    panels[1].legend(fontsize="small")
    figure.suptitle(f"{title_of(settings)}: error by epoch (the paper's Figure 1)")
    return figure


def error_by_update(
    curves: dict[str, Columns], settings: dict, paper: dict[str, float]
) -> Figure:
    """The paper's Figure 3: validation error of each batch size, by update."""
    figure, [[axes]] = panels_of((7, 4.5))
    for place, (arm, metrics) in enumerate(curves.items()):
        style = style_of(place, len(curves))
        _plot_range(axes, metrics, "updates", _error, style, arm)
    logarithmic(axes, "updates")
    axes.set(ylabel="validation error (%)", yscale="log")
    percents(axes)
    mark_paper(axes, paper, ("SB", "+RA"))
    axes.legend(fontsize="small")
    figure.suptitle(f"{title_of(settings)}: error by update (the paper's Figure 3)")
    return figure


def weight_distance(runs: dict[str, tuple]) -> Figure:
    """The paper's Figure 2: distance from the initial weights by update.

    Args:
        runs: For each run, its distances by update, their fits (logarithm and power
            law) over the phase of high rate, and the number of updates in that phase.
    """
    figure, [panels] = panels_of((11, 5), 1, 2, titles=2, sharex=True)
    for place, (name, (table, fits, high_rate)) in enumerate(runs.items()):
        style = style_of(place, len(runs))
        phase = np.geomspace(1, high_rate, 100)
        for number, axes in enumerate(panels):
            label = name
            if fits:
                fit = fits[number]
                label += f": {_formula(fit)}, R² {fit.r_squared:.3f}"
                axes.plot(
                    phase,
                    fit(phase),
                    color=style["color"],
                    linestyle=style["linestyle"],
                )
            points = {**style, "linestyle": ""}
            axes.plot(table["updates"], table["total"], **points, label=label)
    for axes, title in zip(
        panels, ("lines: a + b log t, the paper's claim", "lines: a t^b"), strict=True
    ):
        logarithmic(axes, "updates")
        # With a given y, it does not look for a place above all tick labels.
        axes.set_title(title, fontsize="medium", y=1)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", loc="upper left")
    # Plain text: mathematical text takes as long as ten labels.
    panels[0].set_ylabel("distance ‖wₜ − w₀‖ (units of the weights)")
    figure.suptitle("Distance from the initial weights (the paper's Figure 2)")
    return figure


def landscape(table: Columns, fits: dict, title: str, directions: int) -> Figure:
    """How much the loss changes with the distance from the weights.

    Args:
        table: For each `distance`, the `deviation` over directions and their `mean`.
        fits: An `AlphaFit` for each range of distances, which is given in words.
        title: Network, in words.
        directions: Number of directions.
    """
    figure, [[axes]] = panels_of((7, 5))
    distance, deviation = table["distance"], table["deviation"]
    label = f"deviation over {directions} directions"
    axes.plot(distance, deviation, "o", color="black", markersize=5, label=label)
    mean = np.abs(table["mean"])
    axes.plot(
        distance, mean, "x", color="tab:grey", label="absolute value of their mean"
    )
    paper = deviation[0] * distance / distance[0]
    axes.plot(distance, paper, "--", color="tab:blue", label="the paper: alpha 2")
    axes.set(
        xlabel="distance from the weights (units of the weights)",
        ylabel="difference of the loss (nats)",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize="small")
    text = "\n".join(
        f"{name}: alpha {fit.alpha:.2f} ± {fit.error:.2f}" for name, fit in fits.items()
    )
    axes.text(
        *(0.98, 0.03, text),
        transform=axes.transAxes,
        horizontalalignment="right",
        fontsize="small",
    )
    figure.suptitle(title)
    return figure


def save(figure: Figure, run_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Writes a picture into a run directory; returns its file."""
    file = run_dir / "plots" / name
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as draft:
        figure.savefig(draft, dpi=150)
    return file


def _accuracy(metrics):
    return 100 * metrics["val_accuracy"]


def _error(metrics):
    return 100 - _accuracy(metrics)


def _training_error(metrics):
    return 100 - 100 * metrics["accuracy"]


def _plot_range(axes, metrics, x, values, style, label):
    """Draws the mean over seeds as a line, and their range as a band."""
    metrics = metrics | {"epochs": metrics["epoch"] + 1, "shown": values(metrics)}
    rows = without_gaps(metrics, "shown")
    # The rows with the same x are side by side, so that each group is a range of rows.
    order = np.argsort(rows[x])
    places, starts, sizes = np.unique(
        rows[x][order], return_index=True, return_counts=True
    )
    shown = rows["shown"][order]
    mean = np.add.reduceat(shown, starts) / sizes
    lowest, highest = (f.reduceat(shown, starts) for f in (np.minimum, np.maximum))
    marks = {"markersize": 4, "markevery": max(1, len(places) // 12)}
    axes.plot(places, mean, **{**style, **marks}, label=label)
    axes.fill_between(places, lowest, highest, color=style["color"], alpha=0.15, lw=0)


def _formula(fit):
    if fit.formula == "a t^b":
        return f"{fit.a:.3g} t^{fit.b:.3g}"
    return f"{fit.a:.3g} + {fit.b:.3g} log t"
