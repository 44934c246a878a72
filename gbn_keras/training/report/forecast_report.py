"""Reports on a forecast (`--mode=plan`): its table, its sentences and its picture."""

import json
import math
import pathlib

from matplotlib.figure import Figure

from gbn_keras.training.report import pictures
from gbn_keras.training.report.axes import logarithmic, panels_of, style_of, title_of
from gbn_keras.training.report.columns import Columns, read_columns
from gbn_keras.training.run.tables import (
    FORECAST,
    FORECAST_CHOICE,
    FORECAST_FACTS,
    HOURS_ON,
)

PICTURE = "plan.png"


def report_forecast(run_dir: pathlib.Path) -> str:
    """Draws the picture of a forecast; returns its table and result as text."""
    facts, table = read(run_dir)
    pictures.save(picture(facts, table), run_dir, PICTURE)
    rows = as_shown(facts, table)
    heads = ["batch", *next(iter(rows.values()))]
    cells = [heads, *([size, *row.values()] for size, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    told = [*lines, "", *sentences(facts, table)]
    told.append(f"train it: python train.py --flagfile={run_dir / FORECAST_CHOICE}")
    return "\n".join(line.rstrip() for line in told)


def read(run_dir: pathlib.Path) -> tuple[dict, Columns]:
    """What is known of a forecast as a whole, and its table."""
    facts = json.loads((run_dir / FORECAST_FACTS).read_text(encoding="utf-8"))
    return facts, read_columns(run_dir / FORECAST)


def sentences(facts: dict, table: Columns) -> list[str]:
    """The result in sentences: the critical batch, and the fastest choice."""
    small, critical = facts["small_batch_size"], facts["critical_batch_size"]
    if critical >= facts["examples"]:
        first = "Critical batch: none; even all examples need less than 20 % more"
    else:
        first = (
            f"Critical batch: about {critical:,.0f}; larger ones need over 20 % more"
        )
    place = list(table["batch_size"]).index(facts["fastest"]["batch_size"])
    replicas = facts["fastest"]["replicas"]
    most = facts["replicas"]
    within = f" with at most {most} replicas" if most > 1 else ""
    on = f" on {replicas} replica{'s' * (replicas > 1)}" if most > 1 else ""
    cost = f", cost {table['cost'][place]:.4g}" if "cost" in table else ""
    return [
        f"{first} samples than batch {small}.",
        f"Fastest{within}: batch {facts['fastest']['batch_size']:,}{on}, "
        f"{table['updates'][place]:,.0f} updates in {_hours(table['hours'][place])}"
        f"{cost}.",
    ]


def note(facts: dict) -> str:
    """What the table's columns mean, and where they come from."""
    source = {
        "probe": "a short probe of the small batch's training",
        "training": "this training",
    }[facts["source"]]
    return (
        "Gain: how many of the small batch's updates an update does the work of. "
        "Stretch: how many times more samples than the small batch it needs. Both from "
        f"the noise of the gradient in {source}. Hours: of the updates only, from the "
        "speed of this device; with several replicas, estimated."
    )


def as_shown(facts: dict, table: Columns) -> dict[str, dict[str, str]]:
    """The table for readers: with units, and rounded numbers."""
    on = {name: name.removeprefix(HOURS_ON) for name in table if HOURS_ON in name}
    rows = {}
    for place, size in enumerate(table["batch_size"]):
        row = {name: column[place] for name, column in table.items()}
        cells = {
            "gain": f"{row['gain']:.3g}",
            "stretch": f"{row['stretch']:.3g}",
            "updates": f"{row['updates']:,.0f}",
            "samples": f"{row['samples']:,.0f}",
            "s/update": f"{row['seconds_per_update']:.3g}",
        }
        for name, replicas in on.items():
            hours = "" if math.isnan(row[name]) else f"{row[name]:.3g}"
            cells[f"hours on {replicas}" if len(on) > 1 else "hours"] = hours
        if "cost" in row:
            cells["cost"] = f"{row['cost']:.4g}"
        is_fastest = size == facts["fastest"]["batch_size"]
        cells[""] = "fastest" if is_fastest else ""
        rows[f"{size:,.0f}"] = cells
    return rows


def picture(facts: dict, table: Columns) -> Figure:
    """Samples and hours that a training needs, by batch size."""
    figure, [[samples, hours]] = panels_of((11, 4.5), 1, 2, sharey=False, beside=0.7)
    sizes = table["batch_size"]
    samples.plot(sizes, table["stretch"], "o-", color="tab:blue", markersize=4)
    critical = facts["critical_batch_size"]
    if critical < facts["examples"]:
        samples.axvline(critical, color="grey", linestyle="--", linewidth=1)
        samples.annotate(
            f" critical batch\n about {critical:,.0f}",
            (critical, 0.97),
            xycoords=("data", "axes fraction"),
            verticalalignment="top",
        )
    samples.set(ylabel="stretch (samples, small batch: 1)", yscale="log")
    names = [name for name in table if HOURS_ON in name]
    for place, name in enumerate(names):
        replicas = int(name.removeprefix(HOURS_ON))
        label = f"{replicas} replica{'s' * (replicas > 1)}"
        hours.plot(sizes, table[name], label=label, **style_of(place, len(names)))
    hours.set(ylabel="hours", yscale="log")
    hours.legend()
    for axes in (samples, hours):
        logarithmic(axes, "batch size")
    figure.suptitle(f"{title_of(facts['settings'])}: forecast")
    return figure


def _hours(hours):
    """A duration in the unit that suits it."""
    if hours < 1 / 60:
        return f"{3600 * hours:.3g} seconds"
    return f"{60 * hours:.3g} minutes" if hours < 1 else f"{hours:.3g} hours"
