"""A verdict on the batch size from the gradient noise scale, and the scale's log.

See `large_batch.gradient_moments`.
"""

import os

from gbn_keras.analysis.log_spaced import LogSpacedLog


def noise_scale_advice(
    estimate,
    batch_size: int,
    small_batch_size: int,
    updates: int,
    stretch: float,
) -> str:
    """One sentence on whether the batch was too large for its number of updates.

    Args:
        estimate: Last `NoiseScale` of a training; `None` if there is none.
        batch_size: Number of examples per update.
        small_batch_size: Batch size that the regime was tuned for.
        updates: Number of updates made.
        stretch: How many times more epochs the training had than the regime.
    """
    if estimate is None:
        return (
            "The gradient noise scale is unknown, because it needs at least two "
            "micro-batches or replicas."
        )
    suitable = estimate.suitable_stretch(batch_size, small_batch_size)
    is_enough = stretch > 0.9 * suitable  # The estimate is no more accurate.
    verdict = "was not too large" if is_enough else "was too large"
    return (
        f"At a gradient noise scale of {estimate.noise_scale:,.0f} examples, batch "
        f"{batch_size} {verdict} for {updates:,} updates: to learn as much as batch "
        f"{small_batch_size} does, a stretch of {suitable:.3g} would suit (it was "
        f"{stretch:.3g})."
    )


class NoiseScaleLog(LogSpacedLog):
    """Logs the gradient noise scale at logarithmically spaced updates.

    It writes `noise_scale.csv` with the columns `updates`, `gradient_square`, `noise`
    and `noise_scale`.

    Args:
        folder: Folder of the file.
        moments: The `GradientMoments` that training updates, such as
            `LargeBatchModel.gradient_moments`.
    """

    def __init__(self, folder: str | os.PathLike, moments):
        super().__init__(os.path.join(folder, "noise_scale.csv"))
        self._moments = moments

    def columns(self) -> list[str]:
        """The columns after `updates`."""
        return ["gradient_square", "noise", "noise_scale"]

    def row(self) -> list[float | str]:
        """The current estimate."""
        now = self._moments.estimate()
        if now is None:  # No batch was split yet.
            return ["", "", ""]
        return [now.gradient_square, now.noise, now.noise_scale]
