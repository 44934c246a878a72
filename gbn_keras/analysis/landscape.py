"""The roughness of a real loss: how its differences grow with distance."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from gbn_keras.analysis.compiled import compiled
from gbn_keras.analysis.fits import AlphaFit
from gbn_keras.arguments import integer

# With fewer directions, a resample may well repeat a single one, which has no
# deviation.
_FEWEST_DIRECTIONS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class LossDeviation:
    """Differences of the loss around a point in weight space.

    Attributes:
        distances: Distances from the point, `(distances,)`, in units of the weights.
        differences: Loss at each distance minus `loss`, `(directions, distances)`.
        loss: Loss at the point.
        weights_norm: The point's own distance from 0, for comparison.
    """

    distances: np.ndarray
    differences: np.ndarray
    loss: float
    weights_norm: float

    @property
    def deviation(self) -> np.ndarray:
        """`(distances,)`: standard deviation of the differences over the directions."""
        return self.differences.std(axis=0, ddof=1)

    @property
    def mean(self) -> np.ndarray:
        """`(distances,)`: mean of the differences, common to all directions."""
        return self.differences.mean(axis=0)

    @property
    def root_mean_square(self) -> np.ndarray:
        """`(distances,)`: root of the mean squared difference."""
        return np.sqrt(np.square(self.differences).mean(axis=0))

    def fit(
        self, smallest: float = 0.0, largest: float = np.inf, *, centred: bool = True
    ) -> AlphaFit:
        """`fit_alpha` over the distances from `smallest` to `largest`."""
        chosen = (self.distances >= smallest) & (self.distances <= largest)
        return fit_alpha(
            self.distances[chosen], self.differences[:, chosen], centred=centred
        )


def loss_deviation(
    model: keras.Model,
    loss: Callable,
    x,
    y,
    distances,
    *,
    directions: int = 100,
    seed: int = 0,
) -> LossDeviation:
    """Differences of a model's loss between its weights and points around them.

    It computes `L(w_0 + r d) - L(w_0)` for each distance `r` along each random
    direction `d`. A direction is uniform on the unit sphere in the space of all
    trainable weights. The loss is the mean over the given examples, without penalties
    on the weights.

    The model runs in training mode, so normalization uses the statistics of its batch.
    Running statistics of a fresh network, or of other weights, mean nothing here. All
    points see the same batches and the same dropout masks. (On PyTorch, that holds for
    dropout layers with a seed. Others draw from PyTorch's own generator.) The model
    does not change, including its running statistics and seed generators.

    Example:
    ```python
    result = loss_deviation(model, loss, x, y, distances=[0.1, 0.3, 1.0, 3.0, 10.0])
    result.fit().alpha
    ```

    Args:
        model: Any built model, fresh or trained.
        loss: Function of `(y, outputs)` that gives one number per example or their
            mean, such as those in `keras.losses`.
        x: Inputs of one batch, or a list of batches. With ghost normalization, a batch
            should be made of whole ghosts. Each batch goes through the model at once.
        y: Targets in the same form.
        distances: Distances, `(distances,)`, above 0, in units of the weights.
        directions: Number of directions, at least 2. A fit needs 10.
        seed: Seed of the directions.

    Raises:
        ValueError: If a distance is not a finite number above 0, if there are fewer
            than 2 directions, or if x and y have different numbers of batches.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 3 and
        appendix, arXiv 1705.08741.
    """
    distances = _checked_distances(distances)
    directions = integer("directions", directions, 2)
    start = [_copy(variable) for variable in model.trainable_variables]
    loss_at = functools.partial(
        _mean_loss, _loss_along(model, loss, start), _batches(x, y)
    )
    random = np.random.default_rng(seed)
    differences = np.empty((directions, len(distances)))
    for row in differences:
        direction = _random_direction(random, start)
        row[:] = [loss_at(direction, distance) for distance in distances]
    loss_at_start = loss_at(direction, 0.0)
    return LossDeviation(
        distances, differences - loss_at_start, loss_at_start, _norm(start)
    )


def fit_alpha(
    distances,
    differences,
    *,
    centred: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> AlphaFit:
    """`alpha` of `E (L(w_1) - L(w_2))^2 ~ ||w_1 - w_2||^alpha`.

    It fits a straight line to log deviation over log distance by least squares. The
    residuals of that line say little about the error, because all distances use the
    same directions. The directions are independent, so the error comes from resampling
    them (a bootstrap).

    By default, the deviation is the standard deviation over directions, as in the
    paper. The paper's random potential has no drift. A real loss has a mean over
    directions, which rises around any point where training has been. This mean is not
    roughness, and it would push alpha to 4. With `centred=False`, the deviation is the
    root mean square, which includes it.

    Args:
        distances: Distances, `(distances,)`, at least 2, above 0.
        differences: Differences of the loss, `(directions, distances)`, with at least
            10 directions.
        centred: Whether to subtract the mean over directions.
        resamples: Number of times to resample the directions.
        seed: Seed of the resampling.

    Raises:
        ValueError: If there are too few distances or directions, or if at some distance
            all directions agree or a difference is not finite.
    """
    distances = _checked_distances(distances)
    differences = _checked_differences(differences, distances)
    log_distances = np.log(distances)
    log_deviations = _log_deviations(differences, centred)
    line = np.polyfit(log_distances, log_deviations, 1)
    residuals = log_deviations - np.polyval(line, log_distances)
    draws = np.random.default_rng(seed).integers(
        len(differences), size=(resamples, len(differences))
    )
    drawn = [_log_deviations(differences[draw], centred) for draw in draws]
    slopes = np.polyfit(log_distances, np.transpose(drawn), 1)[0]
    return AlphaFit(
        alpha=float(2 * line[0]),
        error=float(2 * slopes.std(ddof=1)),
        r_squared=float(1 - residuals.var() / log_deviations.var()),
    )


def _log_deviations(differences, centred):
    mean = differences.mean(axis=0) if centred else 0.0
    freedom = len(differences) - bool(centred)
    return 0.5 * np.log(np.square(differences - mean).sum(axis=0) / freedom)


def _loss_along(model, loss, start):
    """A function of direction, distance and batch that gives the losses there."""
    fixed = [_copy(variable) for variable in model.non_trainable_variables]

    def losses(direction, distance, x, y):
        weights = [
            w + ops.cast(distance, w.dtype) * d
            for w, d in zip(start, direction, strict=True)
        ]
        # `stateless_call` returns the new values of the other variables and assigns
        # none.
        outputs, _ = model.stateless_call(weights, fixed, x, training=True)
        return loss(y, outputs)

    return compiled(losses)


def _mean_loss(losses_along, batches, direction, distance):
    """The mean over all examples, in float64 because differences may be tiny."""
    distance = ops.convert_to_tensor(distance, "float32")
    total = sum(
        len(y) * _mean(losses_along(direction, distance, x, y)) for x, y in batches
    )
    return total / sum(len(y) for _, y in batches)


def _mean(losses):
    return ops.convert_to_numpy(losses).mean(dtype="float64")


def _random_direction(random, start):
    """Uniform on the unit sphere, because normal vectors prefer no direction."""
    parts = [random.standard_normal(tuple(w.shape), np.float32) for w in start]
    norm = _norm(parts)
    return [
        ops.convert_to_tensor(part / norm, dtype=w.dtype)
        for part, w in zip(parts, start, strict=True)
    ]


def _norm(parts):
    arrays = [ops.convert_to_numpy(part).astype("float64") for part in parts]
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays)))


def _copy(variable):
    return ops.convert_to_tensor(ops.convert_to_numpy(variable), dtype=variable.dtype)


def _batches(x, y):
    if not isinstance(x, list):
        x, y = [x], [y]
    if not x or not isinstance(y, list) or len(x) != len(y):
        targets = len(y) if isinstance(y, list) else "no list"
        raise ValueError(
            "x and y must be lists of equally many batches, at least one, or one "
            f"batch each. Received: {len(x)} batches of x, {targets} of y."
        )
    return [
        (ops.convert_to_tensor(inputs), ops.convert_to_tensor(targets))
        for inputs, targets in zip(x, y, strict=True)
    ]


def _checked_distances(distances):
    distances = np.asarray(distances, "float64")
    if distances.ndim != 1 or not ((distances > 0) & (distances < np.inf)).all():
        raise ValueError(
            "distances must be a list of finite numbers above 0. Received: "
            f"distances={distances.tolist()}."
        )
    return distances


def _checked_differences(differences, distances):
    differences = np.asarray(differences, "float64")
    wanted = f"(at least {_FEWEST_DIRECTIONS}, {len(distances)})"
    if (
        differences.ndim != 2
        or differences.shape[1] != len(distances)
        or len(differences) < _FEWEST_DIRECTIONS
    ):
        raise ValueError(
            f"differences must be of shape {wanted}: directions by distances. "
            f"Received: differences of shape {differences.shape}."
        )
    if len(set(distances.tolist())) < 2:
        raise ValueError(
            "distances must have at least 2 different values, to fit a slope. "
            f"Received: distances={distances.tolist()}."
        )
    if not np.isfinite(differences).all() or (np.ptp(differences, axis=0) == 0).any():
        raise ValueError(
            "differences must be finite and differ between directions at each "
            f"distance. Received: deviations {differences.std(axis=0).tolist()}."
        )
    return differences
