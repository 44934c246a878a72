"""Updates of a `LargeBatchModel` by a loop on JAX, compiled as one program.

An update is that of `fit`: `LargeBatchModel.train_step`. Nothing here has a state.
"""

import jax
import jax.numpy as jnp
import keras


def epoch_plan(seed, epoch, examples: int, padding: int):
    """The order of an epoch's examples; for each, two shifts and whether to flip it."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
    of_order, of_numbers = jax.random.split(key)
    order = jax.random.permutation(of_order, examples)
    ends = jnp.array([2 * padding + 1, 2 * padding + 1, 2])
    return order, jax.random.randint(of_numbers, (examples, 3), 0, ends)


def advance(
    model,
    batch_size: int,
    padding: int,
    small_batch_updates: int,
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
    """Makes the updates `first` to `last - 1` of an epoch, as `keras.Model.fit` would.

    With `stretch="auto"`, it makes fewer if the small batch's updates are done before.
    The first four arguments are fixed when it is compiled.

    Args:
        model: A compiled and built `LargeBatchModel`.
        batch_size: Examples of an update.
        padding: Pixels around an image before it is cropped and flipped; 0: it is not.
        small_batch_updates: Number of updates of the small batch's regime.
        state: Values of the model's variables: trainable, others, the optimizer's, and
            the metrics'.
        images: Training images as stored, `(examples, height, width, channels)`.
        labels: Their labels.
        mean: Mean of each channel.
        deviation: Deviation of each channel.
        order: First result of `epoch_plan`.
        numbers: Second result of `epoch_plan`.
        first: Number of the first update in the epoch, from 0 on.
        last: Where to stop.

    Returns:
        `(state, update, loss)`: the next state, the number of the next update in the
        epoch, and the mean loss.
    """

    def is_left(carry):
        update, _, _, done = carry
        return (update < last) & (done < small_batch_updates)

    def one_update(carry):
        update, state, _, done = carry
        places = jax.lax.dynamic_slice_in_dim(order, update * batch_size, batch_size)
        x = _standardized(images[places], mean, deviation)
        if padding:
            x = shift_and_flip(x, numbers[places], padding)
        logs, state = model.train_step(state, (x, labels[places]))
        done = logs.get("small_batch_updates", done)  # Only with `auto`.
        return update + 1, [list(group) for group in state], logs["loss"], done

    start = first, state, jnp.float32(0), jnp.float32(0)
    update, state, loss, _ = jax.lax.while_loop(is_left, one_update, start)
    return state, update, loss


def shift_and_flip(images, numbers, padding: int):
    """Pads with zeros, crops to the original size, and flips where it is asked for."""
    around = (padding, padding)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))

    def one_image(image, of_image):
        start = (of_image[0], of_image[1], 0)
        image = jax.lax.dynamic_slice(image, start, images.shape[1:])
        return jnp.where(of_image[2] == 1, image[:, ::-1], image)

    return jax.vmap(one_image)(padded, numbers)


def _standardized(pixels, mean, deviation):
    return (pixels.astype("float32") - mean) / deviation


def evaluate(model, state, images, labels, mean, deviation):
    """The sum of the losses, and how many examples are classified correctly.

    Args:
        model: As for `advance`.
        state: As for `advance`.
        images: Images in parts of one size, `(parts, size, height, width, channels)`.
        labels: Their labels, `(parts, size)`. Those below 0 only fill up a part.
        mean: Mean of each channel.
        deviation: Deviation of each channel.
    """

    def one_part(part):
        pixels, labels = part
        x = _standardized(pixels, mean, deviation)
        outputs, _ = model.stateless_call(*state[:2], x, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(
            jnp.maximum(labels, 0), outputs, from_logits=True
        )
        is_correct = jnp.argmax(outputs, axis=-1) == labels
        return jnp.sum(jnp.where(labels >= 0, losses, 0)), jnp.sum(is_correct)

    return jax.tree.map(jnp.sum, jax.lax.map(one_part, (images, labels)))
