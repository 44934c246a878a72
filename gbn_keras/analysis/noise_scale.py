"""What the gradient noise scale says of a training, and its table.

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
    """In one sentence, whether the batch was too large for its number of updates.

    Args:
        estimate: A training's last `NoiseScale`; `None` if there is none.
        batch_size: Examples per update.
        small_batch_size: The batch size that the regime was tuned for.
        updates: How many there were.
        stretch: How many times more epochs than the small batch's there were.
    """
    if estimate is None:
        return (
            "The gradient noise scale is not known: it takes at least two "
            "micro-batches or replicas."
        )
    suitable = estimate.suitable_stretch(batch_size, small_batch_size)
    is_enough = stretch > 0.9 * suitable  # Nobody knows it better than that.
    verdict = "was not too large" if is_enough else "was too large"
    return (
        f"At a gradient noise scale of {estimate.noise_scale:,.0f} examples, batch "
        f"{batch_size} {verdict} for {updates:,} updates: to learn as much as batch "
        f"{small_batch_size} does, a stretch of {suitable:.3g} would suit "
        f"(it was {stretch:.3g})."
    )


class NoiseScaleLog(LogSpacedLog):
    """Logs the gradient noise scale at logarithmically spaced updates.

    `noise_scale.csv` has the columns `updates`, `gradient_square`, `noise` and
    `noise_scale`.

    Args:
        folder: Where the file goes.
        moments: The `GradientMoments` that the training updates, as
            `LargeBatchModel.gradient_moments`.
    """

    def __init__(self, folder: str | os.PathLike, moments):
        super().__init__(os.path.join(folder, "noise_scale.csv"))
        self._moments = moments

    def columns(self) -> list[str]:
        """Those after `updates`."""
        return ["gradient_square", "noise", "noise_scale"]

    def row(self) -> list[float | str]:
        """The estimate by now."""
        now = self._moments.estimate()
        if now is None:  # No batch was cut yet.
            return ["", "", ""]
        return [now.gradient_square, now.noise, now.noise_scale]
