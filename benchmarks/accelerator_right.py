"""Whether the accelerator computes what it should, and twice the same.

`gradients` compares a layer's training step with float64 in numpy, which takes the
gradient through mean and variance one by one, as Ioffe and Szegedy derive it. The peer
is Keras's BatchNormalization on each ghost by hand.

`determinism` starts the same training in two processes and compares all variables.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
from accelerator_report import GHOSTS, SPLIT
from accelerator_speed import PRECISIONS
from layer_speed import SplitGhosts

from gbn_keras import GhostBatchNormalization

_MOMENTUM, _EPSILON = 0.9, 1e-5

# Shape, examples of a ghost, mean of the inputs. A mean that is large beside the
# deviation of 1 costs digits.
CASES = [
    ((512, 32, 32, 16), 128, 0.0),
    ((512, 32, 32, 16), 128, 100.0),
    ((1000, 8, 8, 64), 128, 0.0),
    ((4096, 512), 128, 0.0),
]
TINY_CASES = [((16, 4, 4, 8), 4, 0.0), ((18, 6), 4, 100.0)]


def parts(tiny: bool, folder: pathlib.Path, flags: str = "") -> dict:
    """For each part's name, what compares it; `flags` ask XLA for the same bits."""
    found = {
        f"gradients_{precision}": functools.partial(
            compare_gradients, TINY_CASES if tiny else CASES, precision
        )
        for precision in PRECISIONS
    }
    for mode, more in (("as_is", ""), ("deterministic", flags)):
        found[f"determinism_{mode}"] = functools.partial(
            compare_runs, more, tiny, folder / mode
        )
    return found


def compare_gradients(cases, precision):
    """The rows of all cases: each kind's error, relative to the largest value."""
    keras.config.set_dtype_policy(PRECISIONS[precision])
    dtype = keras.config.dtype_policy().compute_dtype
    rows = []
    for shape, ghost, mean in cases:
        random = np.random.default_rng(0)
        x = jnp.asarray(mean + random.normal(size=shape), dtype)
        upstream = jnp.asarray(random.normal(size=shape), dtype)
        gamma, beta = random.normal(size=(2, shape[-1])).astype(np.float32)
        # Float64 starts from the same rounded values.
        values = (np.asarray(value, np.float64) for value in (x, upstream, gamma, beta))
        expected = reference(*values, ghost)
        kinds = {GHOSTS: GhostBatchNormalization(ghost, **_settings())}
        if shape[0] % ghost == 0:
            kinds[SPLIT] = SplitGhosts(ghost)
            kinds[SPLIT].normalization = keras.layers.BatchNormalization(**_settings())
        for kind, layer in kinds.items():
            found = training_step(layer, x, upstream, gamma, beta)
            errors = {
                name: float(np.abs(found[name] - value).max() / np.abs(value).max())
                for name, value in expected.items()
            }
            case = f"{'x'.join(map(str, shape))}, ghosts of {ghost}, mean {mean:g}"
            about = {"case": case, "precision": precision, "kind": kind}
            rows.append({**about, **errors})
    return rows


def training_step(layer, x, upstream, gamma, beta):
    """What a layer computes, by the names of `reference`."""
    layer.build(x.shape)
    fixed = [v.value for v in layer.non_trainable_variables]

    @jax.jit
    def step(trainable, x, upstream):
        def forward(trainable, x):
            return layer.stateless_call(trainable, fixed, x, training=True)

        y, backward, moved = jax.vjp(forward, trainable, x, has_aux=True)
        (by_gamma, by_beta), by_inputs = backward(upstream)
        return y, by_inputs, by_gamma, by_beta, *moved

    found = step([jnp.asarray(gamma), jnp.asarray(beta)], x, upstream)
    names = "outputs", "dx", "dgamma", "dbeta", "moving_mean", "moving_variance"
    arrays = (np.asarray(value, np.float64) for value in found)
    return dict(zip(names, arrays, strict=True))


def reference(x, upstream, gamma, beta, ghost):
    """The same in float64, ghost by ghost."""
    count = max(1, len(x) // ghost)
    ends = [*range(ghost, count * ghost, ghost), len(x)]
    outputs, dx = np.empty_like(x), np.empty_like(x)
    dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(beta)
    moving_mean, moving_variance = np.zeros_like(gamma), np.ones_like(gamma)
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        own, dy = (
            values[start:end].reshape(-1, x.shape[-1]) for values in (x, upstream)
        )
        n = len(own)
        mean = own.mean(axis=0)
        centered = own - mean
        variance = (centered**2).mean(axis=0)
        inverse = 1 / np.sqrt(variance + _EPSILON)
        normalized = centered * inverse
        by_normalized = dy * gamma
        by_variance = (by_normalized * centered).sum(axis=0) * -0.5 * inverse**3
        by_mean = -(by_normalized * inverse).sum(axis=0)
        by_mean -= by_variance * 2 * centered.mean(axis=0)
        by_own = by_normalized * inverse + by_variance * 2 * centered / n + by_mean / n
        outputs[start:end] = (normalized * gamma + beta).reshape(x[start:end].shape)
        dx[start:end] = by_own.reshape(x[start:end].shape)
        dgamma += (dy * normalized).sum(axis=0)
        dbeta += dy.sum(axis=0)
        moving_mean = _MOMENTUM * moving_mean + (1 - _MOMENTUM) * mean
        moving_variance = _MOMENTUM * moving_variance + (1 - _MOMENTUM) * variance
    return {
        "outputs": outputs,
        "dx": dx,
        "dgamma": dgamma,
        "dbeta": dbeta,
        "moving_mean": moving_mean,
        "moving_variance": moving_variance,
    }


def compare_runs(flags, tiny, folder):
    """The row of two processes that make the same updates."""
    updates = 4 if tiny else 20
    task = "c1_200" if tiny else "resnet44"
    script = pathlib.Path(__file__).with_name("accelerator.py")
    environment = {
        **os.environ,
        # Otherwise `train` asks for deterministic kernels itself.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    runs = []
    for place in ("first", "second"):
        own = folder / place
        shutil.rmtree(own, ignore_errors=True)
        command = [sys.executable, os.fspath(script), "train", f"--folder={own}"]
        command += ["--data=noise", f"table1:{task}", r"--only=^\+GBN$", "--seeds=1"]
        command += [f"--flags=--max_updates={updates}", "--any_kernels"]
        command += ["--tiny"] * tiny
        process = subprocess.run(command, env=environment, capture_output=True)
        checkpoint = next(own.glob("table1/*/*/*/checkpoint.npz"), None)
        if checkpoint is None:
            raise RuntimeError(process.stderr.decode()[-2000:])
        with np.load(checkpoint) as content:
            runs.append({k: content[k] for k in content.files if k != "about"})
        shutil.rmtree(own)
    first, second = runs
    same = [np.array_equal(first[key], second[key]) for key in first]
    differences = [
        np.abs(first[key].astype(np.float64) - second[key]).max() for key in first
    ]
    row = {
        "flags": flags,
        "network": task,
        "updates": updates,
        "variables": len(same),
        "same_bits": sum(same),
        "largest_difference": float(max(differences)),
    }
    return [row]


def _settings():
    return {"momentum": _MOMENTUM, "epsilon": _EPSILON}
