"""The tables of what `accelerator.py` measured, as Markdown."""

# The kinds of layer, and what they are compared with.
KERAS, GHOSTS = "Keras BatchNormalization", "GhostBatchNormalization"
SPLIT, COPY = "split, Keras BN, concat", "memory copy, same bytes"

NOT_RUN = "not run"


def report(rows: list[dict], missing: list[str] = (), depth: str = "##") -> str:
    """All tables. What is missing is `not run`.

    Args:
        rows: Rows of `speed` and `right`, with their `environment`.
        missing: The parts of both that are not run.
        depth: The mark of a heading.
    """
    sections = [
        ("Machine", _machine(rows)),
        ("Speed of one layer", _layers(rows)),
        ("Speed of a network's update", _networks(rows)),
        ("Errors against float64, relative to the largest value", _errors(rows)),
        ("Two processes, the same training", _determinism(rows)),
    ]
    if missing:
        sections.append(("Not run", "\n".join(f"- `{part}`" for part in missing)))
    return "\n\n".join(f"{depth} {title}\n\n{text}" for title, text in sections)


def _machine(rows):
    environments = [row["environment"] for row in rows]
    distinct = [e for i, e in enumerate(environments) if e not in environments[:i]]
    names = ("device", "platform", "devices", "python", "jax", "keras", "gbn_keras")
    names += ("xla_flags", "commit")
    return _table(names, [[one[name] for name in names] for one in distinct])


def _layers(rows):
    kinds = KERAS, GHOSTS, SPLIT, COPY
    text = (
        "A cell shows milliseconds of a training step, the ratio to Keras's layer, and "
        "the share of the memory's bandwidth: the time to copy the bytes that must "
        "move at least, divided by the step's.\n\n"
    )
    layers = [row for row in rows if "least_bytes" in row]
    torch = {
        (row["case"], row["precision"]): row
        for row in rows
        if row.get("kind", "").startswith("PyTorch")
    }
    lines = []
    for case in _distinct(layers, "case", "precision", "ghost"):
        own = {row["kind"]: row for row in _where(layers, case)}
        of_torch = torch.get((case["case"], case["precision"]))
        cells = [_layer_cell(own.get(kind)) for kind in kinds]
        bandwidth = own[COPY]["gigabytes_per_second"]
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
    kinds = KERAS, GHOSTS, SPLIT
    networks = [row for row in rows if "images_per_second" in row]
    lines = []
    for case in _distinct(networks, "case", "precision", "ghost"):
        own = {row["kind"]: row for row in _where(networks, case)}
        cells = [
            f"{row['milliseconds']:.2f} ({row['ratio']:.2f})" if row else NOT_RUN
            for row in map(own.get, kinds)
        ]
        images = own[GHOSTS]["images_per_second"]
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
