"""The pictures of `report`: the paper's Figures 1, 2 and 3, studies and landscapes.

Markers, dashes and lightness also distinguish the lines without color.
"""

import pathlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from gbn_keras.training.report.axes import logarithmic, mark_paper, percents, style_of
from gbn_keras.whole_file import whole_file

_ARM_STYLES = {
    "SB": {"color": "black", "marker": "o", "linestyle": "-"},
    "LB": {"color": "tab:red", "marker": "x", "linestyle": ":"},
    "+LR": {"color": "tab:orange", "marker": "^", "linestyle": "-."},
    "+GBN": {"color": "tab:green", "marker": "s", "linestyle": "--"},
    "+RA": {"color": "tab:blue", "marker": "D", "linestyle": "-"},
}


def training(metrics: pd.DataFrame) -> Figure:
    """Accuracy and loss of one training, by update."""
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
    return figure


def study(
    curves: dict[str, pd.DataFrame], settings: dict, paper: dict[str, float]
) -> Figure:
    """Validation accuracy of all arms, by epoch and by update.

    Args:
        curves: Metrics of all seeds, for each arm.
        settings: Settings of the last arm.
        paper: Accuracy (%) of each arm in the paper, if it has the training.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for arm, metrics in curves.items():
        for axes, x in zip(panels, ("epochs", "updates"), strict=True):
            label = arm + (f" (paper {paper[arm]:.2f} %)" if arm in paper else "")
            _plot_range(axes, metrics, x, _accuracy, _ARM_STYLES[arm], label)
            logarithmic(axes, x)
    panels[0].set_ylabel("validation accuracy (%), mean and range over seeds")
    panels[1].legend(loc="lower right")
    figure.suptitle(
        f"{_title(settings)}: small batch {settings['small_batch_size']}, large batch "
        f"{settings['batch_size']}"
    )
    return figure


def error_by_epoch(
    curves: dict[str, pd.DataFrame], settings: dict, paper: dict[str, float]
) -> Figure:
    """The paper's Figure 1: training and validation error of each batch size."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
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
    figure.suptitle(f"{_title(settings)}: error by epoch (the paper's Figure 1)")
    return figure


def error_by_update(
    curves: dict[str, pd.DataFrame], settings: dict, paper: dict[str, float]
) -> Figure:
    """The paper's Figure 3: validation error of each batch size, by update."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (arm, metrics) in enumerate(curves.items()):
        style = style_of(place, len(curves))
        _plot_range(axes, metrics, "updates", _error, style, arm)
    logarithmic(axes, "updates")
    axes.set(ylabel="validation error (%)", yscale="log")
    percents(axes)
    mark_paper(axes, paper, ("SB", "+RA"))
    axes.legend(fontsize="small")
    figure.suptitle(f"{_title(settings)}: error by update (the paper's Figure 3)")
    return figure


def weight_distance(runs: dict[str, tuple]) -> Figure:
    """The paper's Figure 2: distance from the initial weights by update.

    Args:
        runs: For each run, its distances by update, their fits (logarithm and power
            law) over the phase of high rate, and the number of updates in that phase.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
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
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", loc="upper left")
    panels[0].set_ylabel(r"distance $\|w_t - w_0\|$ (units of the weights)")
    figure.suptitle("Distance from the initial weights (the paper's Figure 2)")
    return figure


def landscape(table: pd.DataFrame, fits: dict, title: str, directions: int) -> Figure:
    """How much the loss changes with the distance from the weights.

    Args:
        table: For each `distance`, the `deviation` over directions and their `mean`.
        fits: An `AlphaFit` for each range of distances, which is given in words.
        title: Network, in words.
        directions: Number of directions.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    distance, deviation = table["distance"], table["deviation"]
    label = f"deviation over {directions} directions"
    axes.plot(distance, deviation, "o", color="black", markersize=5, label=label)
    mean = table["mean"].abs()
    axes.plot(
        distance, mean, "x", color="tab:grey", label="absolute value of their mean"
    )
    paper = deviation.iloc[0] * distance / distance.iloc[0]
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


def search(trials: pd.DataFrame, searched: list[str], settings: dict) -> Figure:
    """Validation accuracy of a search's trials, by each searched flag.

    Diverged trials are crosses at the bottom.

    Args:
        trials: Rows, one for each trial, the best one first. Diverged trials have no
            accuracy.
        searched: Names of the flags' columns.
        settings: Settings of the search.
    """
    columns = min(4, len(searched))
    rows = -(-len(searched) // columns)
    figure = Figure(figsize=(3.5 * columns, 3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
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
    title = f"{_title(settings)}: {len(trials)} trials, the best one circled"
    if len(set(shade)) > 1:
        title += "; darker points made more updates"
    if not has_one.all():
        title += "; crosses diverged"
    figure.suptitle(title, fontsize="medium")
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
    metrics = metrics.assign(epochs=metrics["epoch"] + 1, shown=values(metrics))
    shown = metrics.dropna(subset=["shown"]).groupby(x)["shown"]
    shown = shown.agg(["mean", "min", "max"])
    marks = {"markersize": 4, "markevery": max(1, len(shown) // 12)}
    axes.plot(shown.index, shown["mean"], **{**style, **marks}, label=label)
    axes.fill_between(
        shown.index, shown["min"], shown["max"], color=style["color"], alpha=0.15, lw=0
    )


def _formula(fit):
    if fit.formula == "a t^b":
        return f"{fit.a:.3g} t^{fit.b:.3g}"
    return f"{fit.a:.3g} + {fit.b:.3g} log t"


def _title(settings):
    return f"{settings['model']} on {settings['dataset']}"
