"""`run()`: runs one of the program's modes, prints its result, returns an exit code."""

import os
import pathlib
import sys

from gbn_keras.training import study, trainer
from gbn_keras.training.errors import Stopped, UsageError
from gbn_keras.training.forecast import forecast
from gbn_keras.training.report import (
    auto_stretch,
    forecast_report,
    report,
    search_report,
)
from gbn_keras.training.settings import Settings
from gbn_keras.training.strategy import WorkerLost
from gbn_keras.training.trained import evaluation, loss_landscape


def run(settings: Settings) -> int:
    """Runs the mode that the settings name; returns the program's exit code.

    Errors that a user can fix, and early ends, print one line.
    """
    try:
        MODES[settings.mode](settings)
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as error:
        _say_stopped(error)
        if isinstance(error, WorkerLost) or settings.strategy == "multi_worker":
            # At a normal exit, TensorFlow would wait for the other machines.
            os._exit(error.exit_code)
        return error.exit_code
    except OSError as error:  # A full disk, for example.
        place = f"{error.filename}: " if error.filename else ""
        _say_stopped(
            f"{place}{error.strerror or error}. Saved files are kept. Fix the problem, "
            "then run the same command to resume."
        )
        return Stopped.exit_code
    except KeyboardInterrupt:
        _say_stopped("interrupted. Run the same command to resume.")
        return 130
    return 0


def _say_stopped(reason):
    """Prints the reason on its own line, below an unfinished progress bar."""
    sys.stdout.flush()
    print(f"\nstopped: {reason}", file=sys.stderr, flush=True)


# On a cluster, only the chief gets a result to report.


def _train(settings):
    result = trainer.train(settings)
    if not result:
        return
    run_dir = pathlib.Path(result["settings"]["run_dir"])
    report.report_run(run_dir)
    if "stretch" in result:
        print(auto_stretch.found(result))
    if "noise_scale" in result:
        print(result["noise_scale"]["advice"])
    print(
        f"validation accuracy {100 * result['accuracy']:.2f} % after "
        f"{result['updates']:,} updates: {run_dir}"
    )


def _evaluate(settings):
    scores = evaluation.evaluate(settings)
    if scores:
        print(f"validation accuracy {100 * scores['accuracy']:.2f} %")


def _study(settings):
    _report_trainings(study.run_study(settings), report.report_study)


def _sweep(settings):
    _report_trainings(study.run_study(settings), report.report_sweep)


def _tune(settings):
    # keras-tuner takes a second to import, and no other mode needs it.
    from gbn_keras.training.search import tuning

    _report_trainings(tuning.tune(settings), search_report.report_search)


def _landscape(settings):
    print(loss_landscape.measure_landscape(settings))


def _plan(settings):
    print(f"\n{forecast_report.report_forecast(forecast.forecast(settings))}")


def _report_trainings(run_dir, table_of):
    """Prints the table of several trainings; stops if all of them diverged."""
    if run_dir is None:
        return
    print(f"\n{table_of(run_dir)}\n\n{run_dir}", flush=True)
    report.stop_if_all_diverged(run_dir)


# The values of `--mode`.
MODES = {
    "train": _train,
    "evaluate": _evaluate,
    "study": _study,
    "sweep": _sweep,
    "landscape": _landscape,
    "tune": _tune,
    "plan": _plan,
}
