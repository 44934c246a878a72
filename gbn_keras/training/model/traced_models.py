"""`TracedModels`: models that are traced once, and trained several times."""

import collections
import dataclasses
from collections.abc import Iterable

import keras
import tensorflow as tf

from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.resume.model_state import arrays_of, restore
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.model.build_model import (
    build_model,
    is_long_enough_for_xla,
    untraced_model,
)
from gbn_keras.training.model.variable_rate import VariableRate, rate_to_follow
from gbn_keras.training.plan import Plan


class TracedModels:
    """The models of finished trainings, for others that can use what they traced.

    TensorFlow takes seconds to trace an update and an evaluation, often as long as a
    short training takes. What it traced belongs to the model. So the model trains
    again, after all its variables have become those of a new one, bit for bit.

    Trainings are alike if they differ in the seed only, or in how they scale and
    stretch the rate: of a study's arms, `LB` and `+LR` are alike, and `+GBN` and `+RA`
    (see `VariableRate`).

    It keeps a model as long as a planned training can use it.

    Args:
        strategy: The strategy in whose scope to create models.
        data: The data set that gives the batches.
        plans: The trainings that will take a model, in any order. Each counts once.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        data: LabelledImages,
        plans: Iterable[Plan] = (),
    ):
        self._strategy, self._data = strategy, data
        self._to_come = collections.Counter(map(_kind, plans))
        self._kept, self._built = {}, 0

    def take(self, plan: Plan) -> LargeBatchModel:
        """A model with the variables that `build_model` gives for the plan's seed.

        If a `VariableRate` can, it gives the optimizer the plan's rates.
        """
        kind = _kind(plan)
        self._to_come[kind] -= 1
        model = self._kept.pop(kind, None)
        if model is None:
            self._clear_session()
        keras.utils.set_random_seed(plan.settings.seed)
        with self._strategy.scope():
            if model is None:
                model = build_model(plan, self._data)
                if VariableRate.fits(plan):
                    model.optimizer.learning_rate = VariableRate(plan)
                return model
            untrained = arrays_of(untraced_model(plan, self._data))
            restore(model, untrained, "model", "optimizer", "moments", "progress")
            if rate := rate_to_follow(model.optimizer):
                rate.follow(plan)
        return model

    def give_back(self, plan: Plan, model: LargeBatchModel) -> None:
        """Keeps the model of a finished training, if another one will take it."""
        kind = _kind(plan)
        if self._to_come[kind] > 0:
            self._kept[kind] = model

    def _clear_session(self):
        """Resets Keras's names, and frees models of which nothing is left to train.

        To look for these takes as long as a few updates.
        """
        is_all_kept = self._kept and len(self._kept) == self._built
        keras.backend.clear_session(free_memory=not is_all_kept)
        self._built += 1


def _kind(plan):
    """What the traced functions of a training, and its variables' shapes, depend on."""
    settings = dataclasses.replace(plan.settings, seed=0, run_dir="")
    if not VariableRate.fits(plan):
        return settings
    alike = dataclasses.replace(settings, lr_scaling="", stretch="", eval_every=0)
    # Adam's values follow from the stretch, and XLA may from the number of updates.
    return alike, plan.adam, is_long_enough_for_xla(plan)
