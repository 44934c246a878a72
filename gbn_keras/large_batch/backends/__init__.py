"""What each Keras backend adds to `LargeBatchModel`.

Each has the same functions: `reduce_in_loop` and `part_of` cut a batch,
`gradients_of` differentiates, `squares_of` gives the size of gradients. Each has a
`Training`, the model's training step in the form that Keras's trainer calls.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from gbn_keras.large_batch.backends.tensorflow_loop import (
        gradients_of,
        part_of,
        reduce_in_loop,
        squares_of,
    )
    from gbn_keras.large_batch.backends.tensorflow_training import (
        TensorFlowTraining as Training,
    )
elif keras.backend.backend() == "jax":
    from gbn_keras.large_batch.backends.jax_loop import (
        gradients_of,
        part_of,
        reduce_in_loop,
        squares_of,
    )
    from gbn_keras.large_batch.backends.jax_training import JaxTraining as Training
else:
    from gbn_keras.large_batch.backends.torch_loop import (
        gradients_of,
        part_of,
        reduce_in_loop,
        squares_of,
    )
    from gbn_keras.large_batch.backends.torch_training import TorchTraining as Training

__all__ = ["Training", "gradients_of", "part_of", "reduce_in_loop", "squares_of"]
