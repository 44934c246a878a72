"""`TracedModels`: models that are traced once, and trained with several seeds."""

import dataclasses

import keras
import tensorflow as tf

from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.resume.model_state import arrays_of, restore
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.model.build_model import build_model, untraced_model
from gbn_keras.training.plan import Plan


class TracedModels:
    """The models of finished trainings, for others that differ in the seed only.

    TensorFlow takes seconds to trace an update and an evaluation, often as long as a
    short training takes. What it traced belongs to the model. So the model trains
    again, after all its variables have become those of a new one, bit for bit.

    It keeps a model for each set of flags, as long as it lives.

    Args:
        strategy: The strategy in whose scope to create models.
        data: The data set that gives the batches.
    """

    def __init__(self, strategy: tf.distribute.Strategy, data: LabelledImages):
        self._strategy, self._data = strategy, data
        self._kept = {}

    def take(self, plan: Plan) -> LargeBatchModel:
        """A model with the variables that `build_model` gives for the plan's seed."""
        model = self._kept.pop(_all_but_the_seed(plan), None)
        if model is None:
            keras.backend.clear_session()
        keras.utils.set_random_seed(plan.settings.seed)
        with self._strategy.scope():
            if model is None:
                return build_model(plan, self._data)
            untrained = arrays_of(untraced_model(plan, self._data))
            restore(model, untrained, "model", "optimizer", "moments", "progress")
        return model

    def give_back(self, plan: Plan, model: LargeBatchModel) -> None:
        """Keeps the model of a finished training."""
        self._kept[_all_but_the_seed(plan)] = model


def _all_but_the_seed(plan):
    return dataclasses.replace(plan.settings, seed=0, run_dir="")
