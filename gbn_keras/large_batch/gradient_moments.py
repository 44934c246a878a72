"""The gradient noise scale: how large a batch is worth its examples.

The mean gradient of `b` examples is the true one, `G`, plus noise of the covariance
`Sigma / b`. Far below `b = tr(Sigma) / |G|^2`, the simple noise scale, twice as
many examples make an update worth twice as much; far above, no more than before. Two
batch sizes are enough to tell: `E |g_b|^2 = |G|^2 + tr(Sigma) / b`. A training in
micro-batches has both sizes anyway, the micro-batch and the whole.

Reference:
    McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training",
    sections 2.2, 2.3 and appendix A, arXiv 1812.06162.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

# Of the old means in the new ones: the last 50 updates or so count.
_SMOOTHING = 0.98


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """What is known of a gradient and its noise.

    Attributes:
        gradient_square: `|G|^2`, of the true gradient.
        noise: `tr(Sigma)`, of one example's gradient.
    """

    gradient_square: float
    noise: float

    @property
    def noise_scale(self) -> float:
        """`tr(Sigma) / |G|^2`, in examples; infinite where there is only noise."""
        if self.gradient_square <= 0:
            return float("inf")
        return max(0.0, self.noise / self.gradient_square)

    def suitable_stretch(self, batch_size: int, small_batch_size: int) -> float:
        """How many times more epochs than the small batch reach the same loss.

        By the paper's model an update with a batch of `B` is worth `1 / (1 + scale /
        B)` of one without noise. So `M (1 + scale / B) / (1 + scale / B_S)`: 1 where
        the noise scale is far above both batches, `M` where it is far below.
        """
        scale, ratio = self.noise_scale, batch_size / small_batch_size
        if scale == float("inf"):
            return 1.0
        return ratio * (1 + scale / batch_size) / (1 + scale / small_batch_size)


class GradientMoments:
    """Running means of `|G|^2` and `tr(Sigma)`, from gradients of two batch sizes.

    Both are estimated without bias in every update, and smoothed before their quotient
    is taken, which otherwise would be biased.
    """

    def __init__(self):
        # The means, and how much the updates until now count in them.
        self._means = keras.Variable(np.zeros(3, "float32"), trainable=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """What a training that goes on must have as it was."""
        return [self._means]

    def update(self, small_square, small_inverse, large_square, large_inverse):
        """Takes one update in.

        Args:
            small_square: Mean of `|g|^2` over the small batches.
            small_inverse: Mean of `1 / size` over them.
            large_square: `|g|^2` of the large batch.
            large_inverse: `1 / size` of it.
        """
        # A batch that was too small to be cut has gradients of one size only.
        known = small_inverse > large_inverse
        difference = ops.where(known, small_inverse - large_inverse, 1.0)
        noise = (small_square - large_square) / difference
        gradient_square = large_square - noise * large_inverse
        now = ops.stack([gradient_square, noise, ops.ones_like(noise)])
        before = self._means.value
        means = _SMOOTHING * before + (1 - _SMOOTHING) * now
        self._means.assign(ops.where(known, means, before))

    def estimate(self) -> NoiseScale | None:
        """The estimate by now; `None` before the first update."""
        gradient_square, noise, weight = ops.convert_to_numpy(self._means).tolist()
        if not weight:
            return None
        return NoiseScale(gradient_square / weight, noise / weight)
