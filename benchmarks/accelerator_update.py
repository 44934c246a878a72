"""Updates of a network by a loop on JAX, compiled as one program.

Nothing here has a state. An update is the program's: ghosts in one pass (or in
micro-batches of whole ghosts, one after the other), the mean gradient, and `L2SGD`,
which clips, adds the L2 gradient and asks `RegimeAdaptation` for the rate.
"""

import jax
import jax.numpy as jnp
import keras

_PADDING = 4


def epoch_plan(seed, epoch, examples: int):
    """The order of an epoch's examples; for each, two shifts and whether to flip it."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
    of_order, of_numbers = jax.random.split(key)
    order = jax.random.permutation(of_order, examples)
    ends = jnp.array([2 * _PADDING + 1, 2 * _PADDING + 1, 2])
    return order, jax.random.randint(of_numbers, (examples, 3), 0, ends)


def advance(
    model,
    optimizer,
    batch_size: int,
    micro_batch_size: int,
    state,
    images,
    labels,
    mean,
    deviation,
    order,
    numbers,
    first,
    last,
):
    """Makes the updates `first` to `last - 1` of an epoch: the state, the loss's sum.

    The first four arguments are fixed when it is compiled.
    """

    def one_update(update, carry):
        (trainable, fixed, of_optimizer), total = carry
        places = jax.lax.dynamic_slice_in_dim(order, update * batch_size, batch_size)
        x = _standardized(images[places], mean, deviation)
        x = shift_and_flip(x, numbers[places])
        loss, gradients, fixed = mean_gradients(
            model, micro_batch_size, trainable, fixed, x, labels[places]
        )
        trainable, of_optimizer = optimizer.stateless_apply(
            of_optimizer, gradients, trainable
        )
        return [list(trainable), list(fixed), list(of_optimizer)], total + loss

    return jax.lax.fori_loop(first, last, one_update, (state, jnp.float32(0)))


def mean_gradients(model, micro_batch_size: int, trainable, fixed, images, labels):
    """The mean loss, its gradients, and the other variables after the batch.

    The micro-batches go through the network one after the other. So the running
    statistics take their steps in the order of the ghosts.
    """

    def loss_of(trainable, fixed, images, labels):
        outputs, fixed = model.stateless_call(trainable, fixed, images, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, outputs, from_logits=True
        )
        return jnp.mean(losses), fixed

    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    parts = images.shape[0] // micro_batch_size
    if parts == 1:
        (loss, fixed), gradients = differentiate(trainable, fixed, images, labels)
        return loss, gradients, fixed

    def one_part(carry, part):
        sums, fixed = carry
        (loss, fixed), gradients = differentiate(trainable, fixed, *part)
        return (jax.tree.map(jnp.add, sums, gradients), fixed), loss

    cut = [x.reshape(parts, micro_batch_size, *x.shape[1:]) for x in (images, labels)]
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    (sums, fixed), losses = jax.lax.scan(one_part, (zeros, fixed), tuple(cut))
    return jnp.mean(losses), [value / parts for value in sums], fixed


def shift_and_flip(images, numbers):
    """Pads with zeros, crops to the original size, and flips where it is asked for."""
    around = (_PADDING, _PADDING)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))

    def one_image(image, of_image):
        start = (of_image[0], of_image[1], 0)
        image = jax.lax.dynamic_slice(image, start, images.shape[1:])
        return jnp.where(of_image[2] == 1, image[:, ::-1], image)

    return jax.vmap(one_image)(padded, numbers)


def _standardized(pixels, mean, deviation):
    return (pixels.astype("float32") - mean) / deviation


def correct(model, trainable, fixed, images, labels, mean, deviation):
    """How many examples the network classifies correctly."""

    def one_part(part):
        pixels, labels = part
        x = _standardized(pixels, mean, deviation)
        outputs, _ = model.stateless_call(trainable, fixed, x, training=False)
        return jnp.sum(jnp.argmax(outputs, axis=-1) == labels)

    return jnp.sum(jax.lax.map(one_part, (images, labels)))
