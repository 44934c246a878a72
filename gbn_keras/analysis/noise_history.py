"""`NoiseHistory`: from one training's noise, what a batch of any size would need."""

import dataclasses

import numpy as np

from gbn_keras.regime_progress import SMOOTHING, gain

# Zhang et al.: a batch is critical if it needs a fifth more samples than a small one.
_CRITICAL_STRETCH = 1.2
_SIZES_TRIED = 100
_STEPS = 100


@dataclasses.dataclass(frozen=True)
class NoiseHistory:
    """Gradient and noise along a training, by its place in the small batch's regime.

    A training with another batch size meets about the same gradient and the same noise
    at the same place. So its gains are known, and with them the number of its updates.

    Attributes:
        place: How much of the regime was done at the end of each interval, from 0 on,
            in increasing order. 1 is the whole regime.
        gradient_square: Mean `|G|^2` of the true gradient in each interval.
        noise: Mean `tr(Sigma)` of one example's gradient in each interval.
        small_batch_size: Batch size that the regime was tuned for.
        small_batch_updates: Number of its updates.

    Reference:
        Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD", algorithm 1, arXiv 2007.05105.
        McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training",
        section 2.4, arXiv 1812.06162: the sum over a training whose noise changes.
    """

    place: np.ndarray
    gradient_square: np.ndarray
    noise: np.ndarray
    small_batch_size: int
    small_batch_updates: int

    @classmethod
    def of_estimates(cls, updates, place, gradient_square, noise, *regime):
        """The history behind the estimates that a training logged.

        An estimate is a running mean, which remembers about 50 updates. Two of them
        tell the mean of the updates between them.

        Args:
            updates: Number of updates before each estimate, from 1 on.
            place: See the class.
            gradient_square: Estimates of `|G|^2`.
            noise: Estimates of `tr(Sigma)`.
            regime: `small_batch_size` and `small_batch_updates`.
        """
        updates = np.asarray(updates)
        passed = np.diff(updates, prepend=0)
        # The running means begin at 0 and are divided by their weight.
        weight = 1 - SMOOTHING**updates
        kept = SMOOTHING**passed

        def between(estimates):
            means = np.asarray(estimates) * weight
            return (means - kept * np.concatenate([[0], means[:-1]])) / (1 - kept)

        between_square, between_noise = between(gradient_square), between(noise)
        return cls(np.asarray(place), between_square, between_noise, *regime)

    def updates(self, batch_sizes) -> np.ndarray:
        """The number of updates that do the work of the small batch's regime.

        It goes through the regime as a training with `stretch="auto"` does, with its
        running means. Beyond the last place, the last values hold.

        Args:
            batch_sizes: The batch sizes, a number or an array of any shape.
        """
        sizes = np.asarray(batch_sizes, float)
        ends = self.place * self.small_batch_updates
        left = np.full(sizes.shape, float(self.small_batch_updates))
        made = np.zeros(sizes.shape, int)
        square = noise = np.zeros(sizes.shape)
        while (left > 0).any():
            interval = np.searchsorted(
                ends, self.small_batch_updates - left, side="right"
            )
            interval = np.minimum(interval, len(ends) - 1)
            # One update, or a hundredth of those made: intervals are wider.
            step = np.maximum(1, made // _STEPS)
            kept = SMOOTHING**step
            square = kept * square + (1 - kept) * self.gradient_square[interval]
            noise = kept * noise + (1 - kept) * self.noise[interval]
            gains = self._gains(square, noise, sizes)
            # Less than a millionth of an update is rounding.
            wanted = np.ceil(left / gains - 1e-6)
            made = made + np.clip(wanted, 0, step).astype(int)
            left = left - gains * step
        return made

    def _gains(self, square, noise, sizes):
        """The gains, as `GradientMoments` computes them."""
        is_noisy = noise > 0
        noise = np.where(is_noisy, noise, 1)
        gains = gain(np.maximum(square, 0), noise, sizes, self.small_batch_size)
        return np.where(is_noisy, gains, 1)

    def critical_batch_size(self, largest: float) -> float:
        """The batch size from which on more than a fifth more samples are needed.

        Args:
            largest: The largest batch size to think of. It is returned if even that
                needs fewer samples.

        Reference:
            Zhang et al., "How Does Critical Batch Size Scale in Pre-training?",
            arXiv 2410.21676.
        """
        sizes = np.geomspace(self.small_batch_size, largest, _SIZES_TRIED)
        samples = self.updates(sizes) * sizes
        stretch = samples / (self.small_batch_updates * self.small_batch_size)
        # Whole updates make a step of it. A larger batch never needs fewer samples.
        stretch = np.maximum.accumulate(stretch)
        logarithm = np.interp(_CRITICAL_STRETCH, stretch, np.log(sizes))
        return float(np.exp(logarithm))
