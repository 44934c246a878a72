"""Reports on run directories: tables, pictures, and an HTML page with all of them.

    gbn-report RUN_OR_STUDY...

This command writes the page. It is a single file, which needs nothing else.
"""

import argparse
import pathlib
import sys

from gbn_keras.training.errors import AllDiverged, UsageError
from gbn_keras.training.report import pictures
from gbn_keras.training.report.comparison import (
    WEIGHT_DISTANCE,
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
    """Draws the curves of one training; returns the file of the picture."""
    if (run_dir / WEIGHT_DISTANCE).exists():
        batch_size = read_result(run_dir)["settings"]["batch_size"]
        runs = {f"batch {batch_size}": weight_distance(run_dir)}
        pictures.save(pictures.weight_distance(runs), run_dir, "weight_distance.png")
    return pictures.save(
        pictures.training(read_metrics(run_dir)), run_dir, "training.png"
    )


def report_study(run_dir: pathlib.Path) -> str:
    """Writes `study.csv` and the picture of a study; returns its table as text."""
    return _report_comparison(run_dir, "study.csv")


def report_sweep(run_dir: pathlib.Path) -> str:
    """Writes `sweep.csv` and the pictures of a sweep; returns its table as text.

    The pictures are the paper's Figure 1 (error by epoch), Figure 3 (error by update)
    and, if the distance of the weights was logged, Figure 2.
    """
    return _report_comparison(run_dir, "sweep.csv")


def _report_comparison(run_dir, name):
    # It takes half a second to import, and the page has no need.
    import pandas as pd

    comparison = read_comparison(run_dir)
    table = comparison.table()
    rows = pd.DataFrame.from_dict(table, orient="index").rename_axis("arm")
    if "diverged_at" in rows:
        rows["diverged_at"] = rows["diverged_at"].astype("Int64")
    write_whole(run_dir / name, rows.to_csv())
    for file, picture in comparison.pictures().items():
        pictures.save(picture, run_dir, file)
    return pd.DataFrame.from_dict(as_shown(table), orient="index").to_string()


def stop_if_all_diverged(run_dir: pathlib.Path) -> None:
    """Stops the program if all trainings of a study, sweep or search diverged.

    Call it after the report, which shows what diverged.

    Raises:
        AllDiverged: If no training is finished.
    """
    if not any(run_dir.glob(f"*/*/{RESULT}")):
        raise AllDiverged(
            "all trainings diverged, so there is nothing to choose or compare. Start "
            "again in another folder with lower learning rates, --warmup_updates or "
            "--clipnorm."
        )


def report_page(
    run_dirs: list[pathlib.Path], output: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes one page on run directories of any kind; returns its file.

    Args:
        run_dirs: Run directories of trainings, studies, sweeps, searches or landscapes,
            finished or not.
        output: File to write. Default: `report.html` in the run directory, or in the
            current folder if there are several.

    Raises:
        UsageError: If a folder is not a run directory, or the file cannot be written.
    """
    summaries = [summarize(run_dir) for run_dir in run_dirs]
    if output is None:
        output = (run_dirs[0] if len(run_dirs) == 1 else pathlib.Path()) / PAGE
    try:
        write_whole(output, page(summaries))
    except OSError as error:
        raise UsageError(
            f"--output: {output} cannot be written ({error.strerror or error}). Name a "
            "file in a folder that you can write to."
        ) from error
    return output


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Reports a mistake in one line, like train.py, without the usage."""
        raise UsageError(f"{message}. See --help.")


def main(argv: list[str] | None = None) -> int:
    """Writes the page that the command line names; returns the exit code."""
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
        help=f"file to write; default: {PAGE} in the run directory, or in the current "
        "folder if there are several",
    )
    try:
        arguments = parser.parse_args(argv)
        print(report_page(arguments.run_or_study, arguments.output))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
