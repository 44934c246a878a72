"""The tables of `accelerator.py report`, as Markdown, from the folder's JSON."""

import pathlib
import statistics

import accelerator_right
import accelerator_speed
from accelerator_folder import read_rows
from accelerator_task import ARMS

NOT_RUN = "not run"


def report(folder: pathlib.Path, tiny: bool) -> str:
    """All tables. What is missing is `not run`."""
    speed, right = (read_rows(folder / stage) for stage in ("speed", "right"))
    trained = [row for run in sorted(folder.glob("train/*")) for row in read_rows(run)]
    sections = [
        ("Machine", _machine(speed + right + trained)),
        ("Speed of one layer", _layers(speed)),
        ("Speed of a network's update", _networks(speed)),
        ("Errors against float64, relative to the largest value", _errors(right)),
        ("Two processes, the same training", _determinism(right)),
        ("Accuracy on the test examples, %", _accuracy(trained)),
        ("Trainings", _trainings(trained)),
        ("Not run", _missing(folder, tiny)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)


def _machine(rows):
    environments = [row["environment"] for row in rows]
    distinct = [e for i, e in enumerate(environments) if e not in environments[:i]]
    names = ("device", "platform", "devices", "python", "jax", "keras", "gbn_keras")
    names += ("xla_flags", "commit")
    return _table(names, [[one[name] for name in names] for one in distinct])


def _layers(rows):
    kinds = (
        *(accelerator_speed.KERAS, accelerator_speed.GHOSTS, accelerator_speed.SPLIT),
        accelerator_speed.COPY,
    )
    text = (
        "A cell shows milliseconds of a training step, the ratio to Keras's layer, and "
        "the share of the memory's bandwidth: the time to copy the bytes that must "
        "move at least, divided by the step's.\n\n"
    )
    layers = [row for row in rows if row["kind"] in kinds and "least_bytes" in row]
    torch = {
        (row["case"], row["precision"]): row
        for row in rows
        if row["kind"].startswith("PyTorch")
    }
    lines = []
    for case in _distinct(layers, "case", "precision", "ghost"):
        own = {row["kind"]: row for row in _where(layers, case)}
        of_torch = torch.get((case["case"], case["precision"]))
        cells = [_layer_cell(own.get(kind)) for kind in kinds]
        bandwidth = own[accelerator_speed.COPY]["gigabytes_per_second"]
        lines.append(
            [*case.values(), *cells, _layer_cell(of_torch), f"{bandwidth:.0f}"]
        )
    head = ("layer", "precision", "ghosts of", *kinds, "PyTorch BatchNorm2d")
    return text + _table((*head, "copy, GB/s"), lines)


def _layer_cell(row):
    if row is None:
        return NOT_RUN
    ratio = f"{row['ratio']:.2f}, " if "ratio" in row else ""
    share = f"{row['share_of_bandwidth']:.0%}"
    return f"{row['milliseconds']:.3f} ({ratio}{share})"


def _networks(rows):
    kinds = accelerator_speed.KERAS, accelerator_speed.GHOSTS, accelerator_speed.SPLIT
    networks = [row for row in rows if "images_per_second" in row]
    lines = []
    for case in _distinct(networks, "case", "precision", "ghost"):
        own = {row["kind"]: row for row in _where(networks, case)}
        cells = [
            f"{row['milliseconds']:.2f} ({row['ratio']:.2f})" if row else NOT_RUN
            for row in map(own.get, kinds)
        ]
        images = own[accelerator_speed.GHOSTS]["images_per_second"]
        lines.append([*case.values(), *cells, f"{images:,.0f}"])
    head = ("network", "precision", "ghosts of", *kinds, "images a second, ghosts")
    text = "A cell shows milliseconds and the ratio to Keras's layer.\n\n"
    return text + _table(head, lines)


def _errors(rows):
    names = ("outputs", "dx", "dgamma", "dbeta", "moving_mean", "moving_variance")
    lines = [
        [row["case"], row["precision"], row["kind"], *(f"{row[n]:.1e}" for n in names)]
        for row in rows
        if "dx" in row
    ]
    return _table(("case", "precision", "layer", *names), lines)


def _determinism(rows):
    lines = [
        [
            f"`{row['flags']}`" if row["flags"] else "none",
            f"{row['network']}, {row['updates']} updates",
            f"{row['same_bits']} of {row['variables']}",
            f"{row['largest_difference']:.2g}",
        ]
        for row in rows
        if "same_bits" in row
    ]
    head = ("XLA's flags", "training", "variables with the same bits")
    return _table((*head, "largest difference"), lines)


def _accuracy(rows):
    names = ("network", "data", "precision", "momentum", "batch_size")
    lines = []
    large = [{**row, "batch_size": _large_batch(row, rows)} for row in rows]
    for case in _distinct(large, *names):
        cells = []
        for arm in ARMS:
            own = [row for row in _where(large, case) if row["arm"] == arm]
            values = [100 * r["accuracy"] for r in own if r["accuracy"] is not None]
            cell = f"{statistics.mean(values):.2f}" if values else ""
            if len(values) > 1:
                cell += f" ± {statistics.stdev(values):.2f}"
            diverged = len(own) - len(values)
            cell += f" ({len(own)} seeds)" * (len(own) > 1)
            cell += f" {diverged} diverged" * (diverged > 0)
            cells.append(cell.strip() if own else NOT_RUN)
        lines.append([*case.values(), *cells])
    for network in ("c1", "resnet44"):
        if network in [row["network"] for row in rows]:
            continue
        lines.append([network, *[""] * (len(names) - 1), *[NOT_RUN] * len(ARMS)])
    head = ("network", "data", "precision", "momentum", "batch")
    return _table((*head, *ARMS), lines)


def _large_batch(row, rows):
    """The batch of the row's large arms, so that SB stands beside them."""
    same = [r for r in rows if r["network"] == row["network"] and r["arm"] != "SB"]
    return max((r["batch_size"] for r in same), default=row["batch_size"])


def _trainings(rows):
    lines = [
        [
            *(row["network"], row["arm"], row["seed"]),
            NOT_RUN if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}",
            f"{row['updates']:,}",
            f"{row['samples']:,}",
            f"{row['seconds']:.0f}",
            *(row["precision"], row["micro_batch_size"]),
            row["environment"]["device"],
            row["environment"]["commit"][:9],
        ]
        for row in rows
    ]
    head = ("network", "arm", "seed", "accuracy", "updates", "samples", "seconds")
    head += ("precision", "micro-batch", "device", "commit")
    return _table(head, lines)


def _missing(folder, tiny):
    parts = {
        "speed": accelerator_speed.parts(tiny),
        "right": accelerator_right.parts(tiny, folder),
    }
    missing = [
        f"`{stage}`: {name}"
        for stage, names in parts.items()
        for name in names
        if not (folder / stage / f"{name}.json").exists()
    ]
    return "\n".join(f"- {part}" for part in missing) or "Nothing of speed and right."


def _table(head, lines):
    if not lines:
        return NOT_RUN
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _distinct(rows, *names):
    """The different values of some columns, in the order of the rows."""
    found = []
    for row in rows:
        case = {name: row[name] for name in names}
        if case not in found:
            found.append(case)
    return found


def _where(rows, case):
    return [row for row in rows if all(row[k] == v for k, v in case.items())]
