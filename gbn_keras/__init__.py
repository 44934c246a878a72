"""Train longer, generalize better: ghost batches and regime adaptation for Keras 3."""

import keras

# The files of the program's models name this metric. Importing it registers it.
from gbn_keras import accuracy_of_examples  # noqa: F401
from gbn_keras.convert import to_batch_norm, to_ghost_batch_norm
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.gradient_noise import GradientNoise
from gbn_keras.optimizers import L2SGD, BatchSizeInvariantAdam, scale_adam
from gbn_keras.regime import REGIMES, Regime
from gbn_keras.regime_adaptation import RegimeAdaptation
from gbn_keras.resume.exact_resume import ExactResume
from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout
from gbn_keras.version import __version__

__all__ = [
    "REGIMES",
    "BatchSizeInvariantAdam",
    "ExactResume",
    "GhostBatchNormalization",
    "GradientNoise",
    "L2SGD",
    "Regime",
    "RegimeAdaptation",
    "ShardingInvariantDropout",
    "__version__",
    "scale_adam",
    "to_batch_norm",
    "to_ghost_batch_norm",
]

if keras.backend.backend() in ("tensorflow", "jax", "torch"):  # Those that train.
    from gbn_keras.large_batch.end_of_regime import EndOfRegime
    from gbn_keras.large_batch.large_batch_model import LargeBatchModel

    __all__ += ["EndOfRegime", "LargeBatchModel"]
