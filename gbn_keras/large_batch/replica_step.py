"""`ReplicaStep`: what one replica computes from its share in an update."""

import warnings

import keras
from keras import ops

from gbn_keras._keras_internals import compile_loss_of, layers_of
from gbn_keras.batch_part import BatchPart
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.large_batch.backends import gradients_of
from gbn_keras.large_batch.loss_parts import BY_EXAMPLES, LossParts, counted_losses
from gbn_keras.large_batch.loss_trackers import LossTrackers
from gbn_keras.large_batch.micro_batches import MicroBatches, number_of_examples
from gbn_keras.large_batch.seeds import seeds_at, seeds_of_batches
from gbn_keras.large_batch.squares import (
    add_squares,
    has_two_sizes,
    moments_of,
    no_squares,
)
from gbn_keras.large_batch.sums import Findings, SeveralCounts, Sums, Values, precise
from gbn_keras.replicas import this_replica


class ReplicaStep:
    """Takes a replica's share of a batch through a model, in micro-batches.

    It assigns no variables. Values go in and values come out, so that XLA can compile
    it on any device and a loop can carry the values.

    Args:
        model: A `LargeBatchModel`, built and compiled.
        training: Whether to train or to evaluate.
        micro_batch_size: Number of examples that go through the model at once, or
            `None` for the share: other replicas may hold the rest of its ghosts.

    Attributes:
        variables: The model's variables.
        ghosts: The model's ghost layers.
        trackers: The metrics in which Keras tracks the losses.
        found: What tracing found out, once `through_model` was called.
    """

    def __init__(self, model, training: bool, micro_batch_size: int | None):
        self.model, self.training = model, training
        self.micro_batch_size = micro_batch_size
        state = model.non_trainable_weights
        known = {id(v) for v in model.weights}
        self.variables = Values(
            weights=model.trainable_weights,
            statistics=state,
            seeds=[v for v in model.variables if id(v) not in known],
            metrics=[v for metric in model.metrics for v in metric.variables],
        )
        self._losses = counted_losses(compile_loss_of(model))
        self.trackers = LossTrackers(model, self._losses, self.variables.metrics)
        layers = layers_of(model)
        self.ghosts = [x for x in layers if isinstance(x, GhostBatchNormalization)]
        self._unchanged_seeds = seeds_of_batches(layers)
        self.found = Findings()

    def values(self) -> Values:
        """The current values of the variables."""
        return Values(
            *([ops.stop_gradient(v.value) for v in kind] for kind in self.variables)
        )

    def through_model(
        self, data, before: Values, first_example, loss_scale, totals=None
    ) -> Sums:
        """The sums over all micro-batches.

        Args:
            data: Inputs, labels and sample weights, as a Keras model gets them.
            before: Values of the variables.
            first_example: Place in the batch of the share's first example.
            loss_scale: Factor for the gradients.
            totals: Result of `count`, summed over the replicas; see there.

        Raises:
            SeveralCounts: If `totals` are needed but missing.
        """

        def add(sums, start, micro_batch):
            first = first_example + start
            return self._add(sums, before, first, loss_scale, totals, micro_batch)

        micro_batches = MicroBatches(data, self.micro_batch_size)
        self.found.equal_parts = micro_batches.equal_parts()
        weights = before.weights if self.training else []
        nothing = Sums(
            gradients=[ops.zeros_like(weight) for weight in weights],
            losses=self._no_losses(),
            counts=self._no_losses(),
            statistics=before.statistics,
            kept=[
                ops.ones(x.moving_mean.shape, precise(x.moving_mean))
                for x in self.ghosts
            ],
            seeds=before.seeds,
            metrics=before.metrics,
            moments=ops.zeros((3,), "float32"),
            squares=no_squares(self, weights),
        )
        return micro_batches.reduce(add, nothing)

    def count(self, data, before: Values, first_example):
        """What each loss is a mean over, summed over this share.

        If a mask or sample weights decide this for one loss but not for another, a
        micro-batch's weight depends on the counts of the whole batch. In a graph, masks
        that do not depend on the network cost next to nothing.
        """

        def add(counts, start, micro_batch):
            first = first_example + start
            now = before._replace(seeds=self._seeds(before, first))
            with BatchPart(first, not self.micro_batch_size), self._stateless(now):
                _, _, parts = self._forward(micro_batch)
            return counts + ops.stack(parts.counts)

        micro_batches = MicroBatches(data, self.micro_batch_size)
        return micro_batches.reduce(add, self._no_losses())

    def assign(self, after: Values) -> None:
        """Assigns all values that changed, except the weights."""
        for index in sorted(self.found.moved):
            self.variables.statistics[index].assign(after.statistics[index])
        for kind in ("seeds", "metrics"):
            pairs = zip(
                getattr(self.variables, kind), getattr(after, kind), strict=True
            )
            for variable, value in pairs:
                variable.assign(value)

    def _add(self, sums, before, first_example, loss_scale, totals, micro_batch):
        """The sums with one more micro-batch."""
        seeds = self._seeds(before, first_example)

        def forward(weights):
            now = Values(weights, sums.statistics, seeds, sums.metrics)
            return self._pass(now, first_example, loss_scale, totals, micro_batch)

        if self.training:
            gradients, found = gradients_of(forward, before.weights)
        else:
            gradients, (_, found) = [], forward(before.weights)
        after, means, counts, kept = found
        weight = None
        if totals is None and not self.found.equal_parts:
            # About 1, so that it suits gradients of any precision.
            weight = counts[0] / self.micro_batch_size
        x, _, _ = keras.utils.unpack_x_y_sample_weight(micro_batch)
        return Sums(
            gradients=self._sum(sums.gradients, gradients, weight),
            losses=sums.losses + means * counts,
            counts=sums.counts + counts,
            statistics=after.statistics,
            kept=[
                kept * ops.cast(more, kept.dtype)
                for kept, more in zip(sums.kept, kept, strict=True)
            ],
            # One micro-batch advances the seeds for all.
            seeds=[
                old + (new - used)
                for old, new, used in zip(before.seeds, after.seeds, seeds, strict=True)
            ],
            metrics=self.trackers.kept(sums.metrics, after.metrics),
            moments=sums.moments + moments_of(self, gradients, loss_scale, x, totals),
            squares=add_squares(sums.squares, gradients, x, weight, totals),
        )

    def _pass(self, now, first_example, loss_scale, totals, micro_batch):
        """One micro-batch's pass, with these values of the variables.

        Returns:
            `(loss, (after, means, counts, kept))`: the loss to differentiate, with its
            scale; the values after the pass, without the weights; the losses of a
            `LossParts` and its counts; what each ghost layer keeps of its statistics.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        place = first_example, not self.micro_batch_size
        with BatchPart(*place) as part, self._stateless(now) as scope:
            before = [scope.get_current_value(v) for v in self.variables.statistics]
            predictions, loss, parts = self._forward(micro_batch, totals)
            scaled = loss * ops.cast(loss_scale, loss.dtype)
            self.model.compute_metrics(x, y, predictions, sample_weight=sample_weight)
        after = Values(
            *([scope.get_current_value(v) for v in kind] for kind in self.variables)
        )
        self._note_counts(parts, totals)
        self._note_layers(part)
        pairs = enumerate(zip(before, after.statistics, strict=True))
        self.found.moved.update(place for place, (old, new) in pairs if new is not old)
        kept = [ops.convert_to_tensor(part.kept.get(id(x), 1.0)) for x in self.ghosts]
        found = ops.stack(parts.means), ops.stack(parts.counts), kept
        return scaled, (after._replace(weights=[]), *found)

    def _stateless(self, now: Values):
        """A scope in which the variables have these values."""
        mapping = [
            pair
            for variables, values in zip(self.variables, now, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        return keras.StatelessScope(mapping, collect_losses=True)

    def _forward(self, micro_batch, totals=None):
        """`(predictions, loss, parts)`, with the loss to differentiate."""
        model = self.model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        predictions = model(x, training=self.training)
        with LossParts(number_of_examples(x), totals) as parts:
            losses = []
            if self._losses:
                # On PyTorch, Keras multiplies masks into the weights in place.
                weights = keras.tree.map_structure(_copy, sample_weight)
                weights = model.weights_by_output(predictions, weights)
                losses.append(compile_loss_of(model)(y, predictions, weights))
            added = [keras.ops.sum(loss) for loss in model.losses]
            if added:
                losses.append(parts.take(keras.ops.sum(added)))
            else:
                parts.take_none()
        if not losses:
            raise ValueError("No loss to compute. Provide a `loss` in `compile`.")
        return predictions, sum(losses[1:], losses[0]), parts

    def _seeds(self, before, first_example):
        seeds = zip(self.variables.seeds, before.seeds, strict=True)
        return seeds_at(first_example, seeds, self._unchanged_seeds)

    def _no_losses(self):
        return ops.zeros((len(self._losses) + 1,), "float32")

    def _note_counts(self, parts, totals):
        """Records what the called losses show about the counts."""
        of_outputs = set(parts.kinds[: len(self._losses)])
        self.found.counts_by_weight = [kind[0] for kind in of_outputs] == ["weights"]
        if self.training and totals is None and not self._is_whole():
            # The gradient of a ghost on two replicas contains the losses of both.
            is_cut = self.micro_batch_size is None and parts.kinds[0] != BY_EXAMPLES
            if len(set(parts.kinds)) > 1 or is_cut:
                raise SeveralCounts
            if parts.kinds != [BY_EXAMPLES] * len(parts.kinds):
                self.found.equal_parts = None

    def _note_layers(self, part):
        """Records which ghosts may have no values, and warns of a wrong order."""
        if this_replica()[1] > 1:
            self.found.skipping.update(
                number
                for number, layer in enumerate(self.ghosts)
                if len(getattr(part.kept.get(id(layer)), "shape", ()))
            )
        if part.called_again and not self._is_whole():
            _warn_of_order(part.called_again)

    def _is_whole(self):
        """Whether the batch is one micro-batch on one replica."""
        return self.found.equal_parts == 1 and this_replica()[1] == 1

    def measures_noise(self):
        """Whether to measure noise, and there are gradients of two batch sizes."""
        return self.model.gradient_moments is not None and has_two_sizes(self)

    def _sum(self, sums, gradients, weight):
        found = []
        for index, (total, gradient) in enumerate(zip(sums, gradients, strict=True)):
            if gradient is None:
                self.found.without_gradient.add(index)
            else:
                if weight is not None:
                    gradient = gradient * ops.cast(weight, gradient.dtype)
                total = gradient if self.found.equal_parts == 1 else total + gradient
            found.append(total)
        return found

    def ghost_layer_of(self, index):
        """The index of the ghost layer with this running statistic, or `None`."""
        variable = self.variables.statistics[index]
        for number, layer in enumerate(self.ghosts):
            if variable is layer.moving_mean or variable is layer.moving_variance:
                return number
        return None


def _copy(tensor):
    return None if tensor is None else ops.copy(tensor)


def _warn_of_order(names):
    warnings.warn(
        f"{', '.join(sorted(names))}: called more than once in a pass. In "
        "micro-batches, running statistics step part by part, not call by call, so "
        "they differ slightly from those of the whole batch. The weights do not. Use "
        "one layer per call, or set micro_batch_size to the whole batch.",
        stacklevel=2,
    )
