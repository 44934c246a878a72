"""Compares the speed of a ghost batch normalization layer with its alternatives.

    python benchmarks/layer_speed.py [--jit] [--json=FILE] [--picture=FILE]
    KERAS_BACKEND=jax python benchmarks/layer_speed.py
    KERAS_BACKEND=torch python benchmarks/layer_speed.py

Measures a training step of one layer: forward pass, backward pass and running
statistics. All layers run in turn in one process, and the figures are medians. Where
there is a GPU, JAX and PyTorch compute on it, and `--batch_factor=8` makes the batches
large enough that it does not wait for Python.

- `ratio`: time compared with Keras's BatchNormalization in the same round; with a ReLU,
  with Keras's BatchNormalization and ReLU
- `GB/s`: the bytes that must be moved at least, per second
- `peak MB`: memory that a step needs in addition
"""

import argparse
import functools
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import keras
import numpy as np
from side_by_side import median_ratio, peak_megabytes, time_in_turn, write_json

from gbn_keras import GhostBatchNormalization

CASES = [
    # shape, virtual batch size
    ((1024, 32, 32, 16), 128),
    ((1024, 32, 32, 16), 32),
    ((1024, 8, 8, 64), 128),
    ((128, 56, 56, 64), 32),
    ((4096, 512), 128),
]
# For the picture: the time should not depend on the number of ghosts.
GHOST_CASES = [((1024, 32, 32, 16), size) for size in (512, 256, 128, 64, 32, 16)]

# What a layer's time is compared with, by name.
_KERAS, _KERAS_RELU = "Keras BatchNormalization", "Keras BN, then ReLU"
_GHOSTS_RELU = "ghosts with ReLU"
_PEERS = {_KERAS_RELU: _KERAS_RELU, _GHOSTS_RELU: _KERAS_RELU}

# How often a tensor of the input's size is moved at least. The forward pass reads the
# input and writes the output. The backward pass reads the input and the upstream
# gradient, and writes the input's gradient.
_PASSES = 5


class SplitGhosts(keras.layers.Layer):
    """The usual layer by hand: split, the same BatchNormalization for each, concat."""

    def __init__(self, virtual_batch_size):
        super().__init__()
        self.virtual_batch_size = virtual_batch_size
        self.normalization = keras.layers.BatchNormalization()

    def build(self, input_shape):
        """Builds the inner layer."""
        self.normalization.build(input_shape)

    def compute_output_shape(self, input_shape):
        """The input's shape. Keras cannot infer it for an unknown batch size."""
        return input_shape

    def call(self, inputs, training=None):
        """Normalizes each piece."""
        pieces = keras.ops.split(inputs, inputs.shape[0] // self.virtual_batch_size)
        return keras.ops.concatenate(
            [self.normalization(piece, training=training) for piece in pieces]
        )


def main():
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_factor", type=int, default=1, help="larger batches")
    parser.add_argument("--json", help="file to write all figures to")
    parser.add_argument("--picture", help="file for a plot of time by number of ghosts")
    arguments = parser.parse_args()

    keras.config.set_dtype_policy(
        arguments.dtype if arguments.dtype == "float32" else f"mixed_{arguments.dtype}"
    )
    rows = []
    for shape, size in CASES:
        rows += measure(shape, size, arguments)
    if arguments.picture:
        ghost_rows = []
        for shape, size in GHOST_CASES:
            ghost_rows += measure(shape, size, arguments)
        draw(ghost_rows, arguments.picture)
        rows += ghost_rows
    write_json(arguments.json, rows)


def measure(shape, size, arguments):
    """Times all layers on one shape; prints and returns their rows."""
    shape = (shape[0] * arguments.batch_factor, *shape[1:])
    random = np.random.default_rng(0)
    inputs, upstream = random.normal(size=(2, *shape)).astype("float32")
    contenders = {
        name: step(inputs, upstream)
        for name, step in steps(size, arguments.jit).items()
    }
    memory = {}
    for name, call in contenders.items():
        call()
        memory[name] = peak_megabytes(call)
    times = time_in_turn(contenders, arguments.rounds)
    width = 2 if "float16" in arguments.dtype else 4
    moved = _PASSES * width * np.prod(shape)
    rows = []
    print(
        f"\n{'x'.join(map(str, shape))} {arguments.dtype}, ghosts of {size}, ", end=""
    )
    print(f"{keras.backend.backend()} {'XLA' if arguments.jit else 'graph'}")
    print(f"{'':28}{'ms':>9}{'ratio':>8}{'GB/s':>8}{'peak MB':>9}")
    for name in contenders:
        seconds = statistics.median(times[name])
        row = {
            "shape": shape,
            "virtual_batch_size": size,
            "dtype": arguments.dtype,
            "jit": arguments.jit,
            "layer": name,
            "milliseconds": 1000 * seconds,
            "ratio": median_ratio(times[name], times[_PEERS.get(name, _KERAS)]),
            "gigabytes_per_second": moved / seconds / 1e9,
            "peak_megabytes": memory[name],
        }
        rows.append(row)
        peak = "" if memory[name] is None else f"{memory[name]:.0f}"
        print(
            f"{name:28}{row['milliseconds']:9.2f}{row['ratio']:8.2f}"
            f"{row['gigabytes_per_second']:8.1f}{peak:>9}",
            flush=True,
        )
    return rows


def steps(size, jit):
    """Functions that make a training step for this backend, by name of the layer."""
    make = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}[
        keras.backend.backend()
    ]
    layers = {
        _KERAS: keras.layers.BatchNormalization,
        "GhostBatchNormalization": functools.partial(GhostBatchNormalization, size),
        _KERAS_RELU: batch_normalization_and_relu,
        _GHOSTS_RELU: functools.partial(GhostBatchNormalization, size, "relu"),
        "split, Keras BN, concat": functools.partial(SplitGhosts, size),
    }
    found = {
        name: functools.partial(make, layer, jit) for name, layer in layers.items()
    }
    if keras.backend.backend() == "tensorflow":
        try:
            import tf_keras
        except ImportError:
            print("skips tf_keras, which is not installed: pip install tf-keras")
        else:
            tf_keras_layer = functools.partial(
                tf_keras.layers.BatchNormalization, virtual_batch_size=size, fused=False
            )
            found["tf_keras virtual_batch_size"] = functools.partial(
                tensorflow_step, tf_keras_layer, jit
            )
        found["whole-batch fused kernel"] = functools.partial(fused_step, jit)
    if keras.backend.backend() == "torch":
        found["F.batch_norm, whole batch"] = batch_norm_step
    found["memory copy, same bytes"] = copy_step
    return found


def batch_normalization_and_relu():
    """What `GhostBatchNormalization(activation="relu")` replaces."""
    return keras.Sequential([keras.layers.BatchNormalization(), keras.layers.ReLU()])


def tensorflow_step(make_layer, jit, inputs, upstream):
    """A step of a layer of Keras or tf_keras, on TensorFlow."""
    import tensorflow as tf

    layer = make_layer()
    layer.build(inputs.shape)
    variables = [
        v if isinstance(v, tf.Variable) else v.value for v in layer.trainable_variables
    ]

    @tf.function(jit_compile=jit)
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        # Also returns the outputs. Otherwise XLA would not compute all of them.
        return y, tape.gradient(y, [x, *variables], dy)

    x, dy = (tf.cast(value, layer.compute_dtype) for value in (inputs, upstream))
    return lambda: step(x, dy)[1][-1].numpy()  # Waits for the device.


def fused_step(jit, inputs, upstream):
    """The fused kernel on the whole batch: the practical limit, where it exists."""
    import tensorflow as tf

    dtype = keras.config.dtype_policy().compute_dtype
    rows = [inputs.shape[0], -1, 1, inputs.shape[-1]]
    x, dy = (tf.reshape(tf.cast(v, dtype), rows) for v in (inputs, upstream))
    gamma, beta = tf.ones(inputs.shape[-1:]), tf.zeros(inputs.shape[-1:])
    mean, variance = tf.Variable(beta), tf.Variable(gamma)

    @tf.function(jit_compile=jit)
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y, m, v = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-3)
            mean.assign(0.99 * mean + 0.01 * m)
            variance.assign(0.99 * variance + 0.01 * v)
        return y, tape.gradient(y, [x, gamma, beta], dy)

    return lambda: step(x, dy)[1][-1].numpy()


def jax_step(make_layer, jit, inputs, upstream):
    """A step of a Keras layer on JAX, always compiled."""
    import jax

    layer = make_layer()
    layer.build(inputs.shape)
    fixed = [v.value for v in layer.non_trainable_variables]

    def forward(trainable, x):
        return layer.stateless_call(trainable, fixed, x, training=True)

    # Writes over the outputs of the call before. Where memory is new, the system takes
    # longer to hand it out than the layer takes, and a network reuses its memory.
    @functools.partial(jax.jit, donate_argnums=3, keep_unused=True)
    def step(trainable, x, dy, used):
        y, backward, moved = jax.vjp(forward, trainable, x, has_aux=True)
        return y, backward(dy), moved

    trainable = [v.value for v in layer.trainable_variables]
    x, dy = (
        jax.numpy.asarray(value, layer.compute_dtype) for value in (inputs, upstream)
    )
    used = (jax.numpy.zeros_like(x), jax.numpy.zeros_like(x))

    def call():
        nonlocal used
        y, (_, dx), _ = step(trainable, x, dy, used)
        used = (y, dx)
        return used

    return call


def torch_step(make_layer, jit, inputs, upstream):
    """A step of a Keras layer on PyTorch, not compiled."""
    import torch

    layer = make_layer()
    layer.build(inputs.shape)
    x, dy = (
        keras.ops.convert_to_tensor(value, layer.compute_dtype)
        for value in (inputs, upstream)
    )
    operands = [x.requires_grad_(), *(v.value for v in layer.trainable_variables)]

    def step():
        torch.autograd.grad(layer(x, training=True), operands, dy)

    return step


def batch_norm_step(inputs, upstream):
    """PyTorch's own function on the whole batch, in its channels_last layout."""
    import torch

    dtype = keras.config.dtype_policy().compute_dtype
    x, dy = (
        keras.ops.convert_to_tensor(value, dtype).movedim(-1, 1)
        for value in (inputs, upstream)
    )
    gamma = torch.ones(x.shape[1], device=x.device)
    beta = torch.zeros_like(gamma)
    mean, variance = beta.clone(), gamma.clone()
    operands = [tensor.requires_grad_() for tensor in (x, gamma, beta)]

    def step():
        y = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, True, 0.01)
        torch.autograd.grad(y, operands, dy)

    return step


def copy_step(inputs, upstream):
    """Moves only the bytes that a layer must move at least: the physical limit."""
    dtype = keras.config.dtype_policy().compute_dtype
    # A negation moves its input twice: it reads and writes it.
    values = np.resize(inputs, inputs.size * _PASSES // 2)
    values = keras.ops.convert_to_tensor(values, dtype)
    if keras.backend.backend() == "tensorflow":
        return lambda: keras.ops.convert_to_numpy(keras.ops.negative(values)[:1])
    negative = keras.ops.negative
    if keras.backend.backend() == "jax":
        import jax

        # As in `jax_step`: writes over the values.
        negative = jax.jit(negative, donate_argnums=0)

    def call():
        nonlocal values
        values = negative(values)
        return values

    return call


def draw(rows, file):
    """Plots the time by number of ghosts, with a line for each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    markers = iter("osx^D*v")
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == name]
        ghosts = [row["shape"][0] // row["virtual_batch_size"] for row in own]
        times = [row["milliseconds"] for row in own]
        axes.plot(ghosts, times, marker=next(markers), label=name)
    shape = "x".join(map(str, rows[0]["shape"]))
    axes.set(
        xlabel="number of ghosts",
        ylabel="milliseconds, forward + backward",
        title=f"{shape} {rows[0]['dtype']}",
        xscale="log",
        ylim=(0, None),
    )
    axes.set_xticks(ghosts, [str(g) for g in ghosts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
