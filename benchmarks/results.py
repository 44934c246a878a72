"""Keeps what was measured, and writes the tables that show it.

    python benchmarks/results.py collect RUN_DIR... --name=NAME
    python benchmarks/results.py keep FILE --name=NAME
    python benchmarks/results.py write
    python benchmarks/results.py draw NAME PICTURE

`collect` reads run directories of trainings, studies, sweeps or landscapes, or the
folder of an experiment's task, and writes `docs/results/NAME.csv` with a row for each
training that has ended. It may be called again when there are more. Experiments are
`table1.py`, `stretch_curve.py`, `as_published.py`, `ghost_size.py` and
`where_it_turns.py`, by their own commands or by `accelerator.py train`. The NAME of one
of the paper's figures is that of its flagfile in `configs/scaled/`.

`keep` takes the file that a benchmark of speed, memory, kills or the theory wrote with
`--json`. The names are those of `result_speed.KEPT`.

`write` needs neither. From `docs/results/` it makes `RESULTS.md` and fills the marked
places of the pages that show a part of it:

    <!-- results: NAME... -->
    <!-- end of results -->

A NAME may be `GROUP:VARIANT`, for the study that `as_published.py` makes of a variant.
If a figure of the paper, or one of the names of `keep`, is not kept yet, its place says
which command measures it.

`draw` makes the picture of an experiment's group, as the experiment's own command does.

`tests/test_results.py` fails if a page is not what `write` makes.
"""

import argparse
import os
import pathlib
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import result_figures
import result_files
import result_runs
import result_speed
import result_tables
import result_theory
import stretch_curve
from matplotlib.figure import Figure

from gbn_keras.training.errors import UsageError
from gbn_keras.training.run import source
from gbn_keras.training.run.run_directory import write_whole

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (
    *("README.md", "docs/results.md", "docs/how_long.md", "docs/speed.md"),
    *("docs/paper.md", "docs/how_it_works.md"),
)
BLOCK = re.compile(r"(<!-- results: (.*?) -->\n).*?(<!-- end of results -->)", re.S)

# The study that tells whether the paper's claim holds: F1 on MNIST, the whole regime.
_FULL = "table1_mnist_50"

# Groups that no experiment makes, by `result_tables.kind_of`, and what is to be run.
_KINDS = {
    "study": ("Studies", ()),
    "sweep": ("Sweeps", result_figures.SWEEPS),
    "landscape": ("Roughness of the loss", result_figures.LANDSCAPES),
    "trainings": ("Single trainings", ()),
}
_HEAD = """\
# All results

{verdict}

`python benchmarks/results.py write` makes this page from
[docs/results](docs/results); nothing in it is typed by hand.
[Results](docs/results.md) says what follows from them, and what is not measured yet.

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

The commit is that of the source when a training began. The program's first trainings
and landscapes did not keep it; theirs is that of the checkout that collected them. A
`-changed` behind it says that the source had changes.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="keep what was measured")
    collect.add_argument("run_dirs", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    collect.add_argument("--name", required=True, type=_name, help="of the file")
    collect.add_argument(
        "--commit",
        help="that of trainings and landscapes that do not know their own; default: "
        "the checkout's",
    )
    keep = commands.add_parser("keep", help="keep what a benchmark's --json wrote")
    keep.add_argument("file", type=pathlib.Path, metavar="FILE")
    keep.add_argument("--name", required=True, choices=result_speed.KEPT)
    commands.add_parser("write", help="write RESULTS.md and the tables of the pages")
    draw = commands.add_parser("draw", help="draw what is kept of an experiment")
    draw.add_argument("name", metavar="NAME")
    draw.add_argument("picture", type=pathlib.Path, metavar="PICTURE")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "collect":
            commit = arguments.commit or source.commit()
            rows = result_runs.collect(arguments.run_dirs, commit)
            file = result_files.FOLDER / f"{arguments.name}.csv"
            result_files.write(file, rows)
            print(f"{file}: {len(rows)} rows")
            print(result_tables.section(rows))
        elif arguments.command == "keep":
            folder = result_files.FOLDER
            print(result_speed.keep(arguments.file, arguments.name, folder))
        elif arguments.command == "draw":
            drawn(arguments.name).savefig(arguments.picture, dpi=150)
        else:
            for name, text in pages().items():
                write_whole(ROOT / name, text)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def drawn(name: str) -> Figure:
    """The picture of a group.

    Raises:
        UsageError: If there is no such group, or if nothing draws it.
    """
    groups = result_files.read_all(result_files.FOLDER)
    found = result_runs.experiment_and_task(groups[name]) if name in groups else None
    if found is None or found[0].picture is None:
        raise UsageError(
            f"NAME: got {name}, wanted a kept group of an experiment that has a "
            f"picture. Groups: {', '.join(groups)}."
        )
    experiment, task = found
    return experiment.picture(result_files.by_arm(groups[name]), task)


def pages() -> dict[str, str]:
    """The text of each page that shows results, by its path from the root."""
    groups = result_files.read_all(result_files.FOLDER)
    speeds = result_speed.read_all(result_files.FOLDER)
    texts = {"RESULTS.md": all_results(groups, speeds)}
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        texts[name] = filled(text, groups, speeds, name)
    return texts


def all_results(groups: dict[str, list[dict]], speeds: dict[str, dict]) -> str:
    """The page with all that is known of each group and of each speed."""
    of_kind = {}
    for name, rows in groups.items():
        of_kind.setdefault(result_tables.kind_of(rows), {})[name] = rows
    full = groups.get(_FULL)
    told = result_tables.verdict(full) if full else "The paper's claim: not run."
    parts = [_HEAD.format(verdict=told)]
    for kind, (heading, wanted) in _KINDS.items():
        if kind in of_kind or wanted:
            parts += [f"## {heading}\n", *_groups(of_kind.get(kind, {}))]
        missing = [name for name in wanted if name not in groups]
        parts += [f"{result_figures.not_run(name)}\n" for name in missing]
    for experiment in result_runs.EXPERIMENTS:
        own = of_kind.get(experiment.script, {})
        parts += [f"## {experiment.heading}\n", *_groups(own)]
        measured = {rows[0]["command"] for rows in own.values()}
        for task in experiment.tasks:
            if not measured & set(experiment.commands(task)):
                parts.append(f"Not run: `{experiment.command(task)}`\n")
    for heading, names in (
        ("The theory", result_theory.SCRIPTS),
        ("Speed, memory and kills", result_speed.SPEED),
    ):
        parts.append(f"## {heading}\n")
        # What is not run comes last, in few lines.
        for name in sorted(names, key=lambda name: name not in speeds):
            parts += [f"### {name}\n"] * (name in speeds)
            parts.append(result_speed.section(name, speeds.get(name)) + "\n")
    return "\n".join(parts)


def _groups(groups):
    """The parts of a page about these groups."""
    for name, rows in groups.items():
        yield f"### {name}: {result_tables.title(rows)}\n"
        yield f"- file: [{name}.csv](docs/results/{name}.csv)"
        yield result_tables.section(rows) + "\n"
        if result_runs.experiment_of(rows):
            yield result_tables.findings(rows) + "\n"
        elif told := result_figures.findings(name, rows):
            yield told + "\n"


def filled(
    text: str, groups: dict[str, list[dict]], speeds: dict[str, dict], page: str
) -> str:
    """A page, with its marked places filled.

    Raises:
        UsageError: If a mark names no group, or groups that no table shows together.
    """

    def block(found):
        begin, names, end = found.groups()
        if names in result_speed.KEPT:
            shown = result_speed.section(names, speeds.get(names))
        else:
            shown = _shown(names, groups, page)
        return f"{begin}\n{shown}\n\n{end}"

    return BLOCK.sub(block, text)


def _shown(names, groups, page):
    """The table that shows the named groups."""
    groups = groups | {
        f"{name}:{variant.replace(' ', '_')}": result_tables.of_variant(rows, variant)
        for name, rows in groups.items()
        for variant in result_tables.variants(rows)
    }
    for figures in (result_figures.SWEEPS, result_figures.LANDSCAPES):
        if set(names.split()) <= set(figures):
            return result_figures.shown(names.split(), groups)
    missing = [name for name in names.split() if name not in groups]
    if missing:
        known = [*groups, *result_speed.KEPT]
        raise UsageError(
            f"{page}: got results of {missing[0]}, wanted some of {', '.join(known)}. "
            "Collect them first."
        )
    wanted = [groups[name] for name in names.split()]
    if all(map(result_tables.is_study, wanted)):
        return result_tables.studies(wanted)
    kinds = set(map(result_tables.kind_of, wanted))
    if len(wanted) > 1 and kinds == {stretch_curve.EXPERIMENT.script}:
        return result_tables.stretches(wanted)
    if len(wanted) > 1:
        raise UsageError(
            f"{page}: got results of {names}, wanted studies only, stretch curves "
            "only, or a single other group. Give each a mark of its own."
        )
    is_experiment = result_runs.experiment_of(wanted[0])
    return (result_tables.findings if is_experiment else result_tables.section)(
        wanted[0]
    )


def _name(text):
    """A file's name without its ending."""
    if not re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted letters, digits and _ only")
    return text


if __name__ == "__main__":
    sys.exit(main())
