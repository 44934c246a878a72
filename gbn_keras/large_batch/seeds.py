"""The seeds of random layers in a micro-batch, by its place in the batch."""

from keras import ops

from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout

# Derives a micro-batch's seed from the batch's seed and the micro-batch's place.
_STRIDE = 1_000_003


def seeds_of_batches(layers) -> set[int]:
    """The `id` of the seeds that all micro-batches of a batch have in common.

    Masks of `ShardingInvariantDropout` depend on an example's place, so one seed serves
    the batch.
    """
    return {
        id(layer.seed_generator.state)
        for layer in layers
        if isinstance(layer, ShardingInvariantDropout) and layer.rate
    }


def seeds_at(first_example, seeds, unchanged: set[int]) -> list:
    """The seeds of a micro-batch, which give it masks of its own.

    Args:
        first_example: Place in the batch of the micro-batch's first example.
        seeds: Pairs of the seeds' variables and their values for the batch.
        unchanged: Result of `seeds_of_batches`.
    """
    return [
        seed if id(variable) in unchanged else _seed_at(first_example, seed)
        for variable, seed in seeds
    ]


def _seed_at(first_example, seed):
    place = ops.cast(first_example, seed.dtype) * _STRIDE
    return seed + ops.stack([place, ops.zeros_like(place)])
