"""Models whose batch normalization is converted: how they are compiled and read."""

import keras
from backend import IS_JAX

from gbn_keras import ghost_normalize


def leave_kernels_to_slow_tests(request, monkeypatch):
    """A fixture: kernels that take long to compile are for the slow tests."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(
            ghost_normalize, "_fastest_kernel", lambda *_: "closed_form"
        )


def of_class(model, layer_class):
    return [x for x in model._flatten_layers() if type(x) is layer_class]


def compiled(model, rate=0.01, traced=True):
    """A trace of TensorFlow's takes longer than few batches that it would compute."""
    optimizer = keras.optimizers.SGD(rate, 0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # JAX has no other way to compile, and takes minutes without.
    how = {"jit_compile": IS_JAX} if traced or IS_JAX else {"run_eagerly": True}
    model.compile(optimizer, loss, **how)
    return model


def predict(model, images):
    return model.predict(images, verbose=0)
