"""The measured trainings that are kept in `docs/results/`: one file for each group.

A file is a table with a row for each training. `result.json` of a run directory has
more, but a run directory is large and is not kept.
"""

import collections
import csv
import io
import pathlib
import re

from gbn_keras.whole_file import whole_file

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "results"

# Read as numbers; all other columns are text. What a training does not have is empty.
_WHOLE = ("seed", "updates", "samples", "diverged", "high_rate_updates")
_WHOLE += ("train_examples", "batch_size", "small_batch_size", "epochs")
_REAL = ("accuracy", "loss", "wall_seconds", "found_stretch", "suitable_stretch")
_SETTINGS = ("model", "dataset", "train_examples", "batch_size", "small_batch_size")
_SETTINGS += ("epochs", "stretch")
# What a training was made by, with and from.
FACTS = ("command", "hardware", "versions", "commit")
COLUMNS = (
    *("arm", "seed", "accuracy", "loss", "updates", "samples", "wall_seconds"),
    *("diverged", "found_stretch", "suitable_stretch", *_SETTINGS, *FACTS),
    # Files of earlier versions end here.
    "high_rate_updates",
)


def record(outcome: dict, arm: str, command: str, commit: str) -> dict:
    """The row of one training.

    Args:
        outcome: How it ended, from `read_outcome`.
        arm: Its name in the group.
        command: The command that repeats it, or the group.
        commit: The commit of the source, if the outcome does not know its own.
    """
    own = ("seed", "accuracy", "loss", "updates", "samples", "wall_seconds", "diverged")
    own += ("high_rate_updates",)
    row = {name: outcome.get(name) for name in own}
    row |= {name: outcome["settings"][name] for name in _SETTINGS}
    return row | {
        "arm": arm,
        "stretch": str(row["stretch"]),  # A number or `auto`.
        "found_stretch": outcome.get("stretch"),
        "suitable_stretch": outcome.get("noise_scale", {}).get("suitable_stretch"),
        "command": command,
        "hardware": hardware(outcome["hardware"]),
        "versions": ", ".join(f"{k} {v}" for k, v in outcome["versions"].items()),
        "commit": outcome.get("commit", commit),
    }


def outcome(row: dict) -> dict:
    """What `read_outcome` gave for a row, as far as the tables need it."""
    found = {name: row[name] for name in COLUMNS if row[name] is not None}
    found["settings"] = {name: found.pop(name) for name in _SETTINGS}
    if "found_stretch" in found:
        found["stretch"] = found.pop("found_stretch")
    if "suitable_stretch" in found:
        found["noise_scale"] = {"suitable_stretch": found.pop("suitable_stretch")}
    return found


def by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """For each arm, in the order of the rows, the outcomes of its trainings."""
    arms = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(outcome(row))
    return arms


def write(file: pathlib.Path, rows: list[dict]) -> None:
    """Writes a group's file."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        draft.write_text(text.getvalue(), encoding="utf-8")


def read(file: pathlib.Path) -> list[dict]:
    """The rows of a group's file."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{name: _value(name, row.get(name)) for name in COLUMNS} for row in rows]


def read_all(folder: pathlib.Path) -> dict[str, list[dict]]:
    """All groups of trainings in a folder, by the names of their files."""
    return {file.stem: read(file) for file in sorted(folder.glob("*.csv"))}


def _value(name, text):
    if name in _WHOLE + _REAL:
        number = int if name in _WHOLE else float
        return number(text) if text else None
    return text


def short_commit(commit: str) -> str:
    """A commit with as much of its hash as git shows.

    An installed package has its version instead, which stays as it is.
    """
    return re.sub(r"^([0-9a-f]{9})[0-9a-f]{31}", r"\1", commit)


def hardware(found: dict) -> str:
    """The hardware in words, as far as it is known.

    Args:
        found: `hardware` of a training's record, or a benchmark's `environment`.
    """
    devices = collections.Counter(found.get("devices", ()))
    words = [found.get("processor") or found.get("machine", "")]
    if sets := found.get("instruction_sets"):
        words[0] += f" ({', '.join(sets)})"
    words = [word for word in words if word]
    words.append(f"{found['cores']} cores")
    words += [f"{n} x {one}" if n > 1 else one for one, n in devices.items()]
    if found.get("replicas", 1) > 1:
        words.append(f"{found['replicas']} replicas")
    return ", ".join(words)
