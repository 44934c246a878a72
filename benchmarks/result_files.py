"""What run directories have measured, kept in `docs/results/`: a file for each group.

A file is a table with a row for each training, or for each range of distances of a
landscape. A run directory has more, but it is large and is not kept.
"""

import collections
import csv
import io
import pathlib
import re

from gbn_keras.whole_file import whole_file

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "results"

# The fits of the distance of the weights: see `comparison.fit_cells`.
FITS = ("log_a", "log_b", "log_r2", "power_a", "power_b", "power_r2")
# Of a landscape, by range of distances: see `loss_landscape`.
_LANDSCAPE = ("alpha", "alpha_error", "alpha_r2", "weights_norm", "directions", "state")
# Only files in which a row has a value have these columns.
_SOME = (*FITS, *_LANDSCAPE)

# Read as numbers; all other columns are text. What a row does not have is empty.
_WHOLE = ("seed", "updates", "samples", "diverged", "high_rate_updates", "directions")
_WHOLE += ("train_examples", "batch_size", "small_batch_size", "epochs")
_REAL = ("accuracy", "loss", "wall_seconds", "found_stretch", "suitable_stretch", *FITS)
_REAL += ("alpha", "alpha_error", "alpha_r2", "weights_norm")
_SETTINGS = ("model", "dataset", "train_examples", "batch_size", "small_batch_size")
_SETTINGS += ("epochs", "stretch")
# What a training was made by, with and from.
FACTS = ("command", "hardware", "versions", "commit")
COLUMNS = (
    *("arm", "seed", "accuracy", "loss", "updates", "samples", "wall_seconds"),
    *("diverged", "found_stretch", "suitable_stretch", *_SETTINGS, *FACTS),
    # Files of earlier versions end here.
    "high_rate_updates",
    *_SOME,
)
# A fact that an earlier version did not keep.
UNKNOWN = "not known"


def record(outcome: dict, arm: str, command: str, commit: str) -> dict:
    """The row of one training.

    Args:
        outcome: How it ended, from `read_outcome`, with its `FITS` if it has any.
        arm: Its name in the group.
        command: The command that repeats it, or the group.
        commit: The commit of the source, if the outcome does not know its own.
    """
    own = ("seed", "accuracy", "loss", "updates", "samples", "wall_seconds", "diverged")
    own += ("high_rate_updates", *FITS)
    row = dict.fromkeys(COLUMNS) | {name: outcome.get(name) for name in own}
    row |= {name: outcome["settings"][name] for name in _SETTINGS}
    return row | {
        "arm": arm,
        "stretch": str(row["stretch"]),  # A number or `auto`.
        "found_stretch": outcome.get("stretch"),
        "suitable_stretch": outcome.get("noise_scale", {}).get("suitable_stretch"),
        **_facts(outcome, command, commit),
    }


def landscape_records(
    measured: dict, flags: dict[str, str], command: str, commit: str
) -> list[dict]:
    """The rows of a landscape, one for each range of distances.

    Args:
        measured: What its `landscape.json` has.
        flags: Its flags, from `read_flags`.
        command: The command that repeats it.
        commit: The commit of the source, if `measured` does not know its own.
    """
    names = ("seed", "model", "dataset", "train_examples", "batch_size")
    shared = dict.fromkeys(COLUMNS) | {
        **{name: _value(name, flags[name]) for name in names},
        **{name: measured[name] for name in ("loss", "weights_norm", "directions")},
        "state": measured["network"].rpartition(", ")[2],
        **_facts(measured, command, commit),
    }
    return [
        shared
        | {
            "arm": distances,
            "alpha": fit["alpha"],
            "alpha_error": fit["error"],
            "alpha_r2": fit["r_squared"],
        }
        for distances, fit in measured["fits"].items()
    ]


def _facts(found, command, commit):
    """The `FACTS` of what was measured. Landscapes of earlier versions know none."""
    versions = found.get("versions", {})
    return {
        "command": command,
        "hardware": hardware(found["hardware"]) if "hardware" in found else UNKNOWN,
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or UNKNOWN,
        "commit": found.get("commit", commit),
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


def rows_by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """For each arm, in the order of the rows, its rows."""
    arms = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """For each arm, in the order of the rows, the outcomes of its trainings."""
    return {arm: [*map(outcome, own)] for arm, own in rows_by_arm(rows).items()}


def write(file: pathlib.Path, rows: list[dict]) -> None:
    """Writes a group's file."""
    text = io.StringIO()
    columns = [
        name
        for name in COLUMNS
        if name not in _SOME or any(row[name] is not None for row in rows)
    ]
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
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
    """All groups in a folder, by the names of their files."""
    return {file.stem: read(file) for file in sorted(folder.glob("*.csv"))}


def _value(name, text):
    if name in _WHOLE + _REAL:
        number = int if name in _WHOLE else float
        return number(text) if text else None
    return text or None


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
