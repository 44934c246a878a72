"""What the benchmarks of speed, memory, kills and the theory found, as their own JSON.

`docs/results/NAME.json` is what a benchmark wrote with `--json`: see
`side_by_side.write_json`.
"""

import collections
import json
import pathlib

import accelerator_report
import result_files
import result_theory
import side_by_side
from experiment import markdown

from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.run.run_directory import write_whole

# What a GPU or a TPU measured, which has tables of its own.
_ACCELERATOR = "accelerator"

# What is measured of speed, memory and kills, under which name, by which command.
SPEED = {
    "speed_layer": "layer_speed.py",
    "speed_layer_xla": "layer_speed.py --jit",
    "speed_layer_bfloat16": "layer_speed.py --dtype=bfloat16",
    "speed_layer_torch": "layer_speed.py",
    "speed_layer_jax": "layer_speed.py",
    "speed_update": "train_speed.py",
    "speed_pytorch": "train_speed.py --part=pytorch",
    "speed_xla": "xla_speed.py",
    "speed_auto": "train_speed.py --part=noise_scale",
    "speed_f1": "train_speed.py --part=f1 --data_dir=DIR",
    "speed_cut_ghosts": "cut_ghosts.py",
    "speed_data": "data_speed.py --data_dir=DIR",
    "speed_micro_batches": "micro_batches.py",
    "speed_checkpoints": "checkpoint_cost.py --data_dir=DIR",
    "kills": "kill_soak.py",
    "kills_auto": "kill_soak.py --auto",
    _ACCELERATOR: "accelerator.py report",
}
# All that `keep` takes.
KEPT = SPEED | result_theory.SCRIPTS
_BACKENDS = {"speed_layer_torch": "torch", "speed_layer_jax": "jax"}
# Of these options, a table may have any: they say how exactly it was measured.
_FREE = ("--rounds", "--kills", "--runs", "--seed", "--processes")


def command(name: str) -> str:
    """The command that measures it."""
    script, *words = KEPT[name].split()
    return side_by_side.command([script, *words], _BACKENDS.get(name, "tensorflow"))


def keep(file: pathlib.Path, name: str, folder: pathlib.Path) -> pathlib.Path:
    """Copies what a benchmark wrote into the folder of results; returns where.

    Raises:
        UsageError: If there is no such name, or if the file is not what its command
            writes.
    """
    if name not in KEPT:
        raise UsageError(f"--name: got {name}, wanted one of {', '.join(KEPT)}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        made_by = content["command"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{file}: got no file that a benchmark's --json wrote ({first_line(error)})"
            f", wanted that of `{command(name)}`."
        ) from error
    words = [word for word in made_by.split() if not word.startswith(_FREE)]
    if sorted(words) != sorted(command(name).split()):
        raise UsageError(
            f"{file}: got the figures of `{made_by}`, wanted those of "
            f"`{command(name)}`. Choose another --name."
        )
    kept = folder / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(content, indent=1) + "\n")
    return kept


def read_all(folder: pathlib.Path) -> dict[str, dict]:
    """What is kept, by name."""
    files = {name: folder / f"{name}.json" for name in KEPT}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.exists()
    }


def section(name: str, content: dict | None) -> str:
    """The figures with all that is known of them, or that there are none yet."""
    if content is None:
        return f"Not run: `{command(name)}`"
    if name == _ACCELERATOR:
        told = accelerator_report.report(content["rows"], content["missing"], "####")
        return f"- command: `{command(name)}`\n\n{told}"
    facts = content["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    lines = [
        f"- command: `{content['command']}`",
        f"- hardware: {result_files.hardware(facts)}",
        f"- versions: {versions}",
        f"- commit: `{result_files.short_commit(content['commit'])}`",
    ]
    return "\n".join(lines) + "\n\n" + tables(name, content["rows"])


def tables(name: str, rows: list[dict]) -> str:
    """The tables of the rows that a benchmark wrote."""
    if name in result_theory.SCRIPTS:
        return result_theory.tables(name, rows)
    if name.startswith("speed_layer"):
        return _layers(rows)
    if name.startswith("kills"):
        return _kills(rows)
    parts = {}  # One benchmark may measure several things.
    for row in map(_flat, rows):
        parts.setdefault(tuple(row), []).append(row)
    return "\n\n".join(map(_table, parts.values()))


def _layers(rows):
    """A line for each input: times, with the ratios to Keras's; then the memory."""
    names = ["milliseconds (ratio)", *dict.fromkeys(row["layer"] for row in rows)]
    times, memory = {}, {}
    for row in rows:
        label = f"{_text(row['shape'])}, ghosts of {row['virtual_batch_size']}"
        for lines, title in ((times, names[0]), (memory, "peak MB")):
            lines.setdefault(label, {title: label})
        times[label][row["layer"]] = f"{row['milliseconds']:.1f} ({row['ratio']:.2f})"
        if row["peak_megabytes"] is not None:
            memory[label][row["layer"]] = f"{row['peak_megabytes']:.0f}"
    return (
        f"{markdown(names, list(times.values()))}\n\n"
        f"{markdown(['peak MB', *names[1:]], list(memory.values()))}"
    )


def _kills(rows):
    """A line for each precision: how often it was killed, and what then differed."""
    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        count = counts[row["precision"]]
        moments = [moment for moment, _ in row["kills"]]
        count["runs"] += 1
        count["kills at random"] += moments.count("at random")
        count["kills while it writes"] += len(moments) - moments.count("at random")
        count["runs that differ"] += bool(row["different"])
    names = ["precision", "runs", "kills at random", "kills while it writes"]
    names.append("runs that differ")
    lines = [
        {"precision": precision, **{name: str(count[name]) for name in names[1:]}}
        for precision, count in counts.items()
    ]
    return markdown(names, lines)


def _table(rows):
    """A line for each row. What they share stands above."""
    shared = {
        name: value
        for name, value in rows[0].items()
        if len(rows) > 1 and all(row[name] == value for row in rows)
    }
    names = [name for name in rows[0] if name not in shared]
    lines = [
        {_words(name): _text(row[name]) for name in names if name in row}
        for row in rows
    ]
    told = [f"{_words(name)} {_text(value)}" for name, value in shared.items()]
    above = f"All: {', '.join(told)}.\n\n" if told else ""
    return above + markdown(list(map(_words, names)), lines)


def _flat(row):
    """The row without dictionaries in it."""
    found = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}, {key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return found


def _words(name):
    return name.replace("_", " ")


def _text(value):
    if value is None:
        return ""
    if isinstance(value, list):
        return "x".join(map(str, value))
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
