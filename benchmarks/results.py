"""Keeps what was measured, and writes the tables that show it.

    python benchmarks/results.py collect RUN_DIR... --name=NAME
    python benchmarks/results.py write

`collect` reads run directories of trainings, studies or sweeps, or the folders of
`stretch_curve.py`, and writes `docs/results/NAME.csv` with a row for each training that
has ended. It may be called again when there are more. A run directory does not say
which commit made it, so `collect` takes that of the checkout, if there is no
`--commit`.

`write` needs no run directory. From `docs/results/` it makes `RESULTS.md` and fills the
marked places of the pages that show a part of it:

    <!-- results: NAME... -->
    <!-- end of results -->

`tests/test_results.py` fails if a page is not what `write` makes.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import result_files
import result_runs
import result_tables

from gbn_keras.training.errors import UsageError
from gbn_keras.training.run.run_directory import write_whole

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("README.md", "docs/results.md", "docs/how_long.md")
BLOCK = re.compile(r"(<!-- results: (.*?) -->\n).*?(<!-- end of results -->)", re.S)

# What a training depends on.
_SOURCE = ("gbn_keras", "gbn_train.py", "train.py", "configs")
_KINDS = {
    "study": "Studies",
    "sweep": "Sweeps",
    "trainings": "Single trainings",
    "stretch curve": "Stretch curves",
}
_HEAD = """\
# All results

`python benchmarks/results.py write` makes this page from
[docs/results](docs/results); nothing in it is typed by hand.
[Results](docs/results.md) says what the rows mean, and which ones are still to be
measured.

| column | meaning |
|---|---|
| batch | batch size |
| accuracy % | validation accuracy: mean over the seeds ± their standard deviation |
| 95 % interval | of the mean, by Student's t, which knows no limit of 100 |
| paper % | the paper's accuracy for this network and data set, in its own regime |
| diverged | seeds that diverged; the other columns leave them out |
| stretch | how many times more epochs than the small batch's regime |
| advised | the stretch that `--noise_scale` advises at the end |
| updates, samples, seconds | mean of a training; seconds on a machine with other work |

The commit is that of the checkout that collected the trainings. A `-changed` behind it
says that the source had changes.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="keep what was measured")
    collect.add_argument("run_dirs", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    collect.add_argument("--name", required=True, type=_name, help="of the file")
    collect.add_argument("--commit", help="that made the runs; default: the checkout's")
    commands.add_parser("write", help="write RESULTS.md and the tables of the pages")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "collect":
            commit = arguments.commit or commit_of_checkout()
            rows = result_runs.collect(arguments.run_dirs, commit)
            file = result_files.FOLDER / f"{arguments.name}.csv"
            result_files.write(file, rows)
            print(f"{file}: {len(rows)} trainings")
            print(result_tables.section(rows))
        else:
            for name, text in pages().items():
                write_whole(ROOT / name, text)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def commit_of_checkout() -> str:
    """The commit of the source, with `-changed` behind it if files have changed."""

    def git(*words):
        command = ["git", "-C", ROOT, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True)

    try:
        commit = git("rev-parse", "HEAD").stdout.strip()
        changed = git("status", "--porcelain", "--", *_SOURCE).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            "--commit: got none, wanted the commit that made the runs, because git "
            "does not know that of this folder. Set it."
        ) from error
    return f"{commit}-changed" if changed else commit


def pages() -> dict[str, str]:
    """The text of each page that shows results, by its path from the root."""
    groups = result_files.read_all(result_files.FOLDER)
    texts = {"RESULTS.md": all_results(groups)}
    for name in PAGES:
        texts[name] = filled((ROOT / name).read_text(encoding="utf-8"), groups, name)
    return texts


def all_results(groups: dict[str, list[dict]]) -> str:
    """The page with all that is known of each group."""
    parts = [_HEAD]
    for kind, heading in _KINDS.items():
        named = {
            name: rows
            for name, rows in groups.items()
            if result_tables.kind_of(rows) == kind
        }
        parts += [f"## {heading}\n"] * bool(named)
        for name, rows in named.items():
            parts.append(f"### {name}: {result_tables.title(rows)}\n")
            parts.append(f"- file: [{name}.csv](docs/results/{name}.csv)")
            parts.append(result_tables.section(rows) + "\n")
    return "\n".join(parts)


def filled(text: str, groups: dict[str, list[dict]], page: str) -> str:
    """A page, with its marked places filled.

    Raises:
        UsageError: If a mark names no group, or groups that no table shows together.
    """

    def table(found):
        begin, names, end = found.groups()
        missing = [name for name in names.split() if name not in groups]
        if missing:
            raise UsageError(
                f"{page}: got results of {missing[0]}, wanted some of "
                f"{', '.join(groups) or 'none'}. Collect them first."
            )
        wanted = [groups[name] for name in names.split()]
        kinds = {result_tables.kind_of(rows) for rows in wanted}
        if kinds == {"study"}:
            shown = result_tables.studies(wanted)
        elif len(wanted) == 1:
            is_curve = kinds == {"stretch curve"}
            show = result_tables.stretches if is_curve else result_tables.section
            shown = show(wanted[0])
        else:
            raise UsageError(
                f"{page}: got results of {names}, wanted studies only, or a single "
                "other group. Give each a mark of its own."
            )
        return f"{begin}\n{shown}\n\n{end}"

    return BLOCK.sub(table, text)


def _name(text):
    """A file's name without its ending."""
    if not re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted letters, digits and _ only")
    return text


if __name__ == "__main__":
    sys.exit(main())
