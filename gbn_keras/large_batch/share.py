"""`Share`: what one replica computes of an update, and how the replicas join it."""

import warnings
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gbn_keras import shard
from gbn_keras._keras_internals import compile_loss_of, layers_of
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.large_batch.loss_parts import BY_EXAMPLES, LossParts, counted_losses
from gbn_keras.large_batch.loss_trackers import LossTrackers
from gbn_keras.large_batch.micro_batches import MicroBatches, number_of_examples
from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout

# Makes other seeds of one, by the place of a micro-batch in the batch.
_SEED_STRIDE = 1_000_003


class Values(NamedTuple):
    """One list of tensors for each kind of a model's variables, or the variables."""

    weights: list
    statistics: list
    seeds: list
    metrics: list


class Sums(NamedTuple):
    """What goes from micro-batch to micro-batch.

    `gradients` are weighted sums, as `losses` are, each by its own of the `counts`: the
    outputs' losses, then those that layers add. Of the old running statistics, the new
    ones of a ghost layer hold the share `kept`. `moments` are sums over micro-batches
    of their gradients' squared norms, of 1 / their sizes, and of 1.
    """

    gradients: list
    losses: Any
    counts: Any
    statistics: list
    kept: list
    seeds: list
    metrics: list
    moments: Any


class SeveralCounts(Exception):
    """The losses of a batch are means over different things, see `Share.count`."""


class Share:
    """A replica's share of a batch, which goes through a model in micro-batches.

    Nothing here assigns a variable: values go in, values come out, so that XLA can
    compile it on any device and a loop can carry it.

    Args:
        model: A `LargeBatchModel`, built and compiled.
        training: Whether to train or to evaluate.
        micro_batch_size: Number of examples that go through the model at once.
    """

    def __init__(self, model, training: bool, micro_batch_size: int):
        self._model, self._training = model, training
        self._micro_batch_size = micro_batch_size
        state = model.non_trainable_weights
        known = {id(v) for v in model.weights}
        self.variables = Values(
            weights=model.trainable_weights,
            statistics=state,
            seeds=[v for v in model.variables if id(v) not in known],
            metrics=model.metrics_variables,
        )
        self._losses = counted_losses(compile_loss_of(model))
        self._trackers = LossTrackers(model, self._losses, self.variables.metrics)
        layers = layers_of(model)
        self._ghosts = [x for x in layers if isinstance(x, GhostBatchNormalization)]
        # Their masks know the place of an example: one seed for the whole batch.
        self._same_seed = {
            id(layer.seed_generator.state)
            for layer in layers
            if isinstance(layer, ShardingInvariantDropout) and layer.rate
        }
        # Found while the model is traced.
        self._without_gradient, self._moved = set(), set()
        # Ghost layers whose ghosts may have no values, on one replica or another.
        self._skipping = set()
        self._equal_parts, self._counts_by_weight = None, False

    def values(self) -> Values:
        """What the variables hold."""
        return Values(
            *([tf.convert_to_tensor(v.value) for v in kind] for kind in self.variables)
        )

    def through_model(
        self, data, before: Values, first_example, loss_scale, totals=None
    ) -> Sums:
        """The sums over all micro-batches.

        Args:
            data: Inputs, labels and sample weights, as a Keras model gets them.
            before: The variables' values.
            first_example: The place in the batch of the share's first example.
            loss_scale: A factor for the gradients.
            totals: What `count` gives, summed over the replicas; see there.

        Raises:
            SeveralCounts: If it takes `totals`.
        """

        def add(sums, start, micro_batch):
            first = first_example + start
            return self._add(sums, before, first, loss_scale, totals, micro_batch)

        weights = before.weights if self._training else []
        nothing = Sums(
            gradients=[tf.zeros_like(weight) for weight in weights],
            losses=self._no_losses(),
            counts=self._no_losses(),
            statistics=before.statistics,
            kept=[
                tf.ones(x.moving_mean.shape, _precise(x.moving_mean))
                for x in self._ghosts
            ],
            seeds=before.seeds,
            metrics=before.metrics,
            moments=tf.zeros([3]),
        )
        self._equal_parts = self._count_equal_parts(data)
        return MicroBatches(data, self._micro_batch_size).reduce(add, nothing)

    def count(self, data, before: Values, first_example):
        """What each loss is a mean over, in this share.

        Where a mask or sample weights decide that for one loss but not for another, a
        micro-batch cannot be weighed before the whole batch's are known. In a graph,
        masks that do not depend on the network cost next to nothing.
        """

        def add(counts, start, micro_batch):
            first = first_example + start
            now = before._replace(seeds=self._seeds(before, first))
            with shard.Shard(first), self._stateless(now):
                _, _, parts = self._forward(micro_batch)
            return counts + tf.stack(parts.counts)

        micro_batches = MicroBatches(data, self._micro_batch_size)
        return micro_batches.reduce(add, self._no_losses())

    def join(self, sums: Sums, before: Values, examples, loss_scale, totals=None):
        """What the replicas agree on, in one all-reduce.

        Returns:
            `(gradients, after, metrics)`: the gradients of the mean loss over the whole
            batch; the values to assign; the metrics' values over all replicas. Of the
            metrics' values to assign Keras takes the sum over the replicas, so the
            first one gets all of them: then the sum does not depend on how it came
            about, which a training that goes on could not know.
        """
        used = [
            gradient
            for index, gradient in enumerate(sums.gradients)
            if index not in self._without_gradient
        ]
        moved = {
            index: self._addend(index, sums, before)
            for index in sorted(self._moved)
            if sums.statistics[index].dtype.is_floating
        }
        kept = {number: shard.row_of(sums.kept[number]) for number in self._skipping}
        examples = tf.cast(examples, tf.float32)
        addends = (
            *(used, list(moved.values()), kept, sums.metrics),
            *(sums.losses, sums.counts, examples, sums.moments),
        )
        used, joined, kept, metrics, losses, counts, total, moments = (
            shard.sum_over_replicas(addends)
        )
        if self._training:
            shard.refuse_uneven_shares(examples, total)
        losses = tf.math.divide_no_nan(losses, counts)
        # Where batches are filled up, their sizes tell nothing.
        size = counts[0] if self._counts_by_weight else total
        metrics = self._trackers.updated(metrics, losses, size)
        if totals is not None:
            weight = 1
        elif self._equal_parts:
            weight = self._equal_parts * shard.this_replica()[1]
        else:
            weight = counts[0] / self._micro_batch_size
        used = iter(used)
        gradients = [
            None if index in self._without_gradient else _divide(next(used), weight)
            for index in range(len(sums.gradients))
        ]
        statistics = list(sums.statistics)
        for index, value in zip(moved, joined, strict=True):
            number = self._ghost_layer_of(index)
            if number in kept:
                value = shard.in_order(before.statistics[index], kept[number], value)
            statistics[index] = value
        is_first = tf.equal(shard.this_replica()[0], 0)
        held = [tf.where(is_first, value, tf.zeros_like(value)) for value in metrics]
        after = Values([], statistics, sums.seeds, held)
        if self._training:
            self._model.gradient_norm.update(gradients, loss_scale)
        if self._measures_noise():
            small_square, small_inverse, number = tf.unstack(moments)
            self._model.gradient_moments.update(
                small_square / number,
                small_inverse / number,
                _squared_norm(gradients, loss_scale),
                1 / total,
            )
        return gradients, after, metrics

    def assign(self, after: Values) -> None:
        """Assigns what moved, the weights aside."""
        for index in sorted(self._moved):
            self.variables.statistics[index].assign(after.statistics[index])
        for kind in ("seeds", "metrics"):
            pairs = zip(
                getattr(self.variables, kind), getattr(after, kind), strict=True
            )
            for variable, value in pairs:
                variable.assign(value)

    def _add(self, sums, before, first_example, loss_scale, totals, micro_batch):
        """The sums with one more micro-batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        weights = [tf.identity(weight) for weight in before.weights]
        seeds = self._seeds(before, first_example)
        now = Values(weights, sums.statistics, seeds, sums.metrics)
        with (
            shard.Shard(first_example) as part,
            self._stateless(now) as scope,
            tf.GradientTape() as tape,
        ):
            tape.watch(weights)
            predictions, loss, parts = self._forward(micro_batch, totals)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
            self._model.compute_metrics(x, y, predictions, sample_weight=sample_weight)
        self._note_counts(parts, totals)
        if shard.this_replica()[1] > 1:
            self._skipping.update(
                number
                for number, layer in enumerate(self._ghosts)
                if len(getattr(part.kept.get(id(layer)), "shape", ()))
            )
        if part.called_again and not self._is_whole():
            _warn_of_order(part.called_again)
        gradients = tape.gradient(scaled, weights) if self._training else []
        after = Values(*(map(scope.get_current_value, v) for v in self.variables))
        statistics = list(after.statistics)
        self._moved.update(
            index
            for index, value in enumerate(statistics)
            if value is not sums.statistics[index]
        )
        counts = tf.stack(parts.counts)
        weight = None
        if totals is None and not self._equal_parts:
            # Of about one, whatever the precision of the gradients.
            weight = counts[0] / self._micro_batch_size
        return Sums(
            gradients=self._sum(sums.gradients, gradients, weight),
            losses=sums.losses + tf.stack(parts.means) * counts,
            counts=sums.counts + counts,
            statistics=statistics,
            kept=[
                kept * tf.cast(part.kept.get(id(layer), 1.0), kept.dtype)
                for kept, layer in zip(sums.kept, self._ghosts, strict=True)
            ],
            # As far as one micro-batch, which draws for all.
            seeds=[
                old + (new - used)
                for old, new, used in zip(before.seeds, after.seeds, seeds, strict=True)
            ],
            metrics=self._trackers.kept(sums.metrics, after.metrics),
            moments=sums.moments + self._moments(gradients, loss_scale, x, totals),
        )

    def _stateless(self, now: Values):
        """A scope in which the variables have these values."""
        mapping = [
            pair
            for variables, values in zip(self.variables, now, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        return keras.StatelessScope(mapping, collect_losses=True)

    def _forward(self, micro_batch, totals=None):
        """`(predictions, loss, parts)`, the loss as the gradient needs it."""
        model = self._model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        predictions = model(x, training=self._training)
        with LossParts(number_of_examples(x), totals) as parts:
            losses = []
            if self._losses:
                weights = model.weights_by_output(predictions, sample_weight)
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
        return [
            seed if id(variable) in self._same_seed else _seed_of(seed, first_example)
            for variable, seed in zip(self.variables.seeds, before.seeds, strict=True)
        ]

    def _no_losses(self):
        return tf.zeros([len(self._losses) + 1])

    def _note_counts(self, parts, totals):
        """What there is to know about the counts, once the losses have been called."""
        of_outputs = set(parts.kinds[: len(self._losses)])
        self._counts_by_weight = [kind[0] for kind in of_outputs] == ["weights"]
        if self._training and totals is None and not self._is_whole():
            if len(set(parts.kinds)) > 1:
                raise SeveralCounts
            if parts.kinds != [BY_EXAMPLES] * len(parts.kinds):
                self._equal_parts = None

    def _is_whole(self):
        """Whether the batch is a single micro-batch of a single replica."""
        return self._equal_parts == 1 and shard.this_replica()[1] == 1

    def _measures_noise(self):
        """Whether there are gradients of two batch sizes, and a wish to know them."""
        if not self._training or self._model.gradient_moments is None:
            return False
        return self._equal_parts != 1 or shard.this_replica()[1] > 1

    def _moments(self, gradients, loss_scale, x, totals):
        if not self._measures_noise():
            return tf.zeros([3])
        square = _squared_norm(gradients, loss_scale)
        examples = tf.cast(number_of_examples(x), tf.float32)
        if totals is not None:  # Of a part of the whole batch's gradient.
            square *= (totals[-1] / examples) ** 2
        return tf.stack([square, 1 / examples, 1.0])

    def _count_equal_parts(self, data):
        """The number of micro-batches, if they have as many examples each."""
        examples, size = number_of_examples(data), self._micro_batch_size
        if isinstance(examples, int):
            if examples < 2 * size:  # What remains joins the only one.
                return 1
            if examples % size == 0:
                return examples // size
        return None

    def _sum(self, sums, gradients, weight):
        found = []
        for index, (total, gradient) in enumerate(zip(sums, gradients, strict=True)):
            if gradient is None:
                self._without_gradient.add(index)
            else:
                # The rows that an embedding looked up, say: a loop cannot carry them.
                gradient = tf.convert_to_tensor(gradient)
                if weight is not None:
                    gradient = gradient * tf.cast(weight, gradient.dtype)
                total = gradient if self._equal_parts == 1 else total + gradient
            found.append(total)
        return found

    def _addend(self, index, sums, before):
        """What this replica adds to a joined running statistic."""
        value, old = sums.statistics[index], before.statistics[index]
        number = self._ghost_layer_of(index)
        if number is None:
            _, replicas = shard.this_replica()
            return value / replicas
        if number in self._skipping:
            return shard.row_of(shard.step_of(value, old, sums.kept[number]))
        return shard.weigh_for_join(value, old, sums.kept[number])

    def _ghost_layer_of(self, index):
        """The number of the ghost layer whose running statistic it is, or `None`."""
        variable = self.variables.statistics[index]
        for number, layer in enumerate(self._ghosts):
            if variable is layer.moving_mean or variable is layer.moving_variance:
                return number
        return None


def _squared_norm(gradients, loss_scale):
    """Of all gradients together, without the factor of the loss."""
    # Half of each square, in one pass over memory, where `square` needs two.
    halves = [
        tf.nn.l2_loss(tf.cast(gradient, tf.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return 2 * tf.add_n(halves) / tf.cast(loss_scale, tf.float32) ** 2


def _precise(variable):
    """The dtype in which statistics of a layer are computed."""
    return keras.backend.result_type(variable.dtype, "float32")


def _seed_of(seed, first_example):
    """The seed for a micro-batch, that its masks are not those of another one."""
    place = tf.cast(first_example, seed.dtype) * _SEED_STRIDE
    return seed + tf.stack([place, tf.zeros_like(place)])


def _warn_of_order(names):
    warnings.warn(
        f"{', '.join(sorted(names))}: called more than once in a pass. In "
        "micro-batches the running statistics step part by part, not call by call, and "
        "so differ slightly from those of the whole batch; weights do not. Give each "
        "call a layer of its own, or make micro_batch_size the whole batch.",
        stacklevel=2,
    )


def _divide(gradient, weight):
    if isinstance(weight, int) and weight == 1:
        return gradient
    return gradient / tf.cast(weight, gradient.dtype)
