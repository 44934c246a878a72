"""`Share`: what one replica computes of an update, and how the replicas join it."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gbn_keras import shard
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout
from gbn_keras.training.micro_batches import MicroBatches, number_of_examples

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

    `gradients` are weighted sums, `weight` the sum of the weights. Of the old running
    statistics, the new ones of a ghost layer hold the share `kept`. `moments` are sums
    over micro-batches of their gradients' squared norms, of 1 / their sizes, and of 1.
    """

    gradients: list
    weight: Any
    statistics: list
    kept: list
    seeds: list
    metrics: list
    moments: Any


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
        layers = model._flatten_layers()
        self._ghosts = [x for x in layers if isinstance(x, GhostBatchNormalization)]
        # Their masks know the place of an example: one seed for the whole batch.
        self._same_seed = {
            id(layer.seed_generator.state)
            for layer in layers
            if isinstance(layer, ShardingInvariantDropout) and layer.rate
        }
        # Found while the model is traced.
        self._without_gradient, self._moved = set(), set()
        self._equal_parts = None

    def values(self) -> Values:
        """What the variables hold."""
        return Values(
            *([tf.convert_to_tensor(v.value) for v in kind] for kind in self.variables)
        )

    def through_model(self, data, before: Values, first_example, loss_scale) -> Sums:
        """The sums over all micro-batches.

        Args:
            data: Inputs, labels and sample weights, as a Keras model gets them.
            before: The variables' values.
            first_example: The place in the batch of the share's first example.
            loss_scale: A factor for the gradients.
        """

        def add(sums, start, micro_batch):
            first = first_example + start
            return self._add(sums, before, first, loss_scale, micro_batch)

        weights = before.weights if self._training else []
        nothing = Sums(
            gradients=[tf.zeros_like(weight) for weight in weights],
            weight=tf.constant(0.0),
            statistics=before.statistics,
            kept=[tf.ones([], _precise(x.moving_mean)) for x in self._ghosts],
            seeds=before.seeds,
            metrics=before.metrics,
            moments=tf.zeros([3]),
        )
        self._equal_parts = self._count_equal_parts(data)
        micro_batches = MicroBatches(data, self._micro_batch_size)
        return micro_batches.reduce(add, nothing)

    def join(self, sums: Sums, before: Values, examples, loss_scale):
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
        examples = tf.cast(examples, tf.float32)
        addends = (
            *(used, list(moved.values()), sums.metrics),
            *(sums.weight, examples, sums.moments),
        )
        used, joined, metrics, weight, total, moments = shard.sum_over_replicas(addends)
        if self._training:
            shard.refuse_uneven_shares(examples, total)
        if self._equal_parts:
            weight = self._equal_parts * shard.this_replica()[1]
        used = iter(used)
        gradients = [
            None if index in self._without_gradient else _divide(next(used), weight)
            for index in range(len(sums.gradients))
        ]
        statistics = list(sums.statistics)
        for index, value in zip(moved, joined, strict=True):
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

    def _add(self, sums, before, first_example, loss_scale, micro_batch):
        """The sums with one more micro-batch."""
        model, training = self._model, self._training
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        weights = [tf.identity(weight) for weight in before.weights]
        seeds = [
            seed if id(variable) in self._same_seed else _seed_of(seed, first_example)
            for variable, seed in zip(self.variables.seeds, before.seeds, strict=True)
        ]
        now = Values(weights, sums.statistics, seeds, sums.metrics)
        mapping = [
            pair
            for variables, values in zip(self.variables, now, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with (
            shard.Shard(first_example) as part,
            keras.StatelessScope(mapping, collect_losses=True) as scope,
            tf.GradientTape() as tape,
        ):
            tape.watch(weights)
            predictions = model(x, training=training)
            loss = model.compute_loss(
                x=x,
                y=y,
                y_pred=predictions,
                sample_weight=sample_weight,
                training=training,
            )
            # Keras has divided by the number of replicas.
            _, replicas = shard.this_replica()
            loss = loss * tf.cast(replicas, loss.dtype)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
            weight = self._weight(x, sample_weight)
            model._loss_tracker.update_state(loss, sample_weight=weight)
            model.compute_metrics(x, y, predictions, sample_weight=sample_weight)
        gradients = tape.gradient(scaled, weights) if training else []
        # Of about one, whatever the precision of the gradients.
        weight = tf.cast(weight, tf.float32) / self._micro_batch_size
        after = Values(*(map(scope.get_current_value, v) for v in self.variables))
        statistics = list(after.statistics)
        self._moved.update(
            index
            for index, value in enumerate(statistics)
            if value is not sums.statistics[index]
        )
        return Sums(
            gradients=self._sum(sums.gradients, gradients, weight),
            weight=sums.weight + weight,
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
            metrics=list(after.metrics),
            moments=sums.moments + self._moments(gradients, loss_scale, x),
        )

    def _measures_noise(self):
        """Whether there are gradients of two batch sizes, and a wish to know them."""
        if not self._training or self._model.gradient_moments is None:
            return False
        return self._equal_parts != 1 or shard.this_replica()[1] > 1

    def _moments(self, gradients, loss_scale, x):
        if not self._measures_noise():
            return tf.zeros([3])
        square = _squared_norm(gradients, loss_scale)
        inverse = 1 / tf.cast(number_of_examples(x), tf.float32)
        return tf.stack([square, inverse, 1.0])

    def _count_equal_parts(self, data):
        """The number of micro-batches, if they count alike: it saves weighing them."""
        _, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        examples, size = number_of_examples(data), self._micro_batch_size
        by_weight = self._model.loss_by_sample_weight and sample_weight is not None
        if isinstance(examples, int) and not by_weight:
            if examples < 2 * size:  # What remains joins the only one.
                return 1
            if examples % size == 0:
                return examples // size
        return None

    def _weight(self, x, sample_weight):
        """How much a micro-batch's mean loss counts in that of the whole batch."""
        if self._model.loss_by_sample_weight and sample_weight is not None:
            return tf.reduce_sum(sample_weight)
        return number_of_examples(x)

    def _sum(self, sums, gradients, weight):
        found = []
        for index, (total, gradient) in enumerate(zip(sums, gradients, strict=True)):
            if gradient is None:
                self._without_gradient.add(index)
            else:
                # The rows that an embedding looked up, say: a loop cannot carry them.
                gradient = tf.convert_to_tensor(gradient)
                if not self._equal_parts:
                    gradient = gradient * tf.cast(weight, gradient.dtype)
                total = gradient if self._equal_parts == 1 else total + gradient
            found.append(total)
        return found

    def _addend(self, index, sums, before):
        """What this replica adds to a joined running statistic."""
        variable, value = self.variables.statistics[index], sums.statistics[index]
        for layer, kept in zip(self._ghosts, sums.kept, strict=True):
            if variable is layer.moving_mean or variable is layer.moving_variance:
                return shard.weigh_for_join(value, before.statistics[index], kept)
        _, replicas = shard.this_replica()
        return value / replicas


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


def _divide(gradient, weight):
    if isinstance(weight, int) and weight == 1:
        return gradient
    return gradient / tf.cast(weight, gradient.dtype)
