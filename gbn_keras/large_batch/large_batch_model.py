"""`LargeBatchModel`: any batch size, on any backend and devices, in limited memory."""

import keras
from keras import ops

from gbn_keras._keras_internals import (
    build_by_trace,
    compile_loss_of,
    compile_metrics_of,
    layers_of,
)
from gbn_keras.arguments import integer
from gbn_keras.large_batch.backends import Training
from gbn_keras.large_batch.ghost_sizes import refuse_cut_ghosts
from gbn_keras.large_batch.gradient_moments import GradientMoments
from gbn_keras.large_batch.gradient_norm import GradientNorm
from gbn_keras.large_batch.inner_optimizer import (
    adapted_schedule,
    refuse_accumulation,
)
from gbn_keras.large_batch.joined_update import joined_update
from gbn_keras.large_batch.loss_parts import refuse_reductions
from gbn_keras.large_batch.micro_batches import number_of_examples
from gbn_keras.large_batch.replica_step import ReplicaStep
from gbn_keras.large_batch.shares_of_ghosts import micro_batch_of_share
from gbn_keras.large_batch.sums import SeveralCounts
from gbn_keras.replicas import (
    replicas_in_scope,
    sum_over_replicas,
    this_replica,
)


@keras.saving.register_keras_serializable("gbn_keras")
class LargeBatchModel(Training):
    """Trains a model on batches that are too large for one device at once.

    Each replica of the `tf.distribute` strategy, if there is one, takes a share of the
    batch. It cuts its share into contiguous micro-batches, which go through the model
    one after the other. The remainder of a share joins its last micro-batch. So memory
    depends on the micro-batch.

    The gradients of the micro-batches are averaged. One all-reduce sums them over the
    replicas, with everything else that the replicas must agree on. Then there is
    **one** update:

    - The learning-rate schedule, `optimizer.iterations` and callbacks count updates.
    - Loss and metrics are those of the whole batch.
    - Clipping applies to the gradient of the whole batch.

    The update equals that of one device with the whole batch, up to rounding, if
    `GhostBatchNormalization` is the only layer that looks at several examples at once
    and if micro-batches are made of whole ghosts. Running statistics are equal too.
    Plain batch normalization would see micro-batches. A share that is not made of whole
    ghosts must go through at once, without XLA.
    `ShardingInvariantDropout` keeps its masks; other random layers draw new masks for
    each micro-batch.

    A micro-batch has the weight that Keras divides each output's loss by: its number of
    examples, the sum of its sample weights, or what masks leave of it. If this differs
    between losses, a pass without gradients first computes it for the whole batch, with
    an all-reduce of its own. A loss that a layer adds counts as a mean over examples,
    as an activity regularizer's loss is. Losses with the reduction
    `mean_with_sample_weight` are weighted means over batches too, so you can fill up a
    batch with examples of weight 0.

    The model warns about a ghost layer that is called more than once in a pass: its
    running statistics step call by call only within a micro-batch.

    Create the model in the strategy's scope, as any Keras model. On JAX, each
    micro-batch is shared among the devices of a `keras.distribution.DataParallel`; on
    PyTorch, there is one device.

    Example:
    ```python
    model = LargeBatchModel(your_model, micro_batch_size=512)
    model.compile(keras.optimizers.SGD(0.1, 0.9), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=8192)
    your_model.save("model.keras")
    ```

    Args:
        model: Any Keras model: functional, Sequential or subclassed. Both models have
            the same weights.
        micro_batch_size: Number of examples that go through the model at once, a
            multiple of every virtual batch size in it, or a replica's whole share.
        noise_scale: Whether to keep `gradient_moments`, which give the gradient noise
            scale. They need at least two micro-batches or replicas.
        **kwargs: The arguments of `keras.Model`: `name`, `trainable`, and `dtype`,
            which defaults to the model's.

    Attributes:
        gradient_norm: The `GradientNorm`. `float(model.gradient_norm)` is the gradient
            norm of the last update.
        regime_progress: The `RegimeProgress`, if the optimizer's learning rate is a
            `RegimeAdaptation` and the model keeps `gradient_moments`, else `None`. With
            `stretch="auto"` it keeps them, and logs `gain` and `small_batch_updates`.

    Raises:
        ValueError: If `micro_batch_size` is not a positive integer or would split a
            ghost; on JAX, in training, if the devices cannot share it equally; on
            PyTorch, in `compile`, if `jit_compile` is `True`; if `model` has its own
            training step, loss or metrics; in `compile`, if the loss is not a mean over
            examples, or if the optimizer accumulates gradients itself; in training, if
            a loss gives one value per batch or compares examples, if sample weights
            have the wrong axes, or if replicas cut ghosts that they must not cut.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 4,
        arXiv 1705.08741: ghosts are independent of each other until the update.
    """

    def __init__(
        self,
        model: keras.Model,
        micro_batch_size: int,
        noise_scale: bool = False,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.micro_batch_size = integer("micro_batch_size", micro_batch_size, 1)
        if replicas_in_scope() == 1:
            refuse_cut_ghosts(self.micro_batch_size, model)
        self.gradient_norm = GradientNorm()
        self.gradient_moments = GradientMoments() if noise_scale else None
        self._keeps_moments = noise_scale
        self._is_auto, self.regime_progress = False, None

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """Compiles the model, as `keras.Model.compile`."""
        refuse_reductions(keras.tree.flatten(loss))
        self._counts_losses_first = False
        self.must_compile = kwargs.get("jit_compile") is True  # Not by default.
        super().compile(optimizer, loss, **kwargs)
        refuse_accumulation(self.optimizer)
        schedule = adapted_schedule(self.optimizer)
        self._is_auto = bool(schedule and schedule.is_auto)
        self.regime_progress = None
        with self._scope():
            if self._is_auto and not self.gradient_moments:
                self.gradient_moments = GradientMoments()
            if schedule and self.gradient_moments:
                self.regime_progress = schedule.progress
                self.regime_progress.build(self.optimizer.iterations)

    def compile_from_config(self, config):
        """Compiles the model as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store):
        """Saves how far the training has come through the regime, if it measures it."""
        for place, variable in enumerate(self._own_variables()):
            store[str(place)] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Loads what `save_own_variables` saved, if it measures it, too."""
        variables = self._own_variables()
        if variables and len(variables) != len(store.keys()):
            raise ValueError(
                "The file must be of a model compiled with stretch='auto'. Received: "
                f"{len(store.keys())} values of a regime, wanted {len(variables)}."
            )
        for place, variable in enumerate(variables):
            variable.assign(store[str(place)])

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "micro_batch_size": self.micro_batch_size,
            "noise_scale": self._keeps_moments,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**(config | {"model": model}))

    def _through_model(self, data, training):
        """Takes this replica's share through the model and updates all but the weights.

        Returns:
            `(gradients, logs)`, both of the whole batch.
        """
        if not self._is_complete():
            build_by_trace(self, data)
        examples = number_of_examples(data)
        size = micro_batch_of_share(self, training, examples)
        step = ReplicaStep(self, training, size)

        def compiled(function):
            return self._compiled(function, examples) if size else function

        before, (replica, _) = step.values(), this_replica()
        first_example = replica * examples
        loss_scale = ops.ones((), "float32")
        if training:
            loss_scale = self.optimizer.scale_loss(loss_scale)

        def sums_and_totals():
            totals = None
            if training and self._counts_losses_first:
                counts = compiled(step.count)(data, before, first_example)
                totals = sum_over_replicas(counts)
            through_model = compiled(step.through_model)
            return through_model(
                data, before, first_example, loss_scale, totals
            ), totals

        try:
            sums, totals = sums_and_totals()
        except SeveralCounts:
            self._counts_losses_first = True
            sums, totals = sums_and_totals()
        gradients, after, metrics = joined_update(
            step, sums, before, examples, loss_scale, totals
        )
        step.assign(after)
        mapping = zip(step.variables.metrics, metrics, strict=True)
        with keras.StatelessScope(list(mapping)):
            return gradients, self.get_metrics_result()

    def _with_gain(self, logs):
        """The logs of an update, with what it was worth if the model measures it."""
        if not self._is_auto:
            return logs
        progress = self.regime_progress
        # On PyTorch, the next update changes the variable's value in place.
        gain = ops.copy(progress.gain)
        return logs | {"gain": gain, "small_batch_updates": progress.done}

    def _measured(self):
        """The variables of what updates measure, all of them."""
        parts = (self.gradient_norm, self.gradient_moments, self.regime_progress)
        return [variable for part in parts if part for variable in part.variables]

    def _own_variables(self):
        """The variables that are neither the other model's nor the optimizer's."""
        if not self._is_auto:
            return []
        return self.gradient_moments.variables + self.regime_progress.variables

    def _is_complete(self):
        """Whether all variables exist."""
        losses, metrics = compile_loss_of(self), compile_metrics_of(self)
        parts = (self.optimizer, losses, metrics, *layers_of(self))
        return all(part is None or part.built for part in parts)
