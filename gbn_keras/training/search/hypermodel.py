"""`TrainingHyperModel`: the trainings of a search, for any keras-tuner tuner."""

import contextlib
import dataclasses
import os
import pathlib

import keras_tuner

from gbn_keras.training.callbacks.progress import RunProgress
from gbn_keras.training.errors import NotFinite
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.run.run_directory import digest, read_outcome
from gbn_keras.training.search.budget import within_budget
from gbn_keras.training.search.search_space import SearchSpace
from gbn_keras.training.settings import Settings
from gbn_keras.training.trainer import train

# The accuracy that keras-tuner gets for a diverged trial, less than any other. Without
# a number, it would run the trial again, and end the search after three of them.
_WORST = 0.0


class TrainingHyperModel(keras_tuner.HyperModel):
    """The trainings of a search, for any keras-tuner tuner.

    The objective is `val_accuracy`. Every training writes a run directory, named after
    its settings. A finished training is not run again.

    Args:
        settings: Settings of all trainings. `trial_updates` and `trial_samples` limit
            each training. A longer regime is shortened as a whole, so that its rate
            falls as planned.
        space: Values that the search varies.
        data: Data set.
        planner: Planner of the trainings.
        verbose: Whether to show progress.
    """

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        data,
        planner: Planner,
        verbose: bool = False,
    ):
        super().__init__()
        self._settings, self._space, self._data = settings, space, data
        self._planner, self._verbose = planner, verbose

    @property
    def searched(self) -> tuple[str, ...]:
        """The names of the flags that the search varies."""
        return tuple(self._space.flags)

    def declare_hyperparameters(self, hp):
        """Declares the search space."""
        self._space.declare(hp)

    def settings(self, hp: keras_tuner.HyperParameters) -> Settings:
        """The settings of one training.

        Hyperband's epochs are those of the small batch, like `--epochs`. The stretch
        and the batch size apply to them, and the budget shrinks in proportion.
        """
        settings = self._space.settings(hp)
        epochs = hp.values.get("tuner/epochs")
        share = 1.0
        if epochs:
            share = epochs / self._planner.regime(settings).epochs
            settings = dataclasses.replace(settings, epochs=epochs)
        settings = within_budget(settings, self._planner, share)
        settings = dataclasses.replace(
            settings, mode="train", search=(), trial_updates=0, trial_samples=0
        )
        folder = pathlib.Path(self._settings.run_dir) / "trials" / digest(settings)
        return dataclasses.replace(settings, run_dir=os.fspath(folder))

    def build(self, hp):
        """The network, compiled."""
        self.declare_hyperparameters(hp)
        plan = self._planner.plan(self.settings(hp))
        return build_model(plan, self._data)

    def fit(self, hp, model=None, *args, **kwargs):
        """Trains, and returns the final validation accuracy and loss.

        The run builds its own network, from its seed. If it diverges, it has neither,
        and its accuracy counts as 0.
        """
        outcome = self.outcome(hp)
        if outcome is None:
            settings = self.settings(hp)
            progress = RunProgress.of(self._planner.plan(settings))
            callbacks = (progress,) if self._verbose else ()
            with contextlib.suppress(NotFinite), contextlib.closing(progress):
                train(settings, self._data, callbacks, verbose=0)
            outcome = self.outcome(hp)
        if "diverged" in outcome:
            return {"val_accuracy": _WORST}
        return {"val_accuracy": outcome["accuracy"], "val_loss": outcome["loss"]}

    def outcome(self, hp: keras_tuner.HyperParameters) -> dict | None:
        """The outcome of the training, from `read_outcome`."""
        return read_outcome(pathlib.Path(self.settings(hp).run_dir))
