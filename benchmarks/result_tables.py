"""The tables of what run directories have measured, as Markdown."""

import itertools
import statistics
from collections.abc import Sequence

import result_files
import stretch_curve
from experiment import half_interval, markdown
from result_runs import experiment_of, is_landscape

from gbn_keras.training.report import paper
from gbn_keras.training.report.comparison import accuracy_shown, study_table
from gbn_keras.training.run.tables import ARMS

_NETWORKS = {
    "f1": "F1",
    "f1_digits": "small F1",
    "c1": "C1",
    "c3": "C3",
    "vgg": "VGG",
    "alexnet": "AlexNet",
}
_DATA = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet2012": "ImageNet",
}
# What a group's table says of each arm, if its trainings have it.
_OPTIONAL = ("paper %", "advised", "diverged", *result_files.FACTS)


def kind_of(rows: list[dict]) -> str:
    """What a group is: `study`, `sweep`, `trainings`, `landscape` or a script's name.

    The script is that of an experiment.
    """
    if experiment := experiment_of(rows):
        return experiment.script
    if is_landscape(rows[0]):
        return "landscape"
    if is_study(rows):
        return "study"
    is_sweep = all(row["arm"].startswith("batch ") for row in rows)
    return "sweep" if is_sweep else "trainings"


def is_study(rows: list[dict]) -> bool:
    """Whether all arms of a group are the paper's. A curve begins with SB, too."""
    is_curve = experiment_of(rows) is stretch_curve.EXPERIMENT
    return not is_curve and {row["arm"] for row in rows} <= set(ARMS)


def variants(rows: list[dict]) -> set[str]:
    """The names of the variants that `as_published.py` trained, if it did."""
    parts = (row["arm"].partition(": ") for row in rows)
    return {variant for variant, colon, _ in parts if colon}


def of_variant(rows: list[dict], variant: str) -> list[dict]:
    """The rows of one variant of `as_published.py`, under the names of the arms."""
    start = f"{variant}: "
    return [
        row | {"arm": row["arm"].removeprefix(start)}
        for row in rows
        if row["arm"].startswith(start)
    ]


def title(rows: list[dict]) -> str:
    """Network and data of a group, with epochs and batch sizes, or its state."""
    # In a study, the last training is the one with all remedies.
    last = rows[-1]
    if is_landscape(last):
        return f"{_network(last)}, {_data(last)}, {last['state']}"
    epochs = sorted({row["epochs"] for row in rows})
    text = f"{_network(last)}, {_data(last)}, {first_to_last(epochs)} epochs"
    if kind_of(rows) not in ("sweep", "trainings"):
        text += f", {last['batch_size']} / {last['small_batch_size']}"
    return text


def first_to_last(values: Sequence) -> str:
    """The ends of sorted values: `1 to 3`, or `1` if they are the same."""
    return " to ".join(map(str, dict.fromkeys((values[0], values[-1]))))


def section(rows: list[dict]) -> str:
    """All that is known of a group: what its trainings share, and a row for each arm.

    What the trainings do not share is in columns. Of landscapes, it is above the table.
    """
    different = [
        fact for fact in result_files.FACTS if len({row[fact] for row in rows}) > 1
    ]
    if is_landscape(rows[0]):
        table, different = landscapes([rows]), []
    else:
        cells = arm_cells(rows, different)
        names = [
            name
            for name in cells[0]
            if name not in _OPTIONAL or any(own[name] for own in cells)
        ]
        table = markdown(names, cells)
    shared = [
        f"- {fact}: {', '.join(_facts(fact, rows))}"
        for fact in result_files.FACTS
        if fact not in different
    ]
    return "\n".join(shared) + "\n\n" + table


def arm_cells(rows: list[dict], different: Sequence[str] = ()) -> list[dict[str, str]]:
    """For each arm of a group of trainings, its cells by column.

    Args:
        rows: The rows of the group.
        different: The `FACTS` that become columns.
    """
    table = study_table(result_files.by_arm(rows))
    return [
        _cells(arm, table[arm], trainings, different)
        for arm, trainings in result_files.rows_by_arm(rows).items()
    ]


def _cells(arm, row, trainings, different):
    """The cells of an arm, by column."""
    advised = [x["suitable_stretch"] for x in trainings if x["suitable_stretch"]]
    found = [x["found_stretch"] or float(x["stretch"]) for x in trainings]
    return {
        "": f"`{arm}`" if arm.startswith("--") else arm,
        "batch": f"{row['batch_size']:,}",
        "seeds": _seeds([x["seed"] for x in trainings]),
        "accuracy %": accuracy_shown(row),
        "95 % interval": interval(row),
        "paper %": f"{row['paper_accuracy']:.2f}" if "paper_accuracy" in row else "",
        "diverged": str(row.get("diverged") or ""),
        "stretch": f"{sum(found) / len(found):.4g}",
        "advised": f"{sum(advised) / len(advised):.2f}" if advised else "",
        "updates": f"{row['updates']:,}",
        "samples": f"{row['samples']:,}",
        "seconds": f"{row['wall_seconds']:,.1f}",
        **{
            fact: ", ".join(_facts(fact, trainings)) if fact in different else ""
            for fact in result_files.FACTS
        },
    }


def interval(row: dict) -> str:
    """The 95 % interval of a mean accuracy, by Student's t; empty for one seed.

    Args:
        row: A row of `study_table`.
    """
    number = row["seeds"] - row.get("diverged", 0)
    if number < 2:
        return ""
    half = half_interval(row["accuracy_deviation"], number)
    return f"{row['accuracy_mean'] - half:.2f} to {row['accuracy_mean'] + half:.2f}"


def studies(groups: list[list[dict]]) -> str:
    """One table of several studies: a row for each, and the paper's below it."""
    names = ["network, data, epochs, batch sizes", "seeds", *ARMS]
    lines = []
    for rows in groups:
        table = study_table(result_files.by_arm(rows))
        seeds = sorted({row["seeds"] for row in table.values()})
        shown = {arm: accuracy_shown(row) for arm, row in table.items()}
        lines.append({names[0]: title(rows), "seeds": first_to_last(seeds), **shown})
        if wanted := paper.arms(rows[-1]):
            label = f"the paper's {_network(rows[-1])}, {_data(rows[-1])}"
            of_paper = {arm: f"{percent:.2f}" for arm, percent in wanted.items()}
            lines.append({names[0]: label, **of_paper})
    return markdown(names, lines)


def stretches(groups: list[list[dict]]) -> str:
    """One table of several tasks of `stretch_curve.py`."""
    named = {title(rows): result_files.by_arm(rows) for rows in groups}
    return stretch_curve.summary(named)


def distances(rows: list[dict]) -> list[dict[str, str]]:
    """For each batch size of a sweep, its cells of the fits of the weights' distance.

    The values are means over the seeds, with their deviation.
    """
    lines = []
    for trainings in result_files.rows_by_arm(rows).values():
        fitted = [row for row in trainings if row["log_r2"] is not None]
        columns = {
            "slope": [row["log_b"] for row in fitted],
            "R² of a + b log t": [row["log_r2"] for row in fitted],
            "R² of a t^b": [row["power_r2"] for row in fitted],
        }
        first = trainings[0]
        lines.append(
            {
                "batch": f"{first['batch_size']:,}",
                "seeds": _seeds([row["seed"] for row in trainings]),
                "updates": f"{first['high_rate_updates']:,}",
                **{name: _mean(values) for name, values in columns.items()},
            }
        )
    return lines


def _mean(values):
    """Their mean with their deviation, if there are any."""
    text = f"{statistics.mean(values):.3f}" if values else ""
    return text + (f" ± {statistics.stdev(values):.3f}" if values[1:] else "")


def landscapes(groups: list[list[dict]]) -> str:
    """One table of several landscapes: alpha and R² for each range of distances."""
    first, lines = "network, data, examples, directions", {}
    for row in itertools.chain(*groups):
        network = f"{_network(row)}, {_data(row)}"
        label = f"{network}, {row['batch_size']:,}, {row['directions']}"
        line = lines.setdefault((label, row["seed"]), {first: label})
        line |= {
            "seed": str(row["seed"]),
            row["arm"]: f"{row['alpha']:.3f} ± {row['alpha_error']:.3f} "
            f"(R² {row['alpha_r2']:.4f})",
        }
    names = list(dict.fromkeys(itertools.chain(*lines.values())))
    note = "Alpha ± its standard error, from resampling the directions."
    return f"{markdown(names, list(lines.values()))}\n\n{note}"


def verdict(rows: list[dict]) -> str:
    """Whether the paper's claim holds in a study, in a sentence.

    It holds if the mean with all remedies is at least the small batch's, less one
    deviation, and at least half a point above the large batch's.
    """
    table = study_table(result_files.by_arm(rows))
    small, large, adapted = (table[arm]["accuracy_mean"] for arm in ("SB", "LB", "+RA"))
    deviation = table["SB"]["accuracy_deviation"]
    holds = adapted >= small - deviation and adapted >= large + 0.5
    return (
        f"**{'The claim holds' if holds else 'The claim does not hold'}** for "
        f"{title(rows)}: with all remedies {accuracy_shown(table['+RA'])} % (+RA), the "
        f"small batch {accuracy_shown(table['SB'])} % (SB), the large batch "
        f"{accuracy_shown(table['LB'])} % (LB)."
    )


def findings(rows: list[dict]) -> str:
    """The tables that an experiment makes of its group."""
    return experiment_of(rows).table(result_files.by_arm(rows))


def _network(row):
    name = row["model"].replace("wresnet", "WResNet").replace("resnet", "ResNet-")
    return _NETWORKS.get(row["model"], name)


def _data(row):
    name = _DATA.get(row["dataset"], row["dataset"])
    examples = row["train_examples"]
    return f"{examples:,} images of {name}" if examples else name


def _seeds(seeds):
    """Seeds in few words: `1 to 3`, or `1, 4`."""
    seeds = sorted(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _facts(name, rows):
    """The different values of a fact, as they are shown."""
    values = {row[name] for row in rows}
    if name == "commit":
        values = set(map(result_files.short_commit, values))
    return sorted(f"`{x}`" if name in ("command", "commit") else x for x in values)
