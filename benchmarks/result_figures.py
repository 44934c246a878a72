"""The paper's figures and its alpha: what is kept of each, and what that shows.

The group of a figure has the name of its flagfile in `configs/scaled/`.
"""

import statistics

import result_files
import result_tables
from experiment import markdown

from gbn_keras.training.report.comparison import study_table

SWEEPS = ("figure1", "figure2a", "figure2a_no_l2", "figure2b", "figure3")
LANDSCAPES = ("alpha_f1", "alpha_resnet20")
NAMES = (*SWEEPS, *LANDSCAPES)

# What a page shows of a batch size, if the distance of the weights is not kept.
_CELLS = ("batch", "seeds", "accuracy %", "stretch", "updates", "samples")


def not_run(name: str) -> str:
    """What a page shows of a figure that is not kept."""
    return f"Not run: `python train.py --flagfile=configs/scaled/{name}.cfg`"


def shown(names: list[str], groups: dict[str, list[dict]]) -> str:
    """What a page shows of these figures: how they were made, a table, sentences.

    Args:
        names: Some of `SWEEPS`, or some of `LANDSCAPES`.
        groups: The kept groups, by name. Figures may be missing.
    """
    kept = {name: groups[name] for name in names if name in groups}
    parts = []
    if kept:
        made_by = [f"- {name}: `{rows[0]['command']}`" for name, rows in kept.items()]
        parts.append("\n".join(made_by))
        if names[0] in LANDSCAPES:
            parts.append(result_tables.landscapes(list(kept.values())))
        else:
            parts.append(_sweeps(kept))
        for name, rows in kept.items():
            if told := sentence(name, rows):
                parts.append(f"{name}: {told}" if len(kept) > 1 else told)
    return "\n\n".join([*parts, *(not_run(name) for name in names if name not in kept)])


def findings(name: str, rows: list[dict]) -> str:
    """What is to say about a group besides its trainings; empty if there is nothing."""
    table = _sweeps({name: rows}) if has_distances(rows) else ""
    return "\n\n".join(filter(None, (table, sentence(name, rows))))


def has_distances(rows: list[dict]) -> bool:
    """Whether the fits of the distance of the weights are kept."""
    return any(row["log_r2"] is not None for row in rows)


def sentence(name: str, rows: list[dict]) -> str:
    """What the rows say about the paper's claim; empty if they do not say anything."""
    if len({row["arm"] for row in rows}) < 2:
        return ""
    if has_distances(rows):
        return _slopes(rows)
    return {"figure1": _falls, "figure3": _apart}.get(name, lambda rows: "")(rows)


def _sweeps(named):
    """One table of several sweeps, with a line for each batch size."""
    lines = []
    for name, rows in named.items():
        if has_distances(rows):
            cells = result_tables.distances(rows)
        else:
            arms = result_tables.arm_cells(rows)
            cells = [{column: arm[column] for column in _CELLS} for arm in arms]
        lines += [{"sweep": name} | own for own in cells]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    return markdown(columns[len(named) == 1 :], lines)


def _falls(rows):
    """Figure 1: the larger the batch, the larger the error."""
    means = _accuracies(rows)
    if all(larger < smaller for smaller, larger in zip(means, means[1:], strict=False)):
        return "Each batch size has a lower accuracy than the next smaller one."
    return "Not every batch size has a lower accuracy than the next smaller one."


def _apart(rows):
    """Figure 3: adapted batches follow the curve of the small one."""
    small, *larger = _accuracies(rows)
    apart = sorted({f"{mean - small:+.2f}" for mean in larger}, key=float)
    return (
        "Compared with the smallest batch, the accuracy of the larger ones differs by "
        f"{result_tables.first_to_last(apart)} points."
    )


def _accuracies(rows):
    """The mean accuracies in percent, from the smallest batch to the largest."""
    table = study_table(result_files.by_arm(rows)).values()
    arms = sorted(table, key=lambda row: row["batch_size"])
    return [row["accuracy_mean"] for row in arms]


def _slopes(rows):
    """Figure 2: the distance grows with the logarithm of the updates."""
    fitted = [row for row in rows if row["log_r2"] is not None]
    arms = result_files.rows_by_arm(fitted).values()
    better = [
        statistics.mean(row["log_r2"] - row["power_r2"] for row in own) > 0
        for own in arms
    ]
    slopes = [statistics.mean(row["log_b"] for row in own) for own in arms]
    return (
        f"The logarithm fits better than the power law for {sum(better)} of "
        f"{len(better)} batch sizes. The largest slope is "
        f"{max(slopes) / min(slopes):.2f} times the smallest one."
    )
