"""The tables of the benchmarks that compare the theory with what is computed."""

from experiment import markdown

# For each name, the script that makes its figures.
SCRIPTS = {
    "random_walk": "random_walk.py",
    "adam_invariance": "adam_invariance.py",
}


def tables(name: str, rows: list[dict]) -> str:
    """The tables of the rows that such a benchmark wrote."""
    if name == "random_walk":
        return random_walk(rows)
    tasks = dict.fromkeys(row["task"] for row in rows)
    return "\n\n".join(adam(task, rows) for task in tasks)


def random_walk(rows: list[dict]) -> str:
    """For each alpha, the exponent of the walk's growth in theory and as computed."""
    lines = [
        {
            "alpha": f"{row['alpha']:g}",
            "exponent in theory": f"{4 / row['alpha']:.2f}",
            "recovered": f"{row['exponent']:.2f} ± {row['exponent_error']:.2f}",
            "without a shift of log t": f"{row['slope_without_shift']:.2f}",
        }
        for row in rows
    ]
    return markdown(list(lines[0]), lines)


def adam(task: str, rows: list[dict]) -> str:
    """For each batch of a task and each way, how far the training is from another.

    Args:
        task: `quadratic` or `digits`.
        rows: From `adam_invariance.py`.
    """
    lines, other_order = {}, ""
    for row in rows:
        if row["task"] != task:
            continue
        apart = f"{row['weights']:.3f} ({row['loss']:.3f})"
        if row["way"] == "other order":
            other_order = apart
        else:
            line = lines.setdefault(row["batch"], {"batch": f"{row['batch']:,}"})
            line[row["way"]] = apart
    names = list(dict.fromkeys(name for line in lines.values() for name in line))
    table = markdown(names, list(lines.values()))
    return f"{task}, weights apart (loss apart), other order {other_order}:\n\n{table}"
