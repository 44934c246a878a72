"""The gradient noise scale: up to which batch size more examples pay off.

The mean gradient of `b` examples is the true gradient `G` plus noise with covariance
`Sigma / b`. The simple noise scale is `tr(Sigma) / |G|^2`. For `b` far below it, twice
as many examples make an update worth twice as much. Far above it, they add nothing.
Gradients of two batch sizes are enough to estimate it, because
`E |g_b|^2 = |G|^2 + tr(Sigma) / b`. Training in micro-batches has two sizes anyway: the
micro-batch and the whole batch.

Reference:
    McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training",
    sections 2.2, 2.3 and appendix A, arXiv 1812.06162.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from gbn_keras.regime_progress import SMOOTHING, gain


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """Estimates of a gradient and its noise.

    Attributes:
        gradient_square: `|G|^2` of the true gradient.
        noise: `tr(Sigma)` of one example's gradient.
    """

    gradient_square: float
    noise: float

    @property
    def noise_scale(self) -> float:
        """`tr(Sigma) / |G|^2`, in examples; infinite if there is only noise."""
        if self.gradient_square <= 0:
            return float("inf")
        return max(0.0, self.noise / self.gradient_square)

    def suitable_stretch(self, batch_size: int, small_batch_size: int) -> float:
        """How many times more epochs than the small batch reach the same loss.

        By McCandlish et al.'s model, an update with a batch of `B` is worth
        `1 / (1 + scale / B)` of an update without noise. So the stretch is
        `M (1 + scale / B) / (1 + scale / B_S)`, which is `M / gain`. It is 1 if the
        noise scale is far above both batch sizes, and `M` if it is far below.
        """
        ratio = batch_size / small_batch_size
        if self.gradient_square <= 0:
            return 1.0
        noise = max(0.0, self.noise)
        return ratio / gain(self.gradient_square, noise, batch_size, small_batch_size)


class GradientMoments:
    """Running means of `|G|^2` and `tr(Sigma)`, from gradients of two batch sizes.

    Each update gives an unbiased estimate of both. They are smoothed before they are
    divided, because the quotient of single estimates would be biased.
    """

    def __init__(self):
        # The two means, and the total weight of the updates so far in them.
        self._means = keras.Variable(np.zeros(3, "float32"), trainable=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """The state that a resumed training must restore."""
        return [self._means]

    def update(self, small_square, small_inverse, large_square, large_inverse):
        """Includes one update.

        Args:
            small_square: Mean of `|g|^2` over the small batches.
            small_inverse: Mean of `1 / size` over the small batches.
            large_square: `|g|^2` of the large batch.
            large_inverse: `1 / size` of the large batch.
        """
        # A batch that is too small to split gives gradients of one size only.
        known = small_inverse > large_inverse
        difference = ops.where(known, small_inverse - large_inverse, 1.0)
        noise = (small_square - large_square) / difference
        gradient_square = large_square - noise * large_inverse
        now = ops.stack([gradient_square, noise, ops.ones_like(noise)])
        before = self._means.value
        means = SMOOTHING * before + (1 - SMOOTHING) * now
        # A gradient that overflowed float16 has no size.
        known = ops.logical_and(known, ops.all(ops.isfinite(now)))
        self._means.assign(ops.where(known, means, before))

    def gain(self, batch_size: int, small_batch_size: int):
        """How many small-batch updates an update is worth now, a float32 tensor.

        It is `regime_progress.gain` of the smoothed means, so it lies between 1 and
        `M = batch_size / small_batch_size`. An estimate below 0 counts as 0: of
        `|G|^2`, then the gain is `M`; of the noise, then it is 1. It is 1 as long as
        nothing is known.
        """
        gradient_square, noise, _ = ops.unstack(ops.maximum(self._means.value, 0.0))
        is_noisy = noise > 0
        # Without noise, any numbers but 0 / 0.
        noise = ops.where(is_noisy, noise, 1.0)
        value = gain(gradient_square, noise, batch_size, small_batch_size)
        return ops.where(is_noisy, value, 1.0)

    def estimate(self) -> NoiseScale | None:
        """The current estimate; `None` before the first update."""
        gradient_square, noise, weight = ops.convert_to_numpy(self._means).tolist()
        if not weight:
            return None
        return NoiseScale(gradient_square / weight, noise / weight)
