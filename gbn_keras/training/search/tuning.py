"""`tune()`: searches for the best flags of a training with keras-tuner."""

import contextlib
import dataclasses
import os
import pathlib
import time

import keras_tuner
import pandas as pd
from keras_tuner import oracles
from keras_tuner.engine.base_tuner import BaseTuner

from gbn_keras.training.callbacks.progress import outcome_line
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner, model_name
from gbn_keras.training.run.run_directory import (
    PLAN,
    open_run_directory,
    refuse_other_flags,
    with_run_dir,
    write_whole,
)
from gbn_keras.training.run.tables import TRIALS, best_first, trial_row
from gbn_keras.training.search import search_cluster
from gbn_keras.training.search.budget import (
    HYPERBAND_FACTOR,
    smallest_share,
    within_budget,
)
from gbn_keras.training.search.hypermodel import TrainingHyperModel
from gbn_keras.training.search.search_space import SearchSpace
from gbn_keras.training.settings import Settings
from gbn_keras.training.strategy import strategy_of
from gbn_keras.training.trainer import load_data


def tune(settings: Settings) -> pathlib.Path | None:
    """Searches for the flags with the best validation accuracy.

    The order of the trials depends only on the seed and on earlier results. So an
    interrupted search starts over, but reads the results of finished trials instead of
    repeating them. With keras-tuner's environment variables (`KERASTUNER_TUNER_ID` and
    others), this process is the chief of a search or one of its workers. All of them
    need the same run directory.

    Returns:
        The search's directory, with a row for each trial in `tune.csv`. Workers return
        `None`; only the chief writes the table.

    Raises:
        UsageError: If the settings contradict each other, the data or the directory.
        WorkerLost: If the chief or the last worker is lost.
    """
    role = search_cluster.role()
    if settings.strategy == "multi_worker":
        raise UsageError(
            "--strategy: got multi_worker, wanted one, mirrored or tpu. Each machine "
            "runs its own trials, as a worker of keras-tuner. Use another strategy."
        )
    strategy = strategy_of(settings)
    data = load_data(settings)
    planner = Planner.of(data, strategy)
    settings = with_run_dir(dataclasses.replace(settings, model=model_name(settings)))
    space = SearchSpace(settings.search or (), settings, planner)
    # This reports invalid settings before anything is written.
    share = smallest_share(settings, planner)
    for size in space.batch_sizes:
        one = dataclasses.replace(settings, batch_size=size)
        within_budget(one, planner, share)
    hypermodel = TrainingHyperModel(settings, space, data, planner, verbose=True)
    run_dir = pathlib.Path(settings.run_dir)
    with contextlib.ExitStack() as stack:
        if role != "worker":
            stack.enter_context(open_run_directory(settings))
            print(_describe(settings, data), flush=True)
            write_whole(run_dir / PLAN, _describe(settings, data) + "\n")
        tuner = _Tuner(hypermodel, settings, planner)
        try:
            if role == "worker":

                def search():
                    # The chief has answered, so it has already written the flags.
                    refuse_other_flags(run_dir, settings)
                    tuner.search()

                search_cluster.work(search, run_dir / "workers", settings.lost_after)
                return None
            if role == "chief":
                search_cluster.serve(
                    tuner.search, tuner.oracle, run_dir / "workers", settings.lost_after
                )
            else:
                tuner.search()
        except keras_tuner.errors.FatalError as error:
            raise error.__cause__ from None
        write_whole(run_dir / TRIALS, tuner.table().to_csv(index=False))
    return run_dir


class _Tuner(BaseTuner):
    """Runs the trials that keras-tuner's oracles propose."""

    def __init__(self, hypermodel, settings, planner):
        hyperparameters = keras_tuner.HyperParameters()
        hypermodel.declare_hyperparameters(hyperparameters)
        oracle = _oracle(settings, hyperparameters, planner)
        oracle.verbose = 0
        # The hyperparameters are declared already. Without a hypermodel, keras-tuner
        # does not build a network to find them. A resumed search does not need
        # keras-tuner's own files, which a kill can leave half written.
        super().__init__(
            oracle,
            directory=os.path.join(settings.run_dir, "keras_tuner"),
            project_name=os.environ.get("KERASTUNER_TUNER_ID", "alone"),
            overwrite=True,
        )
        self._hypermodel = hypermodel
        self._proposals = oracle

    def pre_create_trial(self):
        """Waits a moment, because the next trial may depend on another worker's."""
        time.sleep(0.1)

    def run_trial(self, trial, *args, **kwargs):
        """Trains with the trial's hyperparameters."""
        hp = trial.hyperparameters
        values = ", ".join(
            f"{name.partition(' at ')[0]} {value:.4g}"
            if isinstance(value, float)
            else f"{name.partition(' at ')[0]} {value}"
            for name, value in hp.values.items()
            if not name.startswith("tuner/") or name == "tuner/epochs"
        )
        print(f"\ntrial {int(trial.trial_id) + 1}: {values}", flush=True)
        try:
            scores = self._hypermodel.fit(hp)
            outcome = self._hypermodel.outcome(hp)
        except Exception as error:
            # keras-tuner would count the trial as failed, and continue.
            raise keras_tuner.errors.FatalError from error
        print(outcome_line(outcome), flush=True)
        return scores

    def table(self) -> pd.DataFrame:
        """The trials, the best first; of equal ones, the one with the fewest samples.

        The columns are `trial`, one for each searched flag, `accuracy` (percent),
        `updates`, `samples`, `wall_seconds` and `run_dir`. Diverged trials come last,
        without accuracy, and `diverged_at` has their last update.
        """
        rows = []
        for trial in self._proposals.trials.values():
            settings = self._hypermodel.settings(trial.hyperparameters)
            outcome = self._hypermodel.outcome(trial.hyperparameters)
            names = self._hypermodel.searched
            if "tuner/epochs" in trial.hyperparameters.values:
                names += ("epochs",)
            row = trial_row(outcome, names, settings.run_dir)
            rows.append({"trial": int(trial.trial_id) + 1, **row})
        return best_first(pd.DataFrame(rows))


def _oracle(settings, hyperparameters, planner):
    shared = {
        "objective": keras_tuner.Objective("val_accuracy", "max"),
        "hyperparameters": hyperparameters,
        "allow_new_entries": False,
        # keras-tuner takes 0 for no seed, and draws one.
        "seed": settings.seed + 1,
        # Only trials of lost workers are run again.
        "max_retries_per_trial": 100,
    }
    if settings.tuner == "hyperband":
        epochs = planner.regime(settings).epochs
        oracle = search_cluster.that_keeps_workers(oracles.HyperbandOracle)
        return oracle(max_epochs=epochs, factor=HYPERBAND_FACTOR, **shared)
    oracle = {
        "random": oracles.RandomSearchOracle,
        "bayesian": oracles.BayesianOptimizationOracle,
        "grid": oracles.GridSearchOracle,
    }[settings.tuner]
    oracle = search_cluster.that_keeps_workers(oracle)
    return oracle(max_trials=settings.trials, **shared)


def _describe(settings, data):
    """What all trials have in common, in lines."""
    searched = " ".join(settings.search)
    if settings.trial_updates:
        length = f"at most {settings.trial_updates:,} updates each"
    elif settings.trial_samples:
        length = f"at most {settings.trial_samples:,} samples each"
    else:
        length = "each its whole regime"
    trials = "" if settings.tuner == "hyperband" else f"{settings.trials} "
    lines = [f"data: {data.choice}"] if data.choice else []
    lines.append(f"{settings.tuner} search, {trials}trials, {length}: {searched}")
    if data.validation_split.startswith("test"):
        lines.append(
            "compared on the test split, which then tells nothing new of the best: "
            "hold out others, --train_split=train[:90%] --validation_split=train[90%:]"
        )
    return "\n".join(lines)
