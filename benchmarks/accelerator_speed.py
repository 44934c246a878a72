"""How long training steps take: one layer, and whole networks.

All kinds of a case run in turn, round by round, and a figure is the median over the
rounds. The device queues the calls of a measurement, so that starting them costs
nothing.

The last kind of a layer's case copies as many bytes as a layer must move at least. So
its time, divided by a layer's, is the share of the memory's bandwidth that the layer
uses.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
from accelerator_report import COPY, GHOSTS, KERAS, SPLIT
from layer_speed import SplitGhosts
from side_by_side import median_ratio

from gbn_keras import L2SGD, GhostBatchNormalization
from gbn_keras.networks import find_network

# How often a layer moves a tensor of its input's size at least: it reads the input and
# writes the output; then it reads the input and the outputs' gradient, and writes the
# input's.
_PASSES = 5

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

# Shape, examples of a ghost. The last one tells whether many ghosts cost time.
LAYERS = [
    ((1024, 32, 32, 16), 128),
    ((4096, 32, 32, 16), 128),
    ((4096, 8, 8, 64), 128),
    ((256, 56, 56, 64), 32),
    ((4096, 512), 128),
    ((4096, 32, 32, 16), 16),
]
TINY_LAYERS = [((16, 4, 4, 8), 4)]

# Network, pixels a side, classes, batch, ghost, kinds. A hand-split layer of many
# ghosts takes too long to compile.
NETWORKS = [
    ("resnet44", 32, 10, 512, 128, (KERAS, GHOSTS, SPLIT)),
    ("resnet44", 32, 10, 4096, 128, (KERAS, GHOSTS)),
    ("resnet50", 224, 1000, 128, 32, (KERAS, GHOSTS, SPLIT)),
]
TINY_NETWORKS = [("resnet8", 8, 10, 8, 4, (KERAS, GHOSTS))]


def parts(tiny: bool) -> dict:
    """For each part's name, what measures it."""
    rounds = 3 if tiny else 15
    seconds = 0.001 if tiny else 0.2
    found = {}
    for precision in PRECISIONS:
        for shape, ghost in TINY_LAYERS if tiny else LAYERS:
            name = f"layer_{'x'.join(map(str, shape))}_{ghost}_{precision}"
            # PyTorch comes first, while this process has taken little memory.
            found[f"torch_{name}"] = functools.partial(
                measure_torch, shape, precision, rounds, seconds
            )
            found[name] = functools.partial(
                measure_layer, shape, ghost, precision, rounds, seconds
            )
        for case in TINY_NETWORKS if tiny else NETWORKS:
            name = f"network_{case[0]}_{case[3]}_{precision}"
            found[name] = functools.partial(
                measure_network, *case, precision, rounds, seconds
            )
    return dict(sorted(found.items(), key=lambda part: not part[0].startswith("torch")))


def measure_layer(shape, ghost, precision, rounds, seconds):
    """The rows of one layer's case."""
    keras.config.set_dtype_policy(PRECISIONS[precision])
    random = np.random.default_rng(0)
    dtype = keras.config.dtype_policy().compute_dtype
    x, upstream = (jnp.asarray(random.normal(size=shape), dtype) for _ in range(2))
    kinds = {
        KERAS: keras.layers.BatchNormalization(),
        GHOSTS: GhostBatchNormalization(ghost),
    }
    if shape[0] // ghost <= 32:
        kinds[SPLIT] = SplitGhosts(ghost)
    calls, moved = {}, {}
    for kind, layer in kinds.items():
        calls[kind], moved[kind] = layer_step(layer, x, upstream)
    # A negation reads and writes each value.
    values = jnp.zeros(x.size * _PASSES // 2, dtype)
    calls[COPY] = functools.partial(jax.jit(jnp.negative), values)
    times = in_turn(calls, rounds, seconds)
    least = _PASSES * x.dtype.itemsize * x.size
    return [
        {
            "case": "x".join(map(str, shape)),
            "ghost": ghost,
            "precision": precision,
            "kind": kind,
            "milliseconds": 1e3 * statistics.median(times[kind]),
            "ratio": median_ratio(times[kind], times[KERAS]),
            "gigabytes_per_second": least / statistics.median(times[kind]) / 1e9,
            "share_of_bandwidth": median_ratio(times[COPY], times[kind]),
            "least_bytes": least,
            "bytes_by_xla": moved.get(kind),
        }
        for kind in calls
    ]


def layer_step(layer, x, upstream):
    """A call of a layer's training step, and how many bytes XLA says that it moves."""
    layer.build(x.shape)
    trainable, fixed = (
        [v.value for v in group]
        for group in (layer.trainable_variables, layer.non_trainable_variables)
    )

    def step(trainable, fixed, x, upstream):
        def forward(trainable, x):
            return layer.stateless_call(trainable, fixed, x, training=True)

        y, backward, fixed = jax.vjp(forward, trainable, x, has_aux=True)
        return y, backward(upstream), fixed

    arguments = trainable, fixed, x, upstream
    compiled = jax.jit(step).lower(*arguments).compile()
    return functools.partial(compiled, *arguments), _bytes_accessed(compiled)


def measure_network(
    network, side, classes, batch, ghost, kinds, precision, rounds, seconds
):
    """The rows of one network's case."""
    keras.config.set_dtype_policy(PRECISIONS[precision])
    makers = {
        KERAS: keras.layers.BatchNormalization,
        GHOSTS: functools.partial(GhostBatchNormalization, ghost),
        SPLIT: functools.partial(SplitGhosts, ghost),
    }
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(batch, side, side, 3)), "float32")
    labels = jnp.asarray(random.integers(0, classes, batch), "int32")
    calls, moved, compiling = {}, {}, {}
    for kind in kinds:
        build, _ = find_network(network)
        model = build((side, side, 3), classes, makers[kind])
        started = time.perf_counter()
        calls[kind], moved[kind] = network_step(model, images, labels)
        compiling[kind] = time.perf_counter() - started
    times = in_turn(calls, rounds, seconds)
    return [
        {
            "case": f"{network}, {side}x{side}, batch {batch}",
            "ghost": ghost,
            "precision": precision,
            "kind": kind,
            "milliseconds": 1e3 * statistics.median(times[kind]),
            "ratio": median_ratio(times[kind], times[KERAS]),
            "images_per_second": batch / statistics.median(times[kind]),
            "seconds_to_compile": compiling[kind],
            "bytes_by_xla": moved[kind],
        }
        for kind in kinds
    ]


def network_step(model, images, labels):
    """A call that makes an update, and how many bytes XLA says that it moves.

    Each call starts from the same weights, so they stay finite.
    """
    optimizer = L2SGD(0.1, l2=1e-4, momentum=0.9, global_clipnorm=5.0)
    optimizer.build(model.trainable_variables)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables,
    )
    state = [[variable.value for variable in group] for group in groups]

    def step(state, images, labels):
        trainable, fixed, of_optimizer = state

        def loss_of(trainable):
            outputs, moved = model.stateless_call(
                trainable, fixed, images, training=True
            )
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, outputs, from_logits=True
            )
            return jnp.mean(losses), moved

        (_, moved), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return moved, optimizer.stateless_apply(of_optimizer, gradients, trainable)

    compiled = jax.jit(step).lower(state, images, labels).compile()
    return functools.partial(compiled, state, images, labels), _bytes_accessed(compiled)


def measure_torch(shape, precision, rounds, seconds):
    """The rows of cuDNN's BatchNorm2d, from a process of its own."""
    if len(shape) != 4:
        return []
    script = pathlib.Path(__file__).with_name("accelerator_torch.py")
    arguments = ["x".join(map(str, shape)), precision, str(rounds), str(seconds)]
    process = subprocess.run(
        [sys.executable, os.fspath(script), *arguments],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        print(f"PyTorch: {process.stderr[-500:]}")
        return []
    found = json.loads(process.stdout.splitlines()[-1])
    return [{"case": "x".join(map(str, shape)), "precision": precision, **found}]


def in_turn(calls, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each kind, one measurement a round, of about `seconds`."""
    repeats = {}
    for kind, call in calls.items():
        jax.block_until_ready(call())
        started = time.perf_counter()
        jax.block_until_ready(call())
        repeats[kind] = max(1, int(seconds / (time.perf_counter() - started)))
    times = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats[kind]):
                result = call()
            # The device makes them in order, so the last one ends last.
            jax.block_until_ready(result)
            times[kind].append((time.perf_counter() - started) / repeats[kind])
    return times


def _bytes_accessed(compiled):
    """What XLA counts for the compiled program; `None` where it does not count."""
    found = compiled.cost_analysis()
    if isinstance(found, list):  # Older versions of JAX.
        found = found[0] if found else None
    return (found or {}).get("bytes accessed")
