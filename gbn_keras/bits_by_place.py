"""`bits_by_place`: random bits that depend on an example's place in the batch.

They are the same however a batch is split, on each backend its own: each example starts
at its own count of a counter-based generator, or has its own key.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax
elif keras.backend.backend() == "torch":
    import torch

# The number of Philox in `tf.random.Algorithm`. Philox gives the same bits on every
# device, also under XLA. It makes four 32-bit numbers per count.
_PHILOX, _WORDS = 1, 4

# SplitMix64's constants, as PyTorch's signed integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def bits_by_place(shape, first, seed):
    """A uniform 32-bit number for each entry of a part of a batch.

    On TensorFlow, the numbers are Philox's, on JAX Threefry's, on PyTorch SplitMix64's.
    PyTorch has no unsigned arithmetic, so its numbers are of 64 bits, from 0 to 2^32.

    Args:
        shape: Shape of the part, examples first.
        first: Place in the batch of the part's first example.
        seed: A seed as Keras's `SeedGenerator` gives it.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Steele,
        Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    if keras.backend.backend() == "tensorflow":
        return _on_tensorflow(shape, first, seed)
    if keras.backend.backend() == "jax":
        return _on_jax(shape, first, seed)
    return _on_torch(torch.Size(shape), first, seed)


def _on_tensorflow(shape, first, seed):
    examples, entries = shape[0], 1
    for size in shape[1:]:
        entries = entries * size
    # Example `i` starts at count `i * counts`.
    counts = -(-entries // _WORDS)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    start = tf.cast(first, tf.uint64) * tf.cast(counts, tf.uint64)
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[examples, counts * _WORDS],
        key=key,
        counter=counter + tf.stack([start, tf.zeros_like(start)]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return tf.reshape(bits[:, :entries], shape)


def _on_jax(shape, first, seed):
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    places = first + jax.numpy.arange(shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    return jax.vmap(lambda key: jax.random.bits(key, shape[1:], "uint32"))(keys)


def _on_torch(shape, first, seed):
    seed = seed.long()
    key = _mixed(_mixed(seed[0]) + seed[1])
    counts = torch.arange(1, 1 + shape.numel(), device=seed.device)
    counts = counts + first * shape[1:].numel()
    return _shifted(_mixed(key + counts * _GAMMA), 32).reshape(shape)


def _mixed(x):
    """SplitMix64's mix of 64-bit integers, whose products wrap around."""
    x = (x ^ _shifted(x, 30)) * _FACTORS[0]
    x = (x ^ _shifted(x, 27)) * _FACTORS[1]
    return x ^ _shifted(x, 31)


def _shifted(x, bits):
    """`x` shifted to the right, as an unsigned integer."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
