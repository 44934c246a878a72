"""Reports of run directories: tables, pictures, and a page that holds all of them.

    gbn-report RUN_OR_STUDY...

writes the page, one file of HTML that needs nothing else.
"""

import argparse
import pathlib
import sys

from gbn_keras.training.errors import AllDiverged, UsageError
from gbn_keras.training.report import pictures
from gbn_keras.training.report.comparison import (
    as_shown,
    read_comparison,
    read_metrics,
    weight_distance,
)
from gbn_keras.training.report.page import page
from gbn_keras.training.report.summary import summarize
from gbn_keras.training.run.run_directory import RESULT, read_result, write_whole

PAGE = "report.html"


def report_run(run_dir: pathlib.Path) -> pathlib.Path:
    """Draws the curves of one training; returns the picture's file."""
    if (run_dir / "weight_distance.csv").exists():
        batch_size = read_result(run_dir)["settings"]["batch_size"]
        runs = {f"batch {batch_size}": weight_distance(run_dir)}
        pictures.save(pictures.weight_distance(runs), run_dir, "weight_distance.png")
    return pictures.save(
        pictures.training(read_metrics(run_dir)), run_dir, "training.png"
    )


def report_study(run_dir: pathlib.Path) -> str:
    """Writes a study's `study.csv` and picture; returns its table as text."""
    return _report_comparison(run_dir, "study.csv")


def report_sweep(run_dir: pathlib.Path) -> str:
    """Writes a sweep's `sweep.csv` and pictures; returns its table as text.

    The pictures are the paper's Figures 1 (error by epoch), 3 (error by update) and, if
    the distance of the weights was logged, 2.
    """
    return _report_comparison(run_dir, "sweep.csv")


def _report_comparison(run_dir, name):
    comparison = read_comparison(run_dir)
    table = comparison.table()
    write_whole(run_dir / name, table.to_csv())
    for file, picture in comparison.pictures().items():
        pictures.save(picture, run_dir, file)
    return as_shown(table).to_string()


def stop_if_all_diverged(run_dir: pathlib.Path) -> None:
    """For after a study's, a sweep's or a search's report, which shows what diverged.

    Raises:
        AllDiverged: If none of its trainings is finished.
    """
    if not any(run_dir.glob(f"*/*/{RESULT}")):
        raise AllDiverged(
            "all trainings diverged, so there is nothing to choose or compare. Begin "
            "in another folder with lower learning rates, or with --warmup_updates or "
            "--clipnorm."
        )


def report_page(
    run_dirs: list[pathlib.Path], output: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes one page on run directories of any kind; returns its file.

    Args:
        run_dirs: Of trainings, studies, sweeps, searches or landscapes, finished or
            not.
        output: The file. Default: `report.html` in the run directory, or of several
            in the current folder.

    Raises:
        UsageError: If a directory is none of these, or the file cannot be written.
    """
    summaries = [summarize(run_dir) for run_dir in run_dirs]
    if output is None:
        output = (run_dirs[0] if len(run_dirs) == 1 else pathlib.Path()) / PAGE
    try:
        write_whole(output, page(summaries))
    except OSError as error:
        raise UsageError(
            f"--output: {output} cannot be written ({error.strerror or error}). Name a "
            "file in a folder that can."
        ) from error
    return output


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """A mistake in one line, as all of the program's, without the usage."""
        raise UsageError(f"{message}. --help says what is wanted.")


def main(argv: list[str] | None = None) -> int:
    """Writes the page that the command line asks for; returns the exit code."""
    parser = _Parser(
        prog="gbn-report",
        description="Writes one self-contained HTML page on run directories.",
    )
    parser.add_argument(
        "run_or_study",
        nargs="+",
        type=pathlib.Path,
        help="run directory of a training, study, sweep, search or landscape, finished "
        "or not",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help=f"the page's file; default: {PAGE} in the run directory, or of several in "
        "the current folder",
    )
    try:
        arguments = parser.parse_args(argv)
        print(report_page(arguments.run_or_study, arguments.output))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
