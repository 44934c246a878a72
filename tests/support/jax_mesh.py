"""One update on eight of JAX's devices is that of one device: run in a process.

`python tests/support/jax_mesh.py` needs `XLA_FLAGS` for eight host devices. It prints
the largest relative difference for each size of ghosts, and fails if it is too large,
or if the devices send each other more than they must. Outside of TensorFlow, Keras
computes in float32 even for float64.
"""

import re
import sys

import jax
import keras
import numpy as np

from gbn_keras import GhostBatchNormalization

DEVICES, BATCH = 8, 512
# The ghosts fit a device's share of 64, are it, are several, and straddle.
GHOSTS = {16: "fits", 64: "fits", 128: "shared", 512: "shared", 48: "cut", 100: "cut"}
# Those that are also trained where two devices share the parameters, and so each part
# of the batch. Its parts are larger then: these ghosts fit, are shared, and straddle.
TRAINED_WITH_MODEL = (128, 512, 48)
LIMIT = 1e-5
COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|"
    r"reduce-scatter|collective-broadcast)(?:-start)?\("
)


def network(virtual_batch_size):
    """A convolutional network with fixed weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(6, 3, use_bias=False),
            GhostBatchNormalization(virtual_batch_size, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(2 * BATCH, 4, 4, 3)).astype("float32")
    return x, random.integers(0, 5, 2 * BATCH)


def trained(virtual_batch_size, distribution):
    """All variables after two epochs of two updates."""
    keras.distribution.set_distribution(distribution)
    model = network(virtual_batch_size)
    model.fit(*data(), BATCH, epochs=2, shuffle=False, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v) for v in variables]


def difference(one, other):
    """The largest difference of two lists of arrays, as a part of each's largest."""
    return max(
        np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
        for a, b in zip(one, other, strict=True)
    )


def collectives(virtual_batch_size, distribution):
    """What the devices send for the outputs and the gradient by the inputs."""
    keras.distribution.set_distribution(distribution)
    layer = GhostBatchNormalization(virtual_batch_size, activation="relu")
    layer.build((None, 4, 4, 6))
    state = [[v.value for v in x] for x in (layer.weights[:2], layer.weights[2:])]

    def step(inputs, upstream):
        def outputs(inputs):
            return layer.stateless_call(*state, inputs, training=True)[0]

        outputs, gradient = jax.vjp(outputs, inputs)
        return outputs, gradient(upstream)

    values = np.ones((BATCH, 4, 4, 6), "float32")
    layout = distribution.get_data_layout(values.shape).backend_layout
    values = jax.device_put(values, layout)
    text = jax.jit(step).lower(values, values).compile().as_text()
    return COLLECTIVE.findall(text)


def check_what_is_sent(virtual_batch_size, kind, distribution):
    """Nothing for ghosts that fit; else sums of ghosts, each way twice."""
    sent = collectives(virtual_batch_size, distribution)
    print(f"ghosts of {virtual_batch_size}: {sent}")
    if kind == "fits":
        assert not sent
        return
    assert {operation for _, operation in sent} == {"all-reduce"}
    sizes = [list(map(int, s.split(","))) for x, _ in sent for s in _shapes(x)]
    ghosts = BATCH // virtual_batch_size
    assert sizes
    for size in sizes:
        assert size[-1] == 6 and np.prod(size) <= 6 * (ghosts if kind == "cut" else 1)


def check_update(virtual_batch_size, distributions):
    """With each distribution, the variables are those of one device."""
    expected = trained(virtual_batch_size, None)
    for name, distribution in distributions.items():
        far = difference(trained(virtual_batch_size, distribution), expected)
        print(f"ghosts of {virtual_batch_size}, {name} parallel: {far:.1e}")
        assert 0 < far < LIMIT


def _shapes(text):
    return re.findall(r"f32\[([\d,]+)\]", text)


def main():
    assert len(jax.devices()) == DEVICES
    several = keras.distribution.DataParallel(auto_shard_dataset=False)
    for ghosts, kind in GHOSTS.items():
        check_what_is_sent(ghosts, kind, several)
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["dense.*kernel"] = (None, "model")
    layouts["conv2d.*kernel"] = (None, None, None, "model")
    with_model = keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )
    for ghosts in GHOSTS:
        both = {"data and model": with_model} if ghosts in TRAINED_WITH_MODEL else {}
        check_update(ghosts, {"data": several, **both})


if __name__ == "__main__":
    sys.exit(main())
