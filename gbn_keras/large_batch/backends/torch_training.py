"""`TorchTraining`: updates and evaluation on PyTorch."""

import contextlib

import keras
import torch

from gbn_keras.large_batch.wrapped_model import WrappedModel


class TorchTraining(WrappedModel):
    """The part of `LargeBatchModel` that Keras's PyTorch trainer calls."""

    def compile(self, *args, jit_compile="auto", **kwargs):
        """Compiles the model, as `keras.Model.compile`, without PyTorch's compiler."""
        if jit_compile is True:
            raise ValueError(
                "jit_compile must be False or 'auto' on PyTorch, because its compiler "
                "would unroll all micro-batches. Received: jit_compile=True. Leave it "
                "out."
            )
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def train_step(self, data):
        """Makes one update from a batch."""
        with torch.no_grad():
            gradients, logs = self._through_model(_as_tensors(data), training=True)
            self.optimizer.apply(gradients, self.trainable_weights)
            return self._with_gain(logs)

    def test_step(self, data):
        """Evaluates a batch."""
        _, logs = self._through_model(_as_tensors(data), training=False)
        return logs

    def _scope(self):
        """Where variables must be created: anywhere."""
        return contextlib.nullcontext()

    def _compiled(self, function, examples):
        """The function itself."""
        return function


def _as_tensors(data):
    """The data as tensors: `train_on_batch` gives the user's arrays."""
    return keras.tree.map_structure(
        lambda x: None if x is None else keras.ops.convert_to_tensor(x), data
    )
